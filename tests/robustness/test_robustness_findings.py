"""From answers to findings: rises by hand, intervals over groups, and a masked attack that is seen as one."""

import numpy as np
import pytest

from library.audit.robustness.robustness_findings import (
    AuditedPictures,
    checks_of,
    code_findings,
    findings_of,
    learnt_of,
)

SIZES = (0.01, 0.02)
SIDES = ["members-test"] * 4 + ["non-members-test"] * 4
PICTURES = AuditedPictures(SIDES, ["a", "a", "b", "c", "d", "e", "f", "f"])


def answers(rise: float, *, transfer: float = 1.1, noise: float = 1.01, one_step: float = 1.2) -> dict:
    """Losses of eight pictures that rise by these factors; the second size by their squares."""
    clean = np.linspace(0.5, 1.2, 8)
    by_size = np.stack([clean, clean], 1)

    def at(factor: float) -> np.ndarray:
        return (by_size * [factor, factor**2]).astype(np.float32)

    known = {"loss": rise, "text": rise, "transfer": transfer}
    known |= {f"{kind}_{end}": value for kind in ("loss", "text")
              for end, value in (("noise", noise), ("one_step", one_step), ("fresh", rise))}  # fmt: skip
    moved = np.tile(np.array([[3.0, 4.0, 1.0], [6.0, 8.0, 2.0]]) / 255, (8, 1, 1)) * rise
    return {name: at(factor) for name, factor in known.items()} | {
        "clean": by_size.astype(np.float32), "damage": moved.astype(np.float32),
    }  # fmt: skip


def one(found, variant: str, attack: str, size: float = 0.01, side: str = "all"):
    """One of the findings."""
    return next(
        this for this in found if (this.variant, this.attack, this.size, this.side) == (variant, attack, size, side)
    )


def test_rises_and_their_ratio_to_the_whole_lora_are_those_that_were_planted() -> None:
    found = findings_of({"base": answers(1.25), "full": answers(1.5)}, PICTURES, SIZES)
    full, base = one(found, "full", "loss"), one(found, "base", "loss")
    assert (full.value.value, full.value.low, full.value.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-5)
    assert one(found, "full", "loss", 0.02).value.value == pytest.approx(1.25, abs=1e-5)
    assert full.of_noise.value == pytest.approx(0.01, abs=1e-5) and full.on_fresh_noise.value == pytest.approx(
        0.5, abs=1e-5
    )
    assert full.against_full is None and base.against_full.value == pytest.approx(1.25 / 1.5, abs=1e-5)
    assert (full.pictures, full.groups) == (8, 6)
    members = one(found, "full", "loss", side="members-test")
    assert (members.pictures, members.groups) == (4, 3)
    assert one(found, "base", "damage_by_code").value.value == pytest.approx(4 * 1.25 / 255, rel=1e-4)
    after = one(found, "full", "after").value.value
    assert after == pytest.approx(1.5 * float(np.exp(np.log(np.linspace(0.5, 1.2, 8)).mean())), rel=1e-4)


def test_an_interval_counts_groups_and_not_pictures() -> None:
    spread = answers(1.5)
    spread["loss"][:, 0] *= np.exp([0.3, 0.3, -0.3, 0.1, -0.2, 0.2, -0.1, -0.1])
    together = AuditedPictures(SIDES, ["a", "a", "b", "b", "c", "c", "d", "d"])
    alone = AuditedPictures(SIDES, [str(number) for number in range(8)])
    widths = []
    for pictures in (together, alone):
        value = one(findings_of({"full": spread}, pictures, SIZES), "full", "loss").value
        widths.append(value.high - value.low)
    assert widths[0] > widths[1] > 0


def test_a_masked_attack_is_seen_and_a_sound_one_is_not_accused() -> None:
    masked, sound = answers(1.02, transfer=1.3, noise=1.1), answers(1.5)
    found = {
        (check.variant, check.attack): check
        for check in checks_of({"base": sound, "full": sound, "rank 2": masked}, PICTURES)
    }
    good, bad = found["full", "loss"], found["rank 2", "loss"]
    assert (good.beats_one_step, good.beats_noise, good.grows_with_size, good.beats_transfer) == (1, 1, 1, 1)
    assert (bad.beats_one_step, bad.beats_noise, bad.beats_transfer) == (0, 0, 0)
    assert bad.margin_over_transfer.high < 1 < good.margin_over_transfer.low
    assert found["base", "loss"].beats_transfer is None and found["full", "text"].beats_transfer is None


def test_the_code_is_told_with_noise_of_the_same_size_beside_it() -> None:
    code = {"code": np.tile([0.4, 0.8], (8, 1)), "code_noise": np.tile([0.1, 0.2], (8, 1)),
            "code_one_step": np.tile([0.5, 0.7], (8, 1))}  # fmt: skip
    first, second = code_findings(code, PICTURES, SIZES)
    assert first.distance.value == pytest.approx(0.4) and first.of_noise.value == pytest.approx(0.1)
    assert (first.beats_one_step, second.beats_one_step, first.beats_noise) == (0, 1, 1)


def test_what_a_variant_learnt_is_the_fall_of_the_held_out_pictures_error_below_the_base() -> None:
    base, full = answers(1.2), answers(1.2)
    full["clean"] = (0.6 * base["clean"]).astype(np.float32)
    full["clean"][:4] *= 0.1  # members do not count
    learnt = learnt_of({"base": base, "full": full}, PICTURES)
    assert (learnt["base"].value, learnt["full"].value) == pytest.approx((0.0, 0.4), abs=1e-5)
