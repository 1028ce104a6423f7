"""Which pictures of the test sides are changed, and their pixels."""

from collections.abc import Sequence

from torch import Tensor

from library.audit.robustness.robustness_findings import AuditedPictures
from library.audit.targets.candidate_table import Candidates
from library.audit.targets.candidates import CandidateSet
from library.data.augmentation import plain_pixels
from library.errors import Faults

SIDES = ("members-test", "non-members-test")
OF_A_GROUP = 2  # at most: further pictures of a person say little that is new


def chosen_rows(candidates: Candidates, count: int) -> list[int]:
    """Positions of the first pictures of each test side in the order of their hashes, at most two of a group.

    Args:
        count: of each side, at most.

    Raises:
        InputError: a side with fewer than two groups, whose figures would have no interval.
    """
    rows: list[int] = []
    faults = Faults()
    for side in SIDES:
        taken: dict[str, int] = {}
        of_side = sorted(candidates.indices(side).tolist(), key=lambda row: candidates.pixels[row])
        kept: list[int] = []
        for row in of_side:
            group = candidates.groups[row]
            if len(kept) < count and taken.get(group, 0) < OF_A_GROUP:
                taken[group] = taken.get(group, 0) + 1
                kept.append(row)
        if len(taken) < 2:
            faults.add(
                f"{side} has {len(taken)} groups of pictures; attacks robustness needs 2 on each test side (members "
                "and held-out pictures): use more pictures, or a split with a share of non-members"
            )
        rows += kept
    faults.raise_if_any()
    return rows


def tested_rows(candidates: Candidates) -> list[int]:
    """Positions of all pictures of the test sides."""
    return [row for side in SIDES for row in candidates.indices(side).tolist()]


def facts_of(candidates: Candidates, rows: Sequence[int]) -> AuditedPictures:
    """Sides and groups of the chosen ones."""
    return AuditedPictures([candidates.sides[row] for row in rows], [candidates.groups[row] for row in rows])


def pixels_of(candidate_set: CandidateSet, sizes: Sequence[tuple[int, int]], rows: Sequence[int]) -> list[Tensor]:
    """[3, H, W] each, in 0..1, as the training scaled and cropped them."""
    return [(plain_pixels(candidate_set.examples[row], sizes[row]) / 2 + 0.5).clamp(0, 1) for row in rows]
