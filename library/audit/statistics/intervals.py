"""Intervals of a figure: Clopper-Pearson, bootstrap over groups, Hanley-McNeil; and the least detectable AUC."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from library.audit.statistics.metrics import Scores, auc, checked
from library.audit.statistics.working_attack import BAR

Interval = tuple[float, float]


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Exact two-sided interval of a share (beta quantiles)."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes must lie between 0 and trials, got {successes} of {trials} trials")
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def hanley_mcneil_error(area: float, members: int, non_members: int) -> float:
    """Standard error of an AUC from M members and N non-members (Hanley and McNeil 1982)."""
    first, second = area / (2 - area), 2 * area * area / (1 + area)
    variance = area * (1 - area) + (members - 1) * (first - area**2) + (non_members - 1) * (second - area**2)
    return math.sqrt(max(variance, 0.0) / (members * non_members))


def hanley_mcneil_half_width(area: float, members: int, non_members: int, level: float = 0.95) -> float:
    """Half the width of the normal interval of an AUC: the smallest effect that n images resolve."""
    return float(stats.norm.ppf((1 + level) / 2)) * hanley_mcneil_error(area, members, non_members)


def least_detectable_auc(members: int, non_members: int, bar: float = BAR, power: float = 0.8) -> float:
    """Smallest AUC whose 95 % interval clears ``bar`` in ``power`` of audits of this size; 1 where none does."""
    reach = float(stats.norm.ppf(0.975) + stats.norm.ppf(power))
    for area in np.arange(bar, 1.0, 0.001):
        if area - reach * hanley_mcneil_error(float(area), members, non_members) >= bar:
            return round(float(area), 3)
    return 1.0


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


def auc_interval(
    members: Scores,
    non_members: Scores,
    member_groups: Sequence[str],
    non_member_groups: Sequence[str],
    generator: np.random.Generator,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of the AUC over groups; a perfect AUC gets the exact bound of the smaller side's groups."""
    sample = bootstrap_aucs(members, non_members, member_groups, non_member_groups, draws, generator)
    low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
    area = auc(members, non_members)
    if area in (0.0, 1.0):  # every resample is perfect too, which says nothing about the next image
        smaller = min(len(set(member_groups)), len(set(non_member_groups)))
        bound = clopper_pearson(smaller, smaller, level)[0]
        return (bound, 1.0) if area == 1.0 else (0.0, 1 - bound)
    return float(low), float(high)


def statistic_interval(
    sides: tuple[Scores, Scores],
    groups: tuple[Sequence[str], Sequence[str]],
    statistic: Callable[[Scores, Scores], float],
    generator: np.random.Generator,
    draws: int = 500,
    level: float = 0.95,
) -> Interval:
    """Percentile interval over groups of any ``statistic(members, non_members)``, thresholds drawn anew each time."""
    members, non_members = checked(*sides)
    weights = [group_draws(names, draws, generator).astype(int) for names in groups]
    sample = [
        statistic(np.repeat(members, inside), np.repeat(non_members, outside))
        for inside, outside in zip(*weights, strict=True)
    ]
    low, high = np.quantile(sample, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
