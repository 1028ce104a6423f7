"""What was found at each rank and size: rises and damages with intervals, differences, and checks of the attack."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.audit.queries.answer_cache import AnswerArrays
from library.audit.robustness.questions import DAMAGES
from library.audit.statistics.gain import mean_with_interval

Array = NDArray[np.float64]
KINDS = ("loss", "text")  # what a variant's own gradients attack
FLOOR = 1e-12
SAME = 1e-6  # relative; a smaller difference of two losses is rounding


@dataclass(frozen=True)
class Estimate:
    """A mean over pictures and its 95 % interval (t over the means of whole groups)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RobustnessFinding:
    """One attack of one size on one variant of the model."""

    variant: str  # base, full, rank 4
    side: str  # all, members-test, non-members-test
    attack: str  # loss, text: own gradients; transfer: found on the base; after; damage_by_loss and the others
    size: float
    pictures: int
    groups: int
    # loss, text, transfer: relative rise of the loss (geometric mean); after: the loss itself under the attack "loss";
    # damages: what drawings move by, pixels in 0..1
    value: Estimate
    of_noise: Estimate | None  # the same by a change of that size without an aim
    on_fresh_noise: Estimate | None  # the rise under noise that the attack did not see
    against_full: Estimate | None  # ratio to the whole LoRA on the same pictures, below 1: sturdier; None for it


@dataclass(frozen=True)
class MaskingCheck:
    """Whether an attack behaves as one that sees the true gradient; each share must be near 1."""

    variant: str
    attack: str
    beats_one_step: float  # share of pictures where many steps are at least as strong as one
    beats_noise: float  # ... and stronger than a change without an aim
    grows_with_size: float  # share of pictures and neighbouring sizes where the larger one is at least as strong
    beats_transfer: float | None  # ... and at least as strong as the change that was found on the base
    margin_over_transfer: Estimate | None  # ratio of the losses, at the largest size


@dataclass(frozen=True)
class CodeFinding:
    """The VAE's code attacked at one size: the same for every variant, since no LoRA is in it."""

    size: float
    distance: Estimate  # root mean square of the difference over that of the code
    of_noise: Estimate  # the same by a change of that size without an aim
    beats_one_step: float  # shares of pictures
    beats_noise: float


@dataclass(frozen=True)
class AuditedPictures:
    """Who was asked, in the order of the arrays."""

    sides: Sequence[str]
    groups: Sequence[str]

    def rows(self, side: str) -> NDArray[np.intp]:
        """Positions of a side; of "all" everybody."""
        return np.flatnonzero([side in ("all", one) for one in self.sides])


def estimate(values: Array, groups: Sequence[str]) -> Estimate:
    """Of a mean."""
    return Estimate(*mean_with_interval(values, groups))


def ratio(logs: Array, groups: Sequence[str], less: float = 0.0) -> Estimate:
    """Geometric mean of ratios from their logarithms, minus a number: 1 makes a ratio of losses a rise."""
    return Estimate(*(math.exp(min(value, 700.0)) - less for value in mean_with_interval(logs, groups)))


def log_of(values: NDArray[np.floating]) -> Array:
    """Natural logarithms of numbers that may be 0."""
    return np.asarray(np.log(np.maximum(values.astype(np.float64), FLOOR)))


def log_rise(answers: AnswerArrays, name: str, fresh: bool = False) -> Array:
    """[n, E] log of the loss over that of the picture as it is, under the same noise."""
    return log_of(answers[name]) - log_of(answers["clean"][:, [1 if fresh else 0]])


def findings_of(
    answers: Mapping[str, AnswerArrays], pictures: AuditedPictures, sizes: Sequence[float]
) -> list[RobustnessFinding]:
    """Every attack, size, variant and side.

    Args:
        answers: of ``Questions.of_variant`` by the variant's name; "full" is among them.
    """
    found = []
    for variant, here in answers.items():
        for side in ("all", *sorted(set(pictures.sides))):
            rows = pictures.rows(side)
            groups = [pictures.groups[row] for row in rows.tolist()]
            against = None if variant == "full" else answers["full"]
            for place, size in enumerate(sizes):
                facts = (variant, side, size, groups)
                found += [_rise(here, against, rows, place, facts, kind) for kind in (*KINDS, "transfer")]
                found.append(_after(here, against, rows, place, facts))
                found += [_damage(here, against, rows, place, facts, column) for column in range(len(DAMAGES))]
    return found


