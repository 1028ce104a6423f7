"""The set-level test: do drawings of the LoRA come nearer to its members, as a set, than to pictures held out?

A LoRA that was distilled can pass every attack on single pictures and fail this one (arXiv 2502.02970).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from library.audit.statistics.permutation import DRAWS, dealt_labels

Features = NDArray[np.float64]
WIDTHS = (0.5, 0.25)  # of the kernel, in median distances: what is learnt by heart shows at short range (LOG.md)


@dataclass(frozen=True)
class SetTest:
    """Squared MMD of drawings to both sides, and p of the LoRA being nearer to the members than the base is."""

    space: str  # of the features
    to_members: float  # squared MMD of the drawings with the LoRA on
    to_non_members: float
    to_members_of_base: float
    to_non_members_of_base: float
    difference: float  # (to members - to non-members), LoRA on minus base: below 0 = nearer to the members
    p: float  # permutation over groups, one-sided: as far below 0 or farther
    drawings: int
    members: int  # pictures
    non_members: int
    groups: int  # of the side that has fewer


def set_test(
    drawn: tuple[Features, Features], real: Features, is_member: NDArray[np.bool_], groups: Sequence[str],
    *, space: str, generator: np.random.Generator,
) -> SetTest:  # fmt: skip
    """Compare drawings with the pictures of both sides under a Gaussian kernel k.

    The drawings are of captions of both sides alike, so without a leak the labels of the pictures may be dealt out
    again. Of (MMD^2 to members - MMD^2 to non-members) with the LoRA minus the same without, the terms between pictures
    cancel; what remains is the difference of means of w(x) = 2 (mean k(x, drawing of the base) - mean k(x, drawing of
    the LoRA)) between members and non-members.

    Args:
        drawn: [D, F] each, with the LoRA on and off.
        real: [n, F] features of the pictures.
        is_member: [n].
        groups: [n]; labels are dealt out to whole groups.

    Raises:
        ValueError: fewer than two pictures on a side; a group on both sides.
    """
    if min(is_member.sum(), (~is_member).sum()) < 2:
        raise ValueError(f"the set-level test needs two pictures a side, got {is_member.sum()} + {(~is_member).sum()}")
    width = median_distance(np.concatenate([real, *drawn]))
    on, off = (gaussian_kernel(real, some, width).mean(1) for some in drawn)  # [n]
    witness = 2 * (off - on)
    _, position = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sizes, sums = np.bincount(position).astype(np.float64), np.bincount(position, witness)

    def differences(labels: Features) -> Features:
        inside = labels @ sizes
        return (labels @ sums) / inside - ((1 - labels) @ sums) / (sizes.sum() - inside)

    observed = float(differences((np.bincount(position, is_member) / sizes)[None])[0])
    dealt = differences(dealt_labels(is_member, position, DRAWS, generator))
    members, others = real[is_member], real[~is_member]
    return SetTest(
        space=space,
        to_members=squared_mmd(drawn[0], members, width),
        to_non_members=squared_mmd(drawn[0], others, width),
        to_members_of_base=squared_mmd(drawn[1], members, width),
        to_non_members_of_base=squared_mmd(drawn[1], others, width),
        difference=observed,
        p=float((1 + (dealt <= observed + 1e-15).sum()) / (1 + DRAWS)),
        drawings=len(drawn[0]),
        members=len(members),
        non_members=len(others),
        groups=min(len(set(position[side].tolist())) for side in (is_member, ~is_member)),
    )


def squared_mmd(first: Features, second: Features, width: float) -> float:
    """Unbiased squared maximum mean discrepancy of two sets [n, F] (Gretton et al. 2012, eq. 3)."""
    inside = []
    for rows in (first, second):
        values = gaussian_kernel(rows, rows, width)
        inside.append((values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1)))
    return float(inside[0] + inside[1] - 2 * gaussian_kernel(first, second, width).mean())


def gaussian_kernel(first: Features, second: Features, width: float) -> Features:
    """exp(-|x - y|^2 / (2 s^2)), [n, m], averaged over s = ``WIDTHS`` times the width."""
    squares = squared_distances(first, second)
    return np.mean([np.exp(-squares / (2 * (share * width) ** 2)) for share in WIDTHS], axis=0)


def median_distance(rows: Features) -> float:
    """The median distance between two different rows [n, F]; 1 where all are alike."""
    values = squared_distances(rows, rows)[np.triu_indices(len(rows), 1)]
    return float(np.sqrt(np.median(values))) or 1.0


def squared_distances(first: Features, second: Features) -> Features:
    """[n, m] squared Euclidean distances of rows [n, F] and [m, F]."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    return np.maximum(squares, 0.0)
