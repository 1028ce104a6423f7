"""The candidates of an audit in one order: sides, groups, pictures, and what an attacker may know about them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from library.audit.statistics.metrics import auc
from library.errors import InputError

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """The pictures under audit, in one order for every array."""

    pixels: Sequence[str]  # SHA-256 of the decoded pixels
    sides: Sequence[str]  # members-aux, members-test, non-members-aux, non-members-test
    groups: Sequence[str]
    repeats: Sequence[int] = ()  # uses per epoch, had it been a member; empty where nobody knows

    def __post_init__(self) -> None:
        by_label = [
            {name for name, side in zip(self.pixels, self.sides, strict=False) if side.startswith("members") == label}
            for label in (True, False)
        ]
        both = by_label[0] & by_label[1]
        if both:
            raise InputError(
                f"{len(both)} of {len(self.pixels)} pictures are both members and non-members; nothing "
                "can be measured on such a split"
            )
        grouped = [
            {group for group, side in zip(self.groups, self.sides, strict=False) if side.endswith(end)}
            for end in ("-aux", "-test")
        ]
        if grouped[0] & grouped[1]:
            raise InputError(f"{len(grouped[0] & grouped[1])} groups are on both aux and test sides")

    @property
    def is_member(self) -> NDArray[np.bool_]:
        """[n] trained on or not."""
        return np.array([side.startswith("members") for side in self.sides])

    @property
    def is_test(self) -> NDArray[np.bool_]:
        """[n] on a test side."""
        return np.array([side.endswith("-test") for side in self.sides])

    def indices(self, side: str) -> NDArray[np.intp]:
        """Positions of one side."""
        return np.flatnonzero(np.array(self.sides) == side)


@dataclass(frozen=True)
class AuxView:
    """What an attack may learn from: rows, labels and folds of the aux sides, and no test label."""

    indices: NDArray[np.intp]  # [A] positions among all pictures
    labels: NDArray[np.bool_]  # [A]
    folds: NDArray[np.intp]  # [A] groups stay in one fold
    seed: int

    def auc(self, scores: FloatArray) -> float:
        """AUC of [n] scores on the aux sides."""
        on_aux = scores[self.indices]
        return auc(on_aux[self.labels], on_aux[~self.labels])


def aux_view(candidates: Candidates, seed: int, folds: int = 5) -> AuxView:
    """Aux rows dealt into folds by group. Raises: InputError when a side has fewer groups than folds."""
    rows = np.flatnonzero(~candidates.is_test)
    labels = candidates.is_member[rows]
    groups = np.array(candidates.groups, dtype=str)[rows]
    for label, name in ((True, "members-aux"), (False, "non-members-aux")):
        count = len(set(groups[labels == label]))
        if count < folds:
            raise InputError(f"{name} has {count} groups of pictures; {folds} are needed to fit attacks fairly")
    dealt = np.zeros(len(rows), dtype=np.intp)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(rows, labels, groups)):
        dealt[held_out] = fold
    return AuxView(rows, labels, dealt, seed)


@dataclass(frozen=True)
class Picture:
    """One candidate, ready for the queries."""

    key: str  # pixels, caption and training size: names its records
    identity: str  # pixels alone: seeds its noise
    latent: Tensor  # [4, h, w] posterior mean, scaled
    cropped: Tensor | None  # the same of its centre crop; None where the plan has no crops
    caption: str
    framing: Tensor  # [6] of its size and crop in training, see library/data/augmentation.py
    cropped_framing: Tensor  # [6] of the centre crop
