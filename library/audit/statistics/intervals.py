"""Intervals of a figure: of an AUC, of a share, of a rate at an estimated threshold; and the least detectable AUC."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from library.audit.statistics.effective_sizes import (
    EffectiveSizes,
    design_effect,
    effective_sizes,
)
from library.audit.statistics.metrics import Scores, allowed_false_positives, auc, checked
from library.audit.statistics.working_attack import BAR, LEAK_P

Interval = tuple[float, float]


def clopper_pearson(successes: float, trials: float, level: float = 0.95) -> Interval:
    """Exact two-sided interval of a share (beta quantiles); effective numbers need not be whole."""
    if not 0 <= successes <= trials or trials <= 0:
        raise ValueError(f"successes must lie between 0 and trials, got {successes} of {trials} trials")
    tail = (1 - level) / 2
    low = 0.0 if successes <= 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes >= trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def share_interval(inside: NDArray[np.bool_], groups: Sequence[str], level: float = 0.95) -> Interval:
    """Clopper-Pearson at the effective size, which also pays for the few groups it was judged by.

    Korn and Graubard 1998: n / deff * (t(n - 1) / t(G - 1))^2. Without groups it is Clopper-Pearson.
    """
    inside = np.asarray(inside, dtype=bool)
    count, kinds = len(inside), len(set(groups))
    worth = count / design_effect(inside.astype(np.float64), groups)
    if kinds < count:
        worth *= (_quantile(count, level) / _quantile(kinds, level)) ** 2
    share = float(inside.mean())
    return clopper_pearson(share * worth, worth, level)


def _quantile(groups: int, level: float = 0.95) -> float:
    """Of Student's t with one degree of freedom fewer than groups."""
    return float(stats.t.ppf((1 + level) / 2, max(groups - 1, 1)))


def hanley_mcneil_error(area: float, members: float, non_members: float) -> float:
    """Standard error of an AUC (Hanley and McNeil 1982), the two sides' terms averaged (Newcombe 2006, method 5)."""
    others = (members + non_members) / 2 - 1
    spread = 1 + others * (1 - area) / (2 - area) + others * area / (1 + area)
    return math.sqrt(max(area * (1 - area) * spread, 0.0) / (members * non_members))


def luck_half_width(sizes: EffectiveSizes, level: float = 0.95) -> float:
    """How far luck alone moves an AUC from 0.5."""
    return _quantile(sizes.groups, level) * hanley_mcneil_error(0.5, sizes.members, sizes.non_members)


def least_detectable_auc(sizes: EffectiveSizes, bar: float = BAR, power: float = 0.8) -> float:
    """Smallest AUC that is called a leak in ``power`` of audits of this size; 1 where none is.

    An AUC A is called one where its score interval clears ``bar`` and its p is below ``LEAK_P``: both are bounds on A
    that hold whatever the truth is, and A must pass the higher one.
    """

    def error(area: float) -> float:
        return hanley_mcneil_error(area, sizes.members, sizes.non_members)

    passed = max(bar + _quantile(sizes.groups) * error(bar), 0.5 + float(stats.norm.ppf(1 - LEAK_P / 2)) * error(0.5))
    reach = float(stats.norm.ppf(power))
    for area in np.arange(bar, 1.0, 0.001):
        if area - reach * error(float(area)) >= passed:
            return round(float(area), 3)
    return 1.0


def auc_interval(
    members: Scores,
    non_members: Scores,
    member_groups: Sequence[str],
    non_member_groups: Sequence[str],
    level: float = 0.95,
) -> Interval:
    """Score interval: every theta with |theta - AUC| <= t sqrt(V(theta)) (Newcombe 2006, method 5).

    V is Hanley and McNeil's at the effective sizes, t has one degree fewer than the fewer groups. A perfect AUC gets
    at least the exact bound of those groups.
    """
    area = auc(members, non_members)
    sizes = effective_sizes(members, non_members, member_groups, non_member_groups)
    quantile = _quantile(sizes.groups, level)

    def excess(theta: float) -> float:
        return abs(theta - area) - quantile * hanley_mcneil_error(theta, sizes.members, sizes.non_members)

    low = 0.0 if area <= 0 or excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, area - 1e-12))
    high = 1.0 if area >= 1 or excess(1.0) <= 0 else float(optimize.brentq(excess, area + 1e-12, 1.0))
    exact = clopper_pearson(sizes.groups, sizes.groups, level)[0]
    if area == 1:
        return min(low, exact), 1.0
    return (0.0, max(high, 1 - exact)) if area == 0 else (low, high)


