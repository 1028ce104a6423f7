"""From scores to figures with their uncertainty: one finding per attack, measured once on the test sides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from library.audit.statistics.intervals import Interval, auc_interval, clopper_pearson, statistic_interval
from library.audit.statistics.metrics import (
    accuracy_threshold,
    allowed_false_positives,
    auc,
    balanced_accuracy,
    chance_tpr,
    false_positive_threshold,
    flipped_auc,
    rates_above,
    tpr_at_fpr,
)
from library.audit.statistics.permutation import permutation_test
from library.audit.targets.candidate_table import Candidates, FloatArray
from library.seeding import stream_seed

RATES = (0.05, 0.01, 0.001)


@dataclass(frozen=True)
class LowRate:
    """True-positive rate at one false-positive rate, threshold on the test sides."""

    fpr: float
    needed: int  # non-members that resolve the rate
    tpr: float | None  # None where the sample cannot resolve it
    interval: Interval | None
    chance: float | None  # what guessing reaches
    tpr_inverted: float | None  # the other tail: lowest scores accused


@dataclass(frozen=True)
class Transfer:
    """What a threshold fixed on the aux sides does on the test sides."""

    target_fpr: float
    threshold: float
    fpr: float
    fpr_interval: Interval
    tpr: float
    tpr_interval: Interval
    balanced_accuracy: float  # at the aux threshold of best accuracy
    balanced_accuracy_interval: Interval


@dataclass(frozen=True)
class Finding:
    """One attack's figures on the test sides."""

    name: str
    chosen: str  # on the aux sides
    members: int
    non_members: int
    auc: float
    auc_interval: Interval
    auc_flipped: float
    auc_aux: float | None  # None where aux pictures were not asked
    low_rates: Sequence[LowRate]
    transfer: Transfer | None
    p: float  # exact permutation, two-sided
    auc_off: float | None  # the same attack on the base; None for controls
    auc_off_interval: Interval | None


def sides_of(scores: FloatArray, candidates: Candidates, kind: str) -> tuple[FloatArray, FloatArray]:
    """(members, non-members) of the "aux" or "test" sides."""
    return scores[candidates.indices(f"members-{kind}")], scores[candidates.indices(f"non-members-{kind}")]


def test_groups(candidates: Candidates) -> tuple[list[str], list[str]]:
    """Groups of the two test sides."""
    members, non_members = candidates.indices("members-test"), candidates.indices("non-members-test")
    return [candidates.groups[int(row)] for row in members], [candidates.groups[int(row)] for row in non_members]


def low_rate(
    members: FloatArray, non_members: FloatArray, groups: tuple[list[str], list[str]], fpr: float, seed: int
) -> LowRate:
    """TPR at one FPR; Clopper-Pearson below five false positives, else a bootstrap that draws the threshold anew."""
    needed = int(np.ceil(1 / fpr - 1e-9))
    if len(non_members) < needed:
        return LowRate(fpr, needed, None, None, None, None)
    rate = tpr_at_fpr(members, non_members, fpr)
    if allowed_false_positives(len(non_members), fpr) < 5:
        interval = clopper_pearson(round(rate * len(members)), len(members))
    else:
        generator = np.random.default_rng(seed)
        interval = statistic_interval(
            members, non_members, *groups, lambda inside, outside: tpr_at_fpr(inside, outside, fpr), generator
        )
    inverted = tpr_at_fpr(-members, -non_members, fpr)
    return LowRate(fpr, needed, rate, interval, chance_tpr(len(non_members), fpr), inverted)


