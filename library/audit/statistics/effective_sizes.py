"""How many independent pictures a sample is worth whose pictures come in groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.audit.statistics.metrics import Scores, checked


@dataclass(frozen=True)
class EffectiveSizes:
    """Pictures over the design effect on both sides, and the groups of the side that has fewer."""

    members: float
    non_members: float
    groups: int

    @classmethod
    def of_single_pictures(cls, members: int, non_members: int) -> "EffectiveSizes":
        """Every picture stands for itself."""
        return cls(members, non_members, min(members, non_members))


def group_sizes(groups: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """[n] number of each picture's group, and [G] pictures in each."""
    _, position = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return position, np.bincount(position)


def largest_design_effect(sizes: NDArray[np.intp]) -> float:
    """That of pictures that are all alike within their group: the mean group size as a picture sees it."""
    return float((sizes**2).sum() / sizes.sum())


def design_effect(values: NDArray[np.float64], groups: Sequence[str]) -> float:
    """Variance of a mean over groups, over that of as many independent values; within 1 and the group size.

    Values that are all equal say nothing of their likeness, and get the largest effect.
    """
    position, sizes = group_sizes(groups)
    count, most, rest = len(values), largest_design_effect(sizes), np.asarray(values, np.float64) - np.mean(values)
    if len(sizes) == count:
        return 1.0
    plain = float((rest**2).sum()) / (count * (count - 1))
    if plain <= 0 or len(sizes) < 2:
        return most
    clustered = len(sizes) / (len(sizes) - 1) * float((np.bincount(position, rest) ** 2).sum()) / count**2
    return float(np.clip(clustered / plain, 1.0, most))


def placements(members: Scores, non_members: Scores) -> tuple[Scores, Scores]:
    """[M] share of the non-members below each member, [N] share of the members above each; ties count half.

    Their variances make up that of the AUC (DeLong 1988).
    """
    members, non_members = checked(members, non_members)

    def share_below(values: Scores, others: Scores) -> Scores:
        ordered = np.sort(others)
        counts = [np.searchsorted(ordered, values, side=side) for side in ("left", "right")]  # type: ignore[call-overload]
        return (counts[0] + counts[1]) / (2 * len(others))

    return share_below(members, non_members), 1 - share_below(non_members, members)


def effective_sizes(
    members: Scores, non_members: Scores, member_groups: Sequence[str], non_member_groups: Sequence[str]
) -> EffectiveSizes:
    """Sizes for the AUC of these scores: the design effect is that of their placements, side by side."""
    sides, named = placements(members, non_members), (member_groups, non_member_groups)
    worth = [len(side) / design_effect(side, names) for side, names in zip(sides, named, strict=True)]
    return EffectiveSizes(worth[0], worth[1], min(len(set(member_groups)), len(set(non_member_groups))))