def square_and_add(value: float, parts: Sequence[Interval], weights: Sequence[float]) -> Interval:
    """Interval of a weighted sum of independent shares, or of one figure with several sources of error (MOVER).

    Newcombe 1998, method 10: the distances of the parts' limits from their values add up in squares.

    Args:
        value: the sum itself.
        parts: how far each part may lie below and above its value, both at least 0.
    """
    below, above = (
        math.hypot(*(weight * distance[end] for weight, distance in zip(weights, parts, strict=True))) for end in (0, 1)
    )
    return max(value - below, 0.0), min(value + above, 1.0)


def balanced_accuracy_interval(true_rate: float, found: Interval, false_rate: float, accused: Interval) -> Interval:
    """Of half the true-positive plus half the true-negative rate at a fixed threshold, from the rates' intervals."""
    reach = (true_rate - found[0], found[1] - true_rate), (accused[1] - false_rate, false_rate - accused[0])
    return square_and_add((true_rate + 1 - false_rate) / 2, reach, (0.5, 0.5))


def rate_interval(
    members: Scores, non_members: Scores, groups: tuple[Sequence[str], Sequence[str]], fpr: float
) -> Interval:
    """Of the true-positive rate at a false-positive rate whose threshold is an order statistic of the same non-members.

    Two errors, squared and added: where the threshold lies (the share of the true threshold's false positives is
    binomial at the effective size, so it lies between two order statistics), and the share of members above it.
    """
    members, non_members = checked(members, non_members)
    ordered, count = np.sort(non_members)[::-1], len(non_members)
    worth = max(math.floor(effective_sizes(members, non_members, *groups).non_members + 1e-9), 1)
    few, many = (float(stats.binom.ppf(tail, worth, fpr)) * count / worth for tail in (0.025, 0.975))
    allowed = allowed_false_positives(count, fpr)
    accused = members > (ordered[allowed] if allowed < count else -np.inf)
    strict, lax = math.floor(few + 1e-9), math.ceil(many - 1e-9)
    least = 0.0 if strict == 0 else float((members > ordered[strict - 1]).mean())
    most = 1.0 if lax >= count else float((members >= ordered[lax]).mean())
    rate, exact = float(accused.mean()), share_interval(accused, groups[0])
    parts = [(rate - exact[0], exact[1] - rate), (max(rate - least, 0.0), max(most - rate, 0.0))]
    return square_and_add(rate, parts, (1.0, 1.0))


def group_draws(groups: Sequence[str], draws: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """[draws, n] how often each image is in each bootstrap sample; whole groups are drawn together."""
    _, position = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(position.max()) + 1
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, position].astype(np.float64)


def bootstrap_aucs(
    members: Scores,
    non_members: Scores,
    member_groups: Sequence[str],
    non_member_groups: Sequence[str],
    draws: int,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """[draws] AUC of samples drawn with replacement, by group, members and non-members apart."""
    members, non_members = checked(members, non_members)
    higher = (members[:, None] > non_members).astype(np.float64)  # [M, N]
    higher += 0.5 * (members[:, None] == non_members)
    member_weights = group_draws(member_groups, draws, generator)  # [draws, M]
    non_member_weights = group_draws(non_member_groups, draws, generator)  # [draws, N]
    won = ((member_weights @ higher) * non_member_weights).sum(1)
    return won / (member_weights.sum(1) * non_member_weights.sum(1))


def paired_auc_difference(
    first: tuple[Scores, Scores],
    second: tuple[Scores, Scores],
    member_groups: Sequence[str],
    non_member_groups: Sequence[str],
    seed: int,
    draws: int = 2000,
) -> tuple[float, Interval]:
    """AUC(first) - AUC(second) on the same images with its 95 % interval: both sides of a draw share the sample."""
    # One seed for both. It is not a stream of library.seeding: that would change the figures of earlier reports
    samples = [
        bootstrap_aucs(*pair, member_groups, non_member_groups, draws, np.random.default_rng(seed))
        for pair in (first, second)
    ]
    low, high = np.quantile(samples[0] - samples[1], [0.025, 0.975])
    return auc(*first) - auc(*second), (float(low), float(high))
