"""Scores in, findings out: the figures of one attack on any model, each with its uncertainty."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from library.audit.statistics.effective_sizes import EffectiveSizes, effective_sizes
from library.audit.statistics.intervals import (
    Interval,
    auc_interval,
    balanced_accuracy_interval,
    least_detectable_auc,
    rate_interval,
    share_interval,
)
from library.audit.statistics.metrics import (
    Scores,
    accuracy_threshold,
    auc,
    balanced_accuracy,
    chance_tpr,
    checked,
    false_positive_threshold,
    flipped_auc,
    non_members_needed,
    rates_above,
    tpr_at_fpr,
)
from library.audit.statistics.one_run_epsilon import OneRunBound, one_run_bounds
from library.audit.statistics.permutation import permutation_test
from library.seeding import numpy_stream

RATES = (0.05, 0.01, 0.001)
SIDES = ("members", "non-members")

Sides = tuple[Scores, Scores]  # members [M], non-members [N]
Groups = tuple[Sequence[str], Sequence[str]]  # one name for each picture of both sides


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
    effective: EffectiveSizes  # how many independent pictures the sides are worth


@dataclass(frozen=True)
class ScoreSettings:
    """What is asked of the scores."""

    name: str = "scores"  # of the attack
    chosen: str = ""  # what the attack chose on other pictures
    rates: Sequence[float] = RATES  # false-positive rates
    target_fpr: float = 0.05  # false-positive rate of the threshold from the aux scores
    one_run: bool = False  # also a lower bound on epsilon; valid where a fair coin put each group in or out
    delta: float = 1e-5  # of that bound
    seed: int = 0


@dataclass(frozen=True)
class ExaminedScores:
    """All that ``examine_scores`` says."""

    finding: Finding
    least_detectable_auc: float  # a smaller leak would mostly go unseen in a sample of this size
    epsilon: Sequence[OneRunBound]  # one line for each number of guesses; empty where it was not asked for

    def as_dict(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``: the finding's figures, and the two others beside them."""
        bounds = [asdict(bound) for bound in self.epsilon]
        return asdict(self.finding) | {
            "least_detectable_auc": self.least_detectable_auc,
            "epsilon_lower_bounds": bounds,
        }


def examine_scores(
    members: ArrayLike,
    non_members: ArrayLike,
    groups: Groups | None = None,
    *,
    aux: tuple[ArrayLike, ArrayLike] | None = None,
    off: tuple[ArrayLike, ArrayLike] | None = None,
    settings: ScoreSettings | None = None,
) -> ExaminedScores:
    """Examine the scores of one attack on any model; higher = more likely a member.

    Args:
        members: [M] scores of what was trained on.
        non_members: [N] scores of what was not, from the same source.
        groups: names for both sides. Pictures of one name (of one person, say) are drawn and dealt out together;
            without names every picture stands for itself.
        aux: scores of other members and non-members, which a threshold is fixed on before it is tried here.
        off: scores of the same pictures when the attack asks the model without its adapter: they must be at chance.
        settings: rates, seed, and whether a one-run epsilon is asked for.

    Raises:
        ValueError: scores that are too few or NaN, names that do not fit the scores, a group on both sides, or too few
            aux non-members for the target rate; each with the number.
    """
    wanted = settings or ScoreSettings()
    test = checked(np.asarray(members), np.asarray(non_members))
    named = _checked_groups(test, _own_groups(test) if groups is None else groups)
    other = None if aux is None else _checked_aux(aux, wanted.target_fpr)
    without = None if off is None else _checked_off(test, off)
    is_member = np.repeat([True, False], [len(side) for side in test])
    everybody = [*named[0], *named[1]]
    luck = permutation_test(np.concatenate(test), is_member, everybody, numpy_stream(wanted.seed, "permutation"))
    finding = Finding(
        name=wanted.name,
        chosen=wanted.chosen,
        members=len(test[0]),
        non_members=len(test[1]),
        auc=auc(*test),
        auc_interval=auc_interval(*test, *named),
        auc_flipped=flipped_auc(*test),
        auc_aux=None if other is None else auc(*other),
        low_rates=[low_rate(test, named, rate) for rate in wanted.rates],
        transfer=None if other is None else transferred(other, test, named, wanted.target_fpr),
        p=float(luck.p_each[0]),
        auc_off=None if without is None else auc(*without),
        auc_off_interval=None if without is None else auc_interval(*without, *named),
        effective=effective_sizes(*test, *named),
    )
    epsilon = one_run_bounds(np.concatenate(test), is_member, everybody, delta=wanted.delta) if wanted.one_run else []
    return ExaminedScores(finding, least_detectable_auc(finding.effective), epsilon)


