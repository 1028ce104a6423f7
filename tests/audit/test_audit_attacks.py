"""The attacks: slow twins, the planted leak, the null, and that nothing of a test side is ever learnt from."""

import dataclasses

import numpy as np
import pytest

from library.audit.attacks import label_free, score_attacks
from library.audit.attacks.attack_result import sides_of
from library.audit.attacks.classifiers import boosted_trees, cross_fitted, logistic, robust_scaled
from library.audit.attacks.registry import ATTACKS, PRIMARY
from library.audit.attacks.score_attacks import (
    calibrated,
    caption_gains,
    clipped_gains,
    crop_rise,
    filtered_loss,
    loss,
    pfami,
    pia,
    secmi,
)
from library.audit.queries.answers import Answers
from library.audit.queries.error_statistics import BANDS, FIRST_BAND, FOURTH, SQUARE
from library.audit.queries.query_plan import FULL, LITE
from library.audit.statistics.metrics import auc
from library.audit.targets.candidate_table import Candidates, aux_view
from library.errors import InputError
from tests.helpers.audit_planted import planted_answers, planted_candidates

CANDIDATES = planted_candidates(40)
FAST = [attack for attack in ATTACKS if attack.name not in ("gsa1", "gsa2", "map_mlp", "secmi_network")]


def area_of(scores, candidates=CANDIDATES):
    return auc(*sides_of(scores, candidates, "test"))


def test_the_battery_is_complete_and_its_names_are_unique():
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names) and PRIMARY in names
    assert {
        "loss",
        "loss_calibrated",
        "loss_filtered",
        "secmi",
        "secmi_network",
        "pia",
        "pian",
        "sima",
        "pfami",
        "clid",
        "clid_threshold",
        "clid_vector",
        "gsa1",
        "gsa2",
        "map_mlp",
        "fusion",
        "loss_empty_calibrated",
        "caption_gain",
        "loss_residual",
        "label_free",
    } <= set(names)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_a_planted_leak_is_found_by_every_attack_in_the_stated_direction(attack):
    answers = planted_answers(CANDIDATES, leak=3.0, plan=FULL if attack.name == "pfami" else LITE)
    scores, chosen = attack.score(answers, aux_view(CANDIDATES, seed=0))
    assert area_of(scores) > 0.85, chosen


@pytest.mark.parametrize("attack", FAST, ids=lambda attack: attack.name)
def test_a_leak_without_any_doubt_gives_auc_one(attack):
    answers = planted_answers(CANDIDATES, leak=15.0, plan=FULL if attack.name == "pfami" else LITE)
    if attack.name.startswith("clid"):
        grid = answers.on["noise"]  # caption and empty caption share their noise, as they do in a sweep
        grid[..., 1, :] = grid[..., 0, :] + np.where(CANDIDATES.is_member, 1.0, 0.5)[:, None, None, None]
    assert area_of(attack.score(answers, aux_view(CANDIDATES, seed=0))[0]) == 1


@pytest.mark.parametrize("attack", FAST, ids=lambda attack: attack.name)
def test_without_a_leak_every_attack_is_at_chance(attack):
    areas = []
    for seed in range(4):
        candidates = planted_candidates(40, seed)
        answers = planted_answers(candidates, 0.0, FULL if attack.name == "pfami" else LITE, seed)
        areas.append(area_of(attack.score(answers, aux_view(candidates, seed))[0], candidates))
    assert abs(np.mean(areas) - 0.5) < 0.11  # three standard errors of four draws of 40 + 40


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_base_in_the_adapters_place_shows_nothing_of_a_leak(attack):
    answers = planted_answers(CANDIDATES, 3.0, FULL if attack.name == "pfami" else LITE).without_adapter()
    assert abs(area_of(attack.score(answers, aux_view(CANDIDATES, 0))[0]) - 0.5) < 0.2


