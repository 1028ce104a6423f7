"""Near duplicates across sides: pictures so similar that one reveals the other."""

import logging

import numpy as np

from library.data.split import SIDES, Split
from library.errors import shortened

MOST_PICTURES = 20_000  # comparing all pairs of more takes minutes
logger = logging.getLogger(__name__)


def warn_of_near_duplicates(split: Split) -> None:
    """Log near duplicates across member and non-member sides, so that they can be put into one group."""
    pairs = near_duplicates(split)
    if pairs is None:
        logger.warning("near duplicates were not searched, since there are more than %d pictures", MOST_PICTURES)
    elif pairs:
        names = shortened([f"{member} ~ {non_member}" for member, non_member in pairs], 5)
        logger.warning(
            "%d near-duplicate pairs have one picture among the members and one among the non-members (--group_by "
            "keeps such pictures together): %s",
            len(pairs),
            names,
        )


def near_duplicates(split: Split, most_bits: int = 3) -> list[tuple[str, str]] | None:
    """File names of pairs across member and non-member sides whose difference hashes differ in few bits.

    Args:
        most_bits: largest Hamming distance of the 64-bit hashes that counts as near.

    Returns:
        Pairs (member, non-member), nearest first; None when there are too many pictures to compare.
    """
    members = split.members()
    non_members = split.sides["non-members-aux"] + split.sides["non-members-test"]
    if sum(len(split.sides[side]) for side in SIDES) > MOST_PICTURES:
        return None
    left = np.array([example.brightness_signs for example in members], dtype=np.uint64)
    right = np.array([example.brightness_signs for example in non_members], dtype=np.uint64)
    pairs: list[tuple[int, str, str]] = []
    for row, value in enumerate(left):
        bits = np.bitwise_count(right ^ value)
        for column in np.flatnonzero(bits <= most_bits):
            pairs.append((int(bits[column]), members[row].path.name, non_members[int(column)].path.name))
    return [(member, non_member) for _, member, non_member in sorted(pairs)]