def _rise(
    here: AnswerArrays,
    full: AnswerArrays | None,
    rows: NDArray[np.intp],
    place: int,
    facts: tuple[str, str, float, list[str]],
    kind: str,
) -> RobustnessFinding:
    variant, side, size, groups = facts
    own = kind in KINDS
    logs = log_rise(here, kind)[rows, place]
    return RobustnessFinding(
        variant,
        side,
        kind,
        size,
        len(rows),
        len(set(groups)),
        ratio(logs, groups, 1.0),
        ratio(log_rise(here, f"{kind}_noise")[rows, place], groups, 1.0) if own else None,
        ratio(log_rise(here, f"{kind}_fresh", fresh=True)[rows, place], groups, 1.0) if own else None,
        None if full is None else ratio(logs - log_rise(full, kind)[rows, place], groups),
    )


def _after(
    here: AnswerArrays,
    full: AnswerArrays | None,
    rows: NDArray[np.intp],
    place: int,
    facts: tuple[str, str, float, list[str]],
) -> RobustnessFinding:
    """The loss itself under the strongest change, whatever it was before."""
    variant, side, size, groups = facts
    logs = log_of(here["loss"][rows, place])
    against = None if full is None else ratio(logs - log_of(full["loss"][rows, place]), groups)
    value = ratio(logs, groups)
    return RobustnessFinding(variant, side, "after", size, len(rows), len(set(groups)), value, None, None, against)


def _damage(
    here: AnswerArrays,
    full: AnswerArrays | None,
    rows: NDArray[np.intp],
    place: int,
    facts: tuple[str, str, float, list[str]],
    column: int,
) -> RobustnessFinding:
    variant, side, size, groups = facts
    values = here["damage"].astype(np.float64)[rows, place]
    others = None if full is None else log_of(full["damage"][rows, place, column])
    return RobustnessFinding(
        variant,
        side,
        f"damage_{DAMAGES[column]}",
        size,
        len(rows),
        len(set(groups)),
        estimate(values[:, column], groups),
        estimate(values[:, DAMAGES.index("by_noise")], groups) if DAMAGES[column] != "by_noise" else None,
        None,
        None if others is None else ratio(log_of(values[:, column]) - others, groups),
    )


def checks_of(answers: Mapping[str, AnswerArrays], pictures: AuditedPictures) -> list[MaskingCheck]:
    """Signs of gradient masking (arXiv 1802.00420, section 3.1), for every variant."""
    return [_check(variant, here, pictures, kind) for variant, here in answers.items() for kind in KINDS]


def _check(variant: str, here: AnswerArrays, pictures: AuditedPictures, kind: str) -> MaskingCheck:
    logs = log_rise(here, kind)
    transfer = None
    if kind == "loss" and variant != "base":
        transfer = log_rise(here, "transfer")
    return MaskingCheck(
        variant,
        kind,
        float((logs >= log_rise(here, f"{kind}_one_step") - SAME).mean()),
        float((logs > log_rise(here, f"{kind}_noise")).mean()),
        float((np.diff(logs, axis=1) >= -SAME).mean()) if logs.shape[1] > 1 else 1.0,
        None if transfer is None else float((logs >= transfer - SAME).mean()),
        None if transfer is None else ratio((logs - transfer)[:, -1], pictures.groups),
    )


def code_findings(answers: AnswerArrays, pictures: AuditedPictures, sizes: Sequence[float]) -> list[CodeFinding]:
    """One for each size."""
    code, noise, one_step = (answers[name].astype(np.float64) for name in ("code", "code_noise", "code_one_step"))
    return [
        CodeFinding(
            size,
            estimate(code[:, place], pictures.groups),
            estimate(noise[:, place], pictures.groups),
            float((code[:, place] >= one_step[:, place] * (1 - SAME)).mean()),
            float((code[:, place] > noise[:, place]).mean()),
        )
        for place, size in enumerate(sizes)
    ]