def test_swapping_the_labels_flips_every_unfitted_score():
    swapped = Candidates(
        CANDIDATES.pixels,
        [side[4:] if side.startswith("non-") else f"non-{side}" for side in CANDIDATES.sides],
        CANDIDATES.groups,
    )
    answers = planted_answers(CANDIDATES, 3.0)
    for attack in FAST:
        if attack.possible(LITE) and not attack.learns:
            scores = attack.score(answers, aux_view(CANDIDATES, 0))[0]
            assert area_of(scores, swapped) == pytest.approx(1 - area_of(scores))


@pytest.mark.slow
@pytest.mark.parametrize("attack", [attack for attack in ATTACKS if attack.learns], ids=lambda attack: attack.name)
def test_a_fit_on_swapped_labels_points_the_other_way(attack):
    answers, aux = planted_answers(CANDIDATES, 3.0), aux_view(CANDIDATES, 0)
    scores = attack.score(answers, dataclasses.replace(aux, labels=~aux.labels))[0]
    assert area_of(scores) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_no_test_label_reaches_a_fit(attack):
    """Scores stay the same, bit for bit, when the labels of the test sides are all turned."""
    turned = Candidates(
        CANDIDATES.pixels,
        [
            {"members-test": "non-members-test", "non-members-test": "members-test"}.get(side, side)
            for side in CANDIDATES.sides
        ],
        CANDIDATES.groups,
    )
    answers = planted_answers(CANDIDATES, 1.0, FULL if attack.name == "pfami" else LITE)
    first, second = (attack.score(answers, aux_view(one, 0))[0] for one in (CANDIDATES, turned))
    np.testing.assert_array_equal(first, second)


def test_a_classifier_only_ever_fits_rows_of_aux_sides():
    seen = []

    def recording(features, labels, judged):
        seen.extend(features[:, 0].astype(int).tolist())
        return np.zeros(len(judged))

    aux = aux_view(CANDIDATES, 0)
    cross_fitted(np.arange(len(CANDIDATES.pixels), dtype=float)[:, None], aux, recording)
    assert all(CANDIDATES.sides[row].endswith("-aux") for row in seen)


def test_an_aux_picture_is_never_judged_by_a_fit_that_saw_it_or_its_group():
    aux = aux_view(CANDIDATES, 0)
    groups = np.array(CANDIDATES.groups)[aux.indices]

    def checking(features, labels, judged):
        fitted, asked = set(features[:, 0].astype(int)), set(judged[:, 0].astype(int)) & set(aux.indices.tolist())
        held_out = asked - fitted
        assert held_out and not {CANDIDATES.groups[row] for row in fitted} & {
            CANDIDATES.groups[row] for row in held_out
        }
        return np.isin(judged[:, 0].astype(int), list(fitted)).astype(float)  # 1 where the fit saw the row

    scores = cross_fitted(np.arange(len(CANDIDATES.pixels), dtype=float)[:, None], aux, checking)
    assert not scores.any()
    assert len(set(groups)) < len(groups)  # there are groups of two


def test_the_loss_attack_agrees_with_its_slow_twin():
    answers = planted_answers(CANDIDATES, 1.0, FULL)
    grid = answers.on["noise"]
    slow = [
        -np.mean(
            [
                np.mean([grid[row, t, k, 0, SQUARE] for k in range(FULL.noise_draws)])
                for t in range(len(FULL.noise_timesteps))
            ]
        )
        for row in range(len(CANDIDATES.pixels))
    ]
    profile = -answers.losses("on")
    np.testing.assert_allclose(profile.mean(1), slow, rtol=1e-5)
    scores, chosen = loss(answers, aux_view(CANDIDATES, 0))
    assert chosen == "all t" or np.allclose(scores, profile[:, FULL.noise_timesteps.index(int(chosen[2:]))])


def test_the_calibrated_loss_agrees_with_its_slow_twin():
    answers = planted_answers(CANDIDATES, 1.0)
    row, t = 7, 2
    on, off = (float(records["noise"][row, t, 0, 0, SQUARE]) for records in (answers.on, answers.off))
    assert calibrated(answers, 1.0)[row, t] == pytest.approx((off - on) / off, rel=1e-5)


