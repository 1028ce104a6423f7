"""From answers to findings: rises by hand, intervals over groups, and a masked attack that is seen as one."""

import json

import numpy as np
import pytest
import torch

from library.audit.queries.audited_model import noised
from library.audit.queries.error_statistics import noise_for
from library.audit.report.sections import robustness_schema
from library.audit.robustness.leak import TIMESTEPS, leaks_of, losses_of
from library.audit.robustness.robustness_findings import (
    AuditedPictures,
    checks_of,
    code_findings,
    findings_of,
)
from library.audit.robustness.robustness_result import as_json
from tests.helpers import audit_toy
from tests.helpers.json_schema import complaints
from tests.helpers.planted_robustness import PICTURES, SIDES, SIZES, answers, result
from tools import findings_page


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


def test_a_leak_is_told_by_the_loss_against_the_base_and_the_gain_by_held_out_pictures_alone() -> None:
    base = {"losses": np.tile(np.linspace(0.5, 1.2, 8)[:, None], (1, 2)).astype(np.float32)}
    learnt = np.array([0.3, 0.3, 0.5, 0.7, 0.6, 0.6, 0.6, 0.6])[:, None]
    full = {"losses": (base["losses"] * learnt).astype(np.float32)}
    half = {"losses": (base["losses"] * learnt**0.5).astype(np.float32)}
    found = {one.variant: one for one in leaks_of({"base": base, "full": full, "half strength": half}, PICTURES, 0)}
    assert found["base"].auc.value == 0.5 and found["full"].auc.value == pytest.approx(12 / 16)
    assert found["full"].auc.low < 0.75 < found["full"].auc.high and found["full"].minus_full is None
    assert found["base"].minus_full.value == pytest.approx(-0.25) and found["half strength"].minus_full.value == 0
    assert (found["full"].learnt.value, found["base"].learnt.value) == pytest.approx((0.4, 0.0), abs=1e-5)
    assert (found["full"].members, found["full"].non_members) == (4, 4)


def test_losses_of_pictures_are_those_of_the_audits_own_noise() -> None:
    model, pictures = audit_toy.toy_model(), audit_toy.toy_pictures(2)
    asked = losses_of(model, pictures)["losses"]
    for row, picture in enumerate(pictures):  # the slow twin
        for column, step in enumerate(TIMESTEPS):
            noise = noise_for(picture.identity, step, 0, (4, 8, 8))
            there = noised(picture.latent, noise, model.alpha_bar(step))[None]
            predicted = model.predict_noise(there, torch.tensor([step]), model.encode_text([picture.caption])).detach()
            assert float(asked[row, column]) == pytest.approx(float((predicted - noise).square().mean()), rel=1e-4)


def test_a_planted_result_fits_the_published_schema() -> None:
    content = json.loads(json.dumps(as_json(result())))
    assert complaints(content, json.loads(findings_page.ROBUSTNESS.read_text())) == []
    assert {one["attack"] for one in content["findings"]} == set(robustness_schema.ATTACKS)
