"""Two LoRAs on one split: how much less, or more, one of them leaks, picture by picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from library.audit.battery import PRIMARY
from library.audit.findings import sides_of, test_groups
from library.audit.intervals import Interval, paired_auc_difference
from library.audit.outcome import Outcome

COMPARED = (PRIMARY, "loss_calibrated", "map_mlp")


@dataclass(frozen=True)
class Pair:
    """AUC of one LoRA minus that of another, same attack, same pictures, same noise."""

    attack: str
    against: str  # alias of the other
    difference: float
    interval: Interval  # 95 %: both sides of a bootstrap draw share the sample


def reference_of(outcome: Outcome, together: Sequence[Outcome]) -> Outcome | None:
    """The LoRA that this one is compared with: the first undefended one on its split, else the first; never itself."""
    here = [one for one in together if (one.candidates.pixels, one.candidates.sides)
            == (outcome.candidates.pixels, outcome.candidates.sides)]  # fmt: skip
    chosen = next((one for one in here if one.defended is False), here[0] if here else None)
    return None if chosen is outcome else chosen


def paired_differences(outcome: Outcome, together: Sequence[Outcome], seed: int = 0) -> list[Pair]:
    """This LoRA's AUC minus its reference's, for the attacks that every table shows; empty for the reference."""
    other = reference_of(outcome, together)
    if other is None:
        return []
    pairs = []
    for attack in COMPARED:
        mine, theirs = (one.examination.scores.get(attack) for one in (outcome, other))
        if mine is not None and theirs is not None:
            difference, interval = paired_auc_difference(
                sides_of(mine, outcome.candidates, "test"),
                sides_of(theirs, outcome.candidates, "test"),
                *test_groups(outcome.candidates),
                seed,
            )
            pairs.append(Pair(attack, other.alias, difference, interval))
    return pairs