def transferred(
    aux: tuple[FloatArray, FloatArray],
    test: tuple[FloatArray, FloatArray],
    groups: tuple[list[str], list[str]],
    target_fpr: float,
    seed: int,
) -> Transfer:
    """Fix both thresholds on the aux sides and read their rates on the test sides.

    Raises:
        ValueError: too few aux non-members for the target rate, with the number that is needed.
    """
    threshold = false_positive_threshold(aux[1], target_fpr)
    true_rate, false_rate = rates_above(*test, threshold)
    cut = accuracy_threshold(*aux)
    generator = np.random.default_rng(seed)
    interval = statistic_interval(
        *test, *groups, lambda inside, outside: balanced_accuracy(inside, outside, cut), generator
    )
    return Transfer(
        target_fpr,
        threshold,
        false_rate,
        clopper_pearson(round(false_rate * len(test[1])), len(test[1])),
        true_rate,
        clopper_pearson(round(true_rate * len(test[0])), len(test[0])),
        balanced_accuracy(*test, cut),
        interval,
    )


def finding(
    name: str,
    chosen: str,
    scores: FloatArray,
    off: FloatArray | None,
    candidates: Candidates,
    target_fpr: float,
    seed: int,
) -> Finding:
    """All figures of one attack. ``off``: its scores with the base in the adapter's place."""
    aux, test = sides_of(scores, candidates, "aux"), sides_of(scores, candidates, "test")
    groups = test_groups(candidates)
    draw = stream_seed(seed, "bootstrap", name)
    area = auc(*test)
    without = None if off is None else sides_of(off, candidates, "test")
    rows = np.flatnonzero(candidates.is_test)
    luck = permutation_test(
        scores[rows], candidates.is_member[rows], [candidates.groups[int(row)] for row in rows],
        np.random.default_rng(stream_seed(seed, "permutation")),
    )  # fmt: skip
    return Finding(
        name=name,
        chosen=chosen,
        members=len(test[0]),
        non_members=len(test[1]),
        auc=area,
        auc_interval=auc_interval(*test, *groups, np.random.default_rng(draw)),
        auc_flipped=flipped_auc(*test),
        auc_aux=auc(*aux),
        low_rates=[low_rate(*test, groups, rate, draw) for rate in RATES],
        transfer=transferred(aux, test, groups, target_fpr, draw),
        p=float(luck.p_each[0]),
        auc_off=None if without is None else auc(*without),
        auc_off_interval=None if without is None else auc_interval(*without, *groups, np.random.default_rng(draw)),
    )


def plain_finding(
    name: str, chosen: str, scores: FloatArray, off: FloatArray, candidates: Candidates, seed: int
) -> Finding:
    """Figures of an attack that asked about test pictures only: no threshold, no choice."""
    test, groups = sides_of(scores, candidates, "test"), test_groups(candidates)
    without = sides_of(off, candidates, "test")
    draw = stream_seed(seed, "bootstrap", name)
    luck = permutation_test(
        scores, candidates.is_member, candidates.groups, np.random.default_rng(stream_seed(seed, "permutation"))
    )
    area = auc(*test)
    return Finding(
        name=name,
        chosen=chosen,
        members=len(test[0]),
        non_members=len(test[1]),
        auc=area,
        auc_interval=auc_interval(*test, *groups, np.random.default_rng(draw)),
        auc_flipped=flipped_auc(*test),
        auc_aux=None,
        low_rates=[low_rate(*test, groups, rate, draw) for rate in RATES],
        transfer=None,
        p=float(luck.p_each[0]),
        auc_off=auc(*without),
        auc_off_interval=auc_interval(*without, *groups, np.random.default_rng(draw)),
    )


def joint_p(scores: Mapping[str, FloatArray], candidates: Candidates, seed: int) -> tuple[float, str]:
    """p of the largest deviation among several rows of scores, and whose it is."""
    rows = np.flatnonzero(candidates.is_test)
    stacked = np.stack([row[rows] for row in scores.values()])
    luck = permutation_test(
        stacked, candidates.is_member[rows], [candidates.groups[int(row)] for row in rows],
        np.random.default_rng(stream_seed(seed, "permutation")),
    )  # fmt: skip
    return luck.p_max, list(scores)[int(np.argmax(np.abs(luck.aucs - 0.5)))]
