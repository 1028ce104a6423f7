"""Two LoRAs on one split: how much more or less one of them leaks, compared picture by picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from library.audit.attacks.attack_result import sides_of, test_groups
from library.audit.attacks.registry import PRIMARY
from library.audit.report.audit_result import AuditResult
from library.audit.statistics.intervals import Interval, paired_auc_difference

COMPARED = (PRIMARY, "loss_calibrated", "map_mlp")


@dataclass(frozen=True)
class Pair:
    """AUC of one LoRA minus that of another, same attack, same pictures, same noise."""

    attack: str
    against: str  # alias of the other
    difference: float
    interval: Interval  # 95 %: both sides of a bootstrap draw share the sample


def reference_of(result: AuditResult, together: Sequence[AuditResult]) -> AuditResult | None:
    """The LoRA to compare with: the first undefended one on the same split, else the first; None for itself."""
    here = [
        one
        for one in together
        if (one.candidates.pixels, one.candidates.sides) == (result.candidates.pixels, result.candidates.sides)
    ]
    chosen = next((one for one in here if one.defended is False), here[0] if here else None)
    return None if chosen is result else chosen


def paired_differences(result: AuditResult, together: Sequence[AuditResult], seed: int = 0) -> list[Pair]:
    """This LoRA's AUC minus its reference's, for the attacks that every table shows; empty for the reference."""
    other = reference_of(result, together)
    if other is None:
        return []
    pairs = []
    for attack in COMPARED:
        mine, theirs = (one.evaluation.scores.get(attack) for one in (result, other))
        if mine is not None and theirs is not None:
            difference, interval = paired_auc_difference(
                sides_of(mine, result.candidates, "test"),
                sides_of(theirs, result.candidates, "test"),
                *test_groups(result.candidates),
                seed,
            )
            pairs.append(Pair(attack, other.alias, difference, interval))
    return pairs