def _own_groups(test: Sides) -> Groups:
    """Every picture in a group of its own."""
    members, non_members = (
        [f"{side} {row}" for row in range(len(rows))] for side, rows in zip(SIDES, test, strict=True)
    )
    return members, non_members


def _checked_groups(test: Sides, groups: Groups) -> Groups:
    if len(groups) != 2 or isinstance(groups[0], str):
        raise ValueError(f"groups must be two lists of names, one for {SIDES[0]} and one for {SIDES[1]}")
    for side, names, rows in zip(SIDES, groups, test, strict=True):
        if len(names) != len(rows):
            raise ValueError(f"groups has {len(names)} names of {side}, but there are {len(rows)} scores")
        if len(rows) < 2:
            raise ValueError(f"2 scores of {side} are needed to test anything, got {len(rows)}")
    both = set(groups[0]) & set(groups[1])
    if both:
        raise ValueError(f"{len(both)} groups hold members and non-members, e.g. {min(both, key=str)!r}")
    return groups


def _checked_aux(aux: tuple[ArrayLike, ArrayLike], target_fpr: float) -> Sides:
    sides, needed = checked(np.asarray(aux[0]), np.asarray(aux[1])), non_members_needed(target_fpr)
    if len(sides[1]) < needed:
        raise ValueError(f"target_fpr={target_fpr:g} needs {needed} non-members in aux, got {len(sides[1])}")
    return sides


def _checked_off(test: Sides, off: tuple[ArrayLike, ArrayLike]) -> Sides:
    without = checked(np.asarray(off[0]), np.asarray(off[1]))
    for side, rows, expected in zip(SIDES, without, test, strict=True):
        if len(rows) != len(expected):
            raise ValueError(f"off has {len(rows)} scores of {side}, but there are {len(expected)} with the adapter")
    return without


def low_rate(test: Sides, groups: Groups, fpr: float) -> LowRate:
    """TPR at one FPR; the threshold is an order statistic of the test non-members, and the interval pays for that."""
    members, non_members = test
    needed = non_members_needed(fpr)
    if len(non_members) < needed:
        return LowRate(fpr, needed, None, None, None, None)
    rate, inverted = tpr_at_fpr(members, non_members, fpr), tpr_at_fpr(-members, -non_members, fpr)
    interval = rate_interval(members, non_members, groups, fpr)
    return LowRate(fpr, needed, rate, interval, chance_tpr(len(non_members), fpr), inverted)


def transferred(aux: Sides, test: Sides, groups: Groups, target_fpr: float) -> Transfer:
    """Fix both thresholds on the aux sides and read their rates on the test sides.

    Raises:
        ValueError: too few aux non-members for the target rate, with the number that is needed.
    """
    threshold, cut = false_positive_threshold(aux[1], target_fpr), accuracy_threshold(*aux)
    true_rate, false_rate = rates_above(*test, threshold)
    at_cut = rates_above(*test, cut)
    found, accused = (share_interval(side > cut, names) for side, names in zip(test, groups, strict=True))
    return Transfer(
        target_fpr,
        threshold,
        false_rate,
        share_interval(test[1] > threshold, groups[1]),
        true_rate,
        share_interval(test[0] > threshold, groups[0]),
        balanced_accuracy(*test, cut),
        balanced_accuracy_interval(at_cut[0], found, at_cut[1], accused),
    )
