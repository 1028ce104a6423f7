"""The audit's statistics: worked values, slow twins, null tests and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from sklearn import metrics

from library.audit.statistics.effective_sizes import EffectiveSizes, design_effect, effective_sizes
from library.audit.statistics.gain import beyond, gain_with_interval, gains, log_falls
from library.audit.statistics.intervals import (
    auc_interval,
    balanced_accuracy_interval,
    clopper_pearson,
    hanley_mcneil_error,
    least_detectable_auc,
    paired_auc_difference,
    rate_interval,
    share_interval,
)
from library.audit.statistics.metrics import (
    accuracy_threshold,
    auc,
    balanced_accuracy,
    chance_tpr,
    false_positive_threshold,
    flipped_auc,
    rates_above,
    roc_points,
    tpr_at_fpr,
)
from library.audit.statistics.permutation import dataset_level_p, p_text, permutation_test


def names(count: int, prefix: str = "image") -> list[str]:
    return [f"{prefix}{index}" for index in range(count)]


def test_auc_and_rates_agree_with_scikit_learn_on_tied_scores():
    generator = np.random.default_rng(20)
    members, non_members = generator.integers(3, 30, 90).astype(float), generator.integers(0, 27, 120).astype(float)
    labels, scores = np.repeat([1, 0], [90, 120]), np.concatenate([members, non_members])
    assert auc(members, non_members) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    false_rate, true_rate, _ = metrics.roc_curve(labels, scores, drop_intermediate=False)
    for fpr in (0.05, 0.1, 0.3):
        assert tpr_at_fpr(members, non_members, fpr) == pytest.approx(true_rate[false_rate <= fpr + 1e-12].max())
    for ours, theirs in zip(roc_points(members, non_members), (false_rate, true_rate), strict=True):
        np.testing.assert_allclose(ours, theirs)
    cut = accuracy_threshold(members, non_members)
    best = metrics.balanced_accuracy_score(labels, scores > cut)
    assert balanced_accuracy(members, non_members, cut) == pytest.approx(best)
    assert best == pytest.approx((true_rate - false_rate).max() / 2 + 0.5)


def test_auc_counts_ties_half():
    assert auc(np.array([2.0, 1.0]), np.array([1.0, 0.0])) == (1 + 1 + 0.5 + 1) / 4


def test_auc_agrees_with_its_slow_twin_on_tied_scores():
    generator = np.random.default_rng(0)
    members, non_members = generator.integers(0, 9, 40), generator.integers(0, 8, 31)
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(members, non_members)]
    assert auc(members, non_members) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_swapping_the_labels_mirrors_every_figure():
    generator = np.random.default_rng(1)
    members, non_members = generator.normal(1, 1, 50), generator.normal(0, 1, 50)
    assert auc(non_members, members) == pytest.approx(1 - auc(members, non_members))
    assert flipped_auc(non_members, members) == pytest.approx(flipped_auc(members, non_members))
    assert tpr_at_fpr(-members, -non_members, 0.1) < 0.1 < tpr_at_fpr(members, non_members, 0.1)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.29, 0.5])
def test_tpr_at_fpr_agrees_with_brute_force_and_ties_acquit(rate):
    generator = np.random.default_rng(2)
    members, non_members = generator.integers(0, 30, 100), generator.integers(0, 25, 100)
    reachable = [(members > cut).mean() for cut in np.arange(-1, 31) if (non_members > cut).sum() <= round(rate * 100)]
    assert tpr_at_fpr(members, non_members, rate) == max(reachable)


def test_constant_scores_accuse_nobody():
    assert tpr_at_fpr(np.ones(100), np.ones(100), 0.05) == 0
    assert auc(np.ones(100), np.ones(100)) == 0.5


def test_a_rate_the_sample_cannot_resolve_is_refused():
    with pytest.raises(ValueError, match="fpr=0.001 needs 1000 non-members, got 50"):
        tpr_at_fpr(np.zeros(50), np.zeros(50), 0.001)


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores of members are NaN"):
        auc(np.array([0.0, np.nan]), np.zeros(2))


def test_guessing_reaches_the_chance_tpr():
    generator = np.random.default_rng(3)
    reached = [tpr_at_fpr(generator.random(100), generator.random(100), 0.01) for _ in range(4000)]
    assert chance_tpr(100, 0.01) == pytest.approx(2 / 101)
    assert np.mean(reached) == pytest.approx(chance_tpr(100, 0.01), abs=0.001)


def test_the_roc_runs_from_corner_to_corner_and_its_area_is_the_auc():
    generator = np.random.default_rng(4)
    members, non_members = generator.integers(0, 12, 60), generator.integers(0, 9, 45)
    false_rate, true_rate = roc_points(members, non_members)
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(auc(members, non_members))


def test_the_threshold_of_best_accuracy_separates_what_can_be_separated():
    threshold = accuracy_threshold(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert threshold == 1.5
    assert balanced_accuracy(np.array([2.0, 3.0]), np.array([0.0, 1.0]), threshold) == 1


def test_a_false_positive_threshold_errs_on_the_safe_side():
    scores = np.arange(100.0)
    assert rates_above(scores, scores, false_positive_threshold(scores, 0.05))[1] == 0.04
    assert rates_above(scores, scores, false_positive_threshold(scores, 0.01))[1] == 0.0


def test_clopper_pearson_gives_the_published_values():
    assert clopper_pearson(2, 200) == pytest.approx((0.0012, 0.0357), abs=1e-4)
    assert clopper_pearson(0, 200) == pytest.approx((0, 0.0183), abs=1e-4)
    assert clopper_pearson(60, 200) == pytest.approx((0.237, 0.369), abs=1e-3)


@pytest.mark.parametrize(("area", "n", "width"), [(0.5, 100, 0.080), (0.8, 200, 0.043), (0.95, 50, 0.045)])
def test_hanley_mcneil_widths_match_the_table(area, n, width):
    assert 1.96 * hanley_mcneil_error(area, n, n) == pytest.approx(width, abs=1e-3)


def test_pictures_that_are_all_alike_in_their_group_count_once_and_independent_ones_fully():
    generator = np.random.default_rng(21)
    alike, groups = np.repeat(generator.normal(size=25), 4), [f"person{row // 4}" for row in range(100)]
    assert design_effect(alike, groups) == 4 == design_effect(np.ones(100), groups)
    apart = [design_effect(generator.normal(size=100), groups) for _ in range(200)]
    assert min(apart) == 1 and np.mean(apart) < 1.25
    assert design_effect(generator.normal(size=100), names(100)) == 1


def test_the_effective_size_agrees_with_its_slow_twin():
    """Clustered over plain variance of the placements, each from its definition."""
    generator = np.random.default_rng(22)
    shared = np.repeat(generator.normal(size=15), 4)
    members, non_members = shared + generator.normal(size=60), generator.normal(size=40)
    groups = [f"person{row // 4}" for row in range(60)]
    placed = [np.mean([(one > other) + 0.5 * (one == other) for other in non_members]) for one in members]
    rest = np.array(placed) - np.mean(placed)
    clustered = 15 / 14 * sum(rest[4 * group : 4 * group + 4].sum() ** 2 for group in range(15)) / 60**2
    found = effective_sizes(members, non_members, groups, names(40))
    assert found.members == pytest.approx(60 / (clustered / (rest.var(ddof=1) / 60)))
    assert found.non_members == 40 and found.groups == 15


def test_the_score_interval_solves_its_equation():
    """Both limits lie t standard errors from the AUC, the error taken at the limit (60 + 60 single pictures)."""
    generator = np.random.default_rng(23)
    members, non_members = generator.normal(1.5, 1, 60), generator.normal(0, 1, 60)
    area = auc(members, non_members)
    for limit in auc_interval(members, non_members, names(60), names(60)):
        assert abs(limit - area) == pytest.approx(2.0010 * hanley_mcneil_error(limit, 60, 60), rel=1e-3)  # t of 59


def test_a_share_in_single_pictures_gets_clopper_pearson_and_in_groups_a_wider_interval():
    inside = np.arange(100) < 30
    assert share_interval(inside, names(100)) == pytest.approx(clopper_pearson(30, 100))
    low, high = share_interval(inside, [f"person{row // 5}" for row in range(100)])  # whole groups inside or out
    worth = 20 * (1.98422 / 2.09302) ** 2  # t of 99 and of 19
    assert (low, high) == pytest.approx(clopper_pearson(0.3 * worth, worth), rel=1e-3)


def test_the_interval_of_a_rate_holds_both_errors():
    """200 + 200 scores, one in a hundred: the threshold lies between the 0th and the 5th highest non-member."""
    members, non_members = np.arange(200.0), np.arange(200.0) - 50
    rate = tpr_at_fpr(members, non_members, 0.01)
    assert rate == 52 / 200  # above 147
    low, high = rate_interval(members, non_members, (names(200), names(200, "other")), 0.01)
    exact = clopper_pearson(52, 200)
    assert low == 0  # the true threshold may lie above all 200
    assert high == pytest.approx(rate + math.hypot(exact[1] - rate, 56 / 200 - rate))  # or below 5: 56 from 144 up
    strict, _ = rate_interval(members, non_members, (names(200), names(200, "other")), 0.05)
    exact = clopper_pearson(60, 200)  # at least 4 non-members are above the true threshold: 53 members above 146
    assert strict == pytest.approx(0.3 - math.hypot(0.3 - exact[0], 0.3 - 53 / 200))


def test_balanced_accuracy_adds_the_distances_of_its_rates_in_squares():
    low, high = balanced_accuracy_interval(0.8, (0.7, 0.9), 0.2, (0.16, 0.28))
    assert low == pytest.approx(0.8 - math.hypot(0.1, 0.08) / 2) and high == pytest.approx(
        0.8 + math.hypot(0.1, 0.04) / 2
    )


def test_the_smallest_p_is_said_to_be_an_upper_limit():
    assert p_text(1 / 10_001) == "p <= 0.0001" and p_text(0.0002) == "p = 0.0002" and p_text(0.5) == "p = 0.5000"


def test_more_images_detect_a_smaller_leak():
    found = [least_detectable_auc(EffectiveSizes.of_single_pictures(n, n)) for n in (500, 100, 20)]
    assert found == sorted(found) and found[0] > 0.55 and found[-1] <= 1
    assert found[1] == pytest.approx(0.665, abs=0.01)  # docs/audit.md names it


@pytest.mark.parametrize(("shift", "truth"), [(0, 0.5), (1, 0.7602)])  # Phi(shift / sqrt(2))
def test_the_auc_interval_covers_the_truth_as_often_as_it_says(shift, truth):
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(400):
        low, high = auc_interval(generator.normal(shift, 1, 60), generator.normal(0, 1, 60), names(60), names(60))
        hits += low <= truth <= high
    assert 0.91 <= hits / 400 <= 0.98


def test_the_interval_of_grouped_images_is_wider_than_that_of_single_ones():
    generator = np.random.default_rng(6)
    members, non_members = np.repeat(generator.normal(0.5, 1, 20), 5), np.repeat(generator.normal(0, 1, 20), 5)
    groups = [f"person{index // 5}" for index in range(100)]
    grouped = auc_interval(members, non_members, groups, groups)
    single = auc_interval(members, non_members, names(100), names(100))
    assert grouped[1] - grouped[0] > 1.5 * (single[1] - single[0])


def test_a_perfect_auc_still_gets_an_honest_lower_bound():
    low, high = auc_interval(np.ones(30), np.zeros(30), names(30), names(30))
    assert high == 1 and low == pytest.approx(clopper_pearson(30, 30)[0])
    assert auc_interval(np.zeros(30), np.ones(30), names(30), names(30)) == pytest.approx((0, 1 - low))


def test_a_planted_leak_gives_auc_one_and_the_smallest_p():
    is_member = np.arange(60) < 30
    result = permutation_test(is_member.astype(float), is_member, names(60), np.random.default_rng(8), draws=999)
    assert result.aucs[0] == 1 and result.p_each[0] == pytest.approx(1 / 1000)


def test_random_scores_are_called_leaks_no_more_often_than_stated():
    generator = np.random.default_rng(9)
    is_member = np.arange(80) < 40
    groups = [f"family{index // 2}" for index in range(80)]
    alarms_each, alarms_max = 0, 0
    for _ in range(400):
        scores = np.repeat(generator.normal(size=(5, 40)), 2, axis=1)
        result = permutation_test(scores, is_member, groups, generator, draws=199)
        alarms_each += result.p_each[0] <= 0.05
        alarms_max += result.p_max <= 0.05
    assert alarms_each / 400 <= 0.05 + 0.025
    assert alarms_max / 400 <= 0.05 + 0.025


def test_the_permutation_test_agrees_with_dealing_labels_by_hand():
    scores, is_member = np.array([3.0, 1.0, 2.0, 0.0, 5.0]), np.array([True, False, True, False, False])
    result = permutation_test(scores, is_member, names(5), np.random.default_rng(10), draws=20_000)
    areas = []
    for chosen in itertools.combinations(range(5), 2):
        mask = np.isin(np.arange(5), chosen)
        areas.append(abs(auc(scores[mask], scores[~mask]) - 0.5))
    exact = np.mean(np.array(areas) >= abs(auc(scores[is_member], scores[~is_member]) - 0.5) - 1e-12)
    assert result.p_each[0] == pytest.approx(exact, abs=0.015)


def test_a_group_on_both_sides_is_refused():
    with pytest.raises(ValueError, match="1 groups hold members and non-members"):
        permutation_test(np.arange(4.0), np.array([1, 0, 1, 0], bool), ["a", "a", "b", "c"], np.random.default_rng(0))


def test_the_dataset_test_finds_a_portfolio_that_single_images_hide():
    generator = np.random.default_rng(11)
    is_member = np.arange(400) < 200
    scores = generator.normal(0.5 * is_member, 1)
    assert dataset_level_p(scores, is_member, names(400))[0] < 0.001
    assert dataset_level_p(-scores, is_member, names(400))[0] > 0.99


def test_the_paired_difference_of_a_model_with_itself_is_zero():
    generator = np.random.default_rng(12)
    pair = generator.normal(1, 1, 40), generator.normal(0, 1, 40)
    assert paired_auc_difference(pair, pair, names(40), names(40), seed=0) == (0.0, (0.0, 0.0))


def test_a_fall_is_the_mean_logarithm_over_timesteps() -> None:
    falls = log_falls(np.array([[0.5, 0.25]]), np.array([[1.0, 1.0]]))
    assert falls.tolist() == pytest.approx([math.log(8) / 2])
    assert log_falls(np.zeros((1, 1)), np.zeros((1, 1))).tolist() == [0.0]


def test_gains_of_both_sides_and_what_is_between_them() -> None:
    off = np.ones((6, 2))
    on = np.array([[0.8] * 2] * 3 + [[0.6] * 2] * 3)
    told = gains(on, off, np.arange(6) >= 3, [str(number) for number in range(6)])
    assert told["held_out_gain"] == pytest.approx(0.2) and told["held_out_pictures"] == 3
    assert told["held_out_gain_low"] == pytest.approx(0.2) == told["held_out_gain_high"]
    assert told["member_gain"] == pytest.approx(0.4) and told["learnt_by_heart"] == pytest.approx(0.2)
    assert told["member_pictures"] == 3 and told["learnt_by_heart_low"] == pytest.approx(0.2)


def test_what_is_by_heart_has_an_interval_of_both_sides_errors() -> None:
    assert beyond((0.5, 0.44, 0.55), (0.3, 0.25, 0.38)) == pytest.approx((0.2, 0.2 - 0.1, 0.2 + 0.0707107))


@pytest.mark.slow
def test_the_intervals_of_both_gains_cover_the_truth() -> None:
    """30 groups of 2 on each side, alike within a group; members gain more."""
    generator, hits = np.random.default_rng(8), np.zeros(2)
    is_member, names = np.repeat([True, False], 60), [str(place // 2) for place in range(120)]
    truth = 1 - math.exp(-0.3), math.exp(-0.3) - math.exp(-0.5)
    for _ in range(1000):
        falls = np.where(is_member, 0.5, 0.3) + np.repeat(generator.normal(size=60), 2) * 0.2
        falls += generator.normal(size=120) * 0.1
        told = gains(np.exp(-falls)[:, None], np.ones((120, 1)), is_member, names)
        for place, name in enumerate(("held_out_gain", "learnt_by_heart")):
            hits[place] += told[f"{name}_low"] <= truth[place] <= told[f"{name}_high"]
    assert ((hits >= 930) & (hits <= 970)).all(), hits


def test_one_group_gives_no_interval() -> None:
    assert gain_with_interval(np.array([0.1, 0.3]), ["a", "a"])[1:] == (float("-inf"), 1.0)


@pytest.mark.parametrize("size", [1, 4])
def test_the_interval_covers_with_and_without_groups(size: int) -> None:
    """Groups whose pictures share most of their fall: 95 of 100 intervals hold the truth, within luck."""
    chance = np.random.default_rng(size)
    groups = [str(number // size) for number in range(40 * size)]
    held = 0
    for _ in range(300):
        shared = np.repeat(chance.normal(0.2, 0.1, 40), size)
        _, low, high = gain_with_interval(shared + chance.normal(0, 0.05, 40 * size), groups)
        held += low <= 1 - math.exp(-0.2) <= high
    assert 270 <= held <= 297
