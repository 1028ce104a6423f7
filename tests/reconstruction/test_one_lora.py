"""The attack on one audited LoRA: few members are ranked as a set, many are compared one by one."""

import dataclasses

import pytest
import torch

from library.audit.reconstruction import one_lora
from library.audit.reconstruction.one_lora import (
    AUC,
    CEILING,
    NOTHING,
    OTHERS,
    RANK,
    SHUFFLED,
    OneRow,
    checked_one,
    decoy_sets,
    judged,
    one_lora_rows,
    shuffled,
)
from library.audit.reconstruction.probes import public_probes
from library.audit.reconstruction.retrieval import MissingControls, public_space
from library.audit.reconstruction.stacked_lora import Factors
from library.audit.reconstruction.weight_attacks import PublicKnowledge, Reader
from library.audit.report.sections.reconstruction_section import (
    is_credited,
    reconstruction_json,
    reconstruction_section,
)
from library.seeding import stream
from tests.helpers.stacked_toy import random_factors, stacked_toy, toy_persons, toy_states


def pictures(members: int, others: int) -> one_lora.TestPictures:
    """Pictures around two means: members near the one, non-members near the other."""
    chance = stream(0, "pictures")
    means = torch.randn(2, 4, 8, 8, generator=chance)
    latents = torch.cat([
        mean + 0.5 * torch.randn(count, 4, 8, 8, generator=chance)
        for mean, count in zip(means, (members, others), strict=True)
    ])  # fmt: skip
    labels = [True] * members + [False] * others
    return one_lora.TestPictures(latents, labels, [f"g{i}" for i in range(members + others)])


def scene(shadows: bool = False):
    model, public = stacked_toy(), toy_persons(12)
    space = public_space(public.latents.flatten(0, 1), components=6)
    probes = public_probes(model, public.latents.flatten(0, 1), toy_states(["x"])[0], seed=0, count=4)
    loras = random_factors(model, 12, seed=3) if shadows else None
    return model, PublicKnowledge(space, probes, loras, space.coefficients(public.means()))


def planted_reader(known: PublicKnowledge, shown: one_lora.TestPictures, shadows: int = 0) -> Reader:
    """Reads the members' mean out of a LoRA's largest weight: there for the target alone."""
    own = known.space.coefficients(shown.latents[shown.rows(True)].flatten(1)).mean(0) - known.centre

    def direct(factors: Factors, answers: torch.Tensor) -> torch.Tensor:
        first = next(iter(factors.up.values())).flatten(1)[:, :1]
        return torch.where(first == 7.0, own, torch.zeros_like(own))

    return Reader("planted", "planted", ("weights",), shadows, direct)


def target(model) -> Factors:
    factors = random_factors(model, 1)
    next(iter(factors.up.values()))[0, 0, 0] = 7.0
    return factors


def test_of_many_members_the_pictures_are_compared_one_by_one() -> None:
    model, known = scene()
    shown = pictures(20, 24)
    rows = checked_one(one_lora_rows(model, target(model), [planted_reader(known, shown)], known, shown, seed=0))
    planted, gallery = rows
    assert planted.kind == AUC and (planted.members, planted.others) == (20, 24)
    assert planted.value > 0.9 and planted.low > 0.7 and planted.p < 0.01
    assert planted.controls[CEILING] > 0.9 and gallery.controls[NOTHING] == 0.5
    assert is_credited(planted, 2) and not is_credited(gallery, 2)
    section = reconstruction_section(rows, ["a reason"])
    assert "1 of 2 attacks read private pictures" in section.headline
    assert any("Not measured: a reason" in part for part in section.parts)


def test_a_few_members_are_ranked_as_a_set_among_sets_of_non_members() -> None:
    model, known = scene(shadows=True)
    shown = pictures(4, 43)
    rows = checked_one(
        one_lora_rows(
            model, target(model), [planted_reader(known, shown, 12)], known, shown, seed=0, with_gallery=False
        )
    )
    assert rows[0].kind == RANK and rows[0].value == 1 and rows[0].others == 11
    assert rows[0].p == pytest.approx(1 / 11) and OTHERS in rows[0].controls
    assert "none of 1 attacks" in reconstruction_section(rows, []).headline, "11 sets cannot give p below .05"


def test_decoys_are_as_large_as_the_true_set_disjoint_and_never_hold_a_member() -> None:
    shown = pictures(4, 43)
    sets = decoy_sets(shown, seed=1)
    assert sets[0] == [0, 1, 2, 3] and len(sets) == 11
    rows = [row for decoy in sets[1:] for row in decoy]
    assert len(set(rows)) == len(rows) == 40 and min(rows) >= 4
    assert len(decoy_sets(shown, seed=1, most=5)) == 6


def test_equal_scores_are_at_chance() -> None:
    shown = pictures(20, 24)
    assert judged(torch.zeros(44), shown, None, 0)[0] == 0.5
    sets = decoy_sets(pictures(4, 43), seed=0)
    assert judged(torch.zeros(11), shown, sets, 0)[3] == 1.0


def test_shuffled_weights_keep_their_numbers() -> None:
    factors = random_factors(stacked_toy(), 1)
    mixed = shuffled(factors, seed=0)
    for name, value in factors.up.items():
        assert not torch.equal(mixed.up[name], value)
        assert torch.equal(mixed.up[name].flatten().sort().values, value.flatten().sort().values)


def example(**changes: object) -> OneRow:
    controls = {NOTHING: 0.5, SHUFFLED: 0.52, CEILING: 0.9}
    row = OneRow("a", "an attack", ("weights",), 0, AUC, 0.7, 0.6, 0.8, 0.001, 20, 20, controls)
    return dataclasses.replace(row, **changes)


def test_a_row_without_a_control_is_refused() -> None:
    assert checked_one([example()]) == [example()]
    for name in (NOTHING, SHUFFLED, CEILING):
        controls = {key: value for key, value in example().controls.items() if key != name}
        with pytest.raises(MissingControls, match=name):
            checked_one([example(controls=controls)])
    with pytest.raises(MissingControls, match=OTHERS):
        checked_one([example(shadows=5)])


def test_an_attack_is_credited_only_beyond_luck_and_its_controls() -> None:
    assert is_credited(example(), 3)
    assert not is_credited(example(p=0.02), 3), "one of three attacks may be lucky"
    assert not is_credited(example(low=0.49), 3)
    assert not is_credited(example(controls={**example().controls, SHUFFLED: 0.75}), 3)
    assert is_credited(example(kind=RANK, value=1, p=0.01, controls={NOTHING: 50, SHUFFLED: 9, CEILING: 1}), 3)


def test_what_programs_read_names_nothing() -> None:
    found = reconstruction_json([example()], ["x"], {"shadows": 0})
    assert set(found) == {"facts", "rows", "skipped"} and found["rows"][0]["controls"][NOTHING] == 0.5