def test_the_filtered_loss_agrees_with_its_slow_twin():
    answers = planted_answers(CANDIDATES, 1.0)
    record = answers.on["noise"][3, 1, 0, 0, FIRST_BAND : FIRST_BAND + BANDS]
    slow = sum(energy * (1.0 if band < 2 else 0.2) ** 2 for band, energy in enumerate(record))
    assert answers.losses("on", far_weight=0.2)[3, 1] == pytest.approx(slow, rel=1e-5)
    assert "far weight" in filtered_loss(answers, aux_view(CANDIDATES, 0))[1]


def test_secmi_and_pia_agree_with_their_slow_twins():
    answers = planted_answers(CANDIDATES, 1.0)
    scores, chosen = secmi(answers, aux_view(CANDIDATES, 0))
    assert chosen == "t=100"
    np.testing.assert_allclose(scores, [-row[1, SQUARE] for row in answers.on["edges"]], rtol=1e-5)
    scores, chosen = pia(answers, aux_view(CANDIDATES, 0))
    np.testing.assert_allclose(scores, [-(row[0, FOURTH] ** 0.25) for row in answers.on["pia"]], rtol=1e-5)


def test_pfami_agrees_with_its_slow_twin():
    answers = planted_answers(CANDIDATES, 1.0, FULL)
    row, rises = 5, []
    for place, step in enumerate(FULL.crop_timesteps):
        whole = answers.on["noise"][row, FULL.noise_timesteps.index(step), 0, 0, SQUARE]
        rises.append((answers.on["crop"][row, place, SQUARE] - whole) / whole)
    assert crop_rise(answers, "on")[row] == pytest.approx(np.mean(rises), rel=1e-4)
    difference = crop_rise(answers, "on") - crop_rise(answers, "off")
    np.testing.assert_array_equal(pfami(answers, aux_view(CANDIDATES, 0))[0], difference)


def test_clid_agrees_with_its_slow_twin():
    answers = planted_answers(CANDIDATES, 1.0, FULL)
    row, grid = 4, answers.on["noise"]
    places = [FULL.noise_timesteps.index(step) for step in FULL.clid_timesteps]
    slow = [np.mean([grid[row, t, k, 1, SQUARE] - grid[row, t, k, 0, SQUARE] for k in range(2)]) for t in places]
    np.testing.assert_allclose(caption_gains(answers, "on")[row], slow, rtol=1e-4)
    whole = np.mean([grid[row, t, k, 0, SQUARE] for t in places for k in range(2)])
    clipped = [answers.on["clipped"][row, cut, :, :, SQUARE].mean() - whole for cut in range(3)]
    np.testing.assert_allclose(clipped_gains(answers, "on")[row], clipped, rtol=1e-4, atol=1e-7)


def test_robust_scaling_reads_the_aux_rows_alone():
    aux = aux_view(CANDIDATES, 0)
    scores = np.random.default_rng(0).normal(size=len(CANDIDATES.pixels))
    far = scores.copy()
    far[CANDIDATES.is_test] += 100
    np.testing.assert_array_equal(robust_scaled(scores, aux)[aux.indices], robust_scaled(far, aux)[aux.indices])


def test_features_without_variance_give_constant_scores():
    features, labels = np.ones((10, 3)), np.arange(10) < 5
    for fit in (logistic(1.0), boosted_trees(5, 0)):
        assert np.ptp(fit(features, labels, features)) == 0


def test_fusion_does_as_well_as_the_best_single_attack():
    answers, aux = planted_answers(CANDIDATES, 1.0), aux_view(CANDIDATES, 0)
    singles = [area_of(attack.score(answers, aux)[0]) for attack in FAST if attack.possible(LITE) and not attack.learns]
    assert area_of(score_attacks.fusion(answers, aux)[0]) >= max(singles) - 0.05


