"""Near duplicates across sides: pictures so similar that one reveals the other."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from library.data.examples import Example
from library.data.split import SIDES, Split
from library.errors import shortened

MOST_PICTURES = 50_000  # comparing all pairs of more takes minutes
BLOCK = 1 << 20  # pairs compared at once: 8 MB of differing bits
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NearPairs:
    """Near duplicates across member and non-member sides."""

    count: int  # of all pairs
    nearest: list[tuple[str, str]]  # file names (member, non-member): nearest first, then by name


def warn_of_near_duplicates(split: Split) -> None:
    """Log near duplicates across member and non-member sides, so that they can be put into one group."""
    pairs = near_duplicates(split)
    if pairs is None:
        logger.warning("near duplicates were not searched, since there are more than %d pictures", MOST_PICTURES)
    elif pairs.count:
        shown = [f"{member} ~ {non_member}" for member, non_member in pairs.nearest]
        more = pairs.count - len(shown)
        logger.warning(
            "%d near-duplicate pairs have one picture among the members and one among the non-members (--group_by "
            "keeps such pictures together): %s%s",
            pairs.count,
            shortened(shown),
            f" and {more} more" if more else "",
        )


def near_duplicates(split: Split, most_bits: int = 3, named: int = 5) -> NearPairs | None:
    """Pairs across member and non-member sides whose difference hashes differ in few bits.

    Every member is compared with every non-member, a block of pairs at a time, so that ten thousand like pictures need
    no more memory than ten thousand different ones.

    Args:
        most_bits: largest Hamming distance of the 64-bit hashes that counts as near.
        named: how many pairs are named.

    Returns:
        None when there are too many pictures to compare.
    """
    if sum(len(split.sides[side]) for side in SIDES) > MOST_PICTURES:
        return None
    left, member_names = _by_name(split.members())
    right, non_member_names = _by_name(split.sides["non-members-aux"] + split.sides["non-members-test"])
    count, best = 0, np.empty(0, dtype=np.int64)
    rows = max(1, BLOCK // max(1, len(right)))
    for start in range(0, len(left), rows):
        bits = np.bitwise_count(left[start : start + rows, None] ^ right)  # [rows, non-members]
        places = np.flatnonzero(bits <= most_bits)
        count += len(places)
        # One number orders the pairs of all blocks: bits, then the member's name, then the non-member's
        keys = bits.ravel()[places].astype(np.int64) * (len(left) * len(right)) + start * len(right) + places
        best = _smallest(np.concatenate([best, keys]), named)
    pairs = (divmod(int(key) % (len(left) * len(right)), len(right)) for key in best)
    return NearPairs(count, [(member_names[row], non_member_names[column]) for row, column in pairs])


def _by_name(examples: Sequence[Example]) -> tuple[np.ndarray, list[str]]:
    """Hashes [n] and file names, both in the order of the names."""
    ordered = sorted((one.path.name, one.brightness_signs) for one in examples)
    return np.array([signs for _, signs in ordered], dtype=np.uint64), [name for name, _ in ordered]


def _smallest(keys: np.ndarray, most: int) -> np.ndarray:
    """The smallest keys, in order."""
    return np.sort(np.partition(keys, most - 1)[:most] if len(keys) > most else keys)