def test_members_that_are_also_non_members_are_refused():
    with pytest.raises(InputError, match="1 of 4 pictures are both members and non-members"):
        Candidates(["a", "b", "a", "c"], ["members-aux", "members-test", "non-members-aux", "non-members-test"], "wxyz")


def test_a_group_on_aux_and_test_sides_is_refused():
    with pytest.raises(InputError, match="1 groups are on both aux and test sides"):
        Candidates(["a", "b"], ["members-aux", "members-test"], ["same", "same"])


def test_too_few_aux_groups_to_fit_attacks_fairly_are_refused():
    few = planted_candidates(3)
    with pytest.raises(InputError, match="members-aux has 2 groups"):
        aux_view(dataclasses.replace(few), 0)


def test_a_lora_that_moves_only_the_last_digits_is_silent_and_one_that_moves_a_loss_is_not():
    answers = planted_answers(CANDIDATES, 1.0)
    assert not answers.is_silent() and answers.without_adapter().is_silent()
    generator = np.random.default_rng(0)
    shaken = {name: values * (1 + 1e-5 * generator.normal(size=values.shape)) for name, values in answers.off.items()}
    assert Answers(shaken, answers.off, LITE).is_silent()  # the base, asked in another batch
    shaken["noise"][3, 1, 0, 0, SQUARE] *= 1.001
    assert not Answers(shaken, answers.off, LITE).is_silent()


def test_label_free_attacks_agree_with_their_slow_twins():
    answers, aux, row = planted_answers(CANDIDATES, 1.0), aux_view(CANDIDATES, 0), 11
    on, off = (records["noise"][row, :, 0, :, SQUARE].astype(float) for records in (answers.on, answers.off))
    empty = label_free.empty_calibrated_loss(answers, aux)[0]
    assert empty[row] == pytest.approx(np.mean([(off[t, 1] - on[t, 1]) / off[t, 1] for t in range(4)]), rel=1e-5)
    gain = label_free.log_caption_gain(answers, aux)[0]
    slow = [np.log(on[t, 1] / on[t, 0]) - np.log(off[t, 1] / off[t, 0]) for t in range(4)]
    assert gain[row] == pytest.approx(np.mean(slow), rel=1e-4, abs=1e-6)
    both = label_free.label_free(answers, aux)[0]
    z = [(one[row] - one[aux.indices].mean()) / one[aux.indices].std() for one in (empty, gain)]
    assert both[row] == pytest.approx(sum(z))


def test_the_residual_is_what_the_bases_losses_do_not_predict():
    """A gain that is a line in the base's log losses leaves nothing; what is added to one picture stays with it."""
    answers, aux = planted_answers(CANDIDATES, 0.0), aux_view(CANDIDATES, 0)
    line = 0.3 + 0.2 * np.log(answers.off["noise"][:, :, 0, 0, SQUARE].astype(np.float64)).mean(1)
    on = {name: values.astype(np.float64) for name, values in answers.off.items()}
    added = np.zeros(len(line))
    added[int(CANDIDATES.indices("members-test")[0])] = 0.5
    on["noise"][:, :, 0, 0, SQUARE] *= np.exp(-(line + added))[:, None]
    scores = label_free.residual_loss(Answers(on, answers.off, LITE), aux)[0]
    np.testing.assert_allclose(scores, added, atol=1e-4)


def test_no_label_at_all_reaches_a_label_free_attack():
    answers, aux = planted_answers(CANDIDATES, 1.0), aux_view(CANDIDATES, 0)
    turned = dataclasses.replace(aux, labels=~aux.labels)
    for name in ("loss_empty_calibrated", "caption_gain", "loss_residual", "label_free"):
        score = next(attack.score for attack in ATTACKS if attack.name == name)
        np.testing.assert_array_equal(score(answers, aux)[0], score(answers, turned)[0])


def test_evidence_without_the_adapter_is_the_base_on_both_sides():
    answers = planted_answers(CANDIDATES, 1.0)
    base = answers.without_adapter()
    assert isinstance(base, Answers) and base.on is base.off is answers.off
