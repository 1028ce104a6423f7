"""Sizes of a change and ranks of a cut, read from the words of the options."""

from collections.abc import Sequence
from fractions import Fraction

from library.errors import Faults, shown


def read_sizes(words: Sequence[str], faults: Faults) -> list[float]:
    """The sizes in ascending order, each once; "8/255" and "0.03" are both read.

    Args:
        faults: gets a line for every word that is no number above 0 and at most 1.
    """
    sizes: dict[float, None] = {}
    for word in words:
        try:
            size = float(Fraction(word.strip()))
        except (ValueError, ZeroDivisionError, OverflowError):
            size = float("nan")
        if 0 < size <= 1:
            sizes[size] = None
        else:
            faults.add(
                f"robustness_eps must be above 0 and at most 1, such as 8/255 or 0.03, got {shown(word)}",
                about="robustness_eps",
            )
    return sorted(sizes)


def read_ranks(words: Sequence[str], faults: Faults) -> list[int]:
    """The ranks in descending order, each once.

    Args:
        faults: gets a line for every word that is no whole number of at least 1.
    """
    ranks: set[int] = set()
    for word in words:
        if word.strip().isascii() and word.strip().isdigit() and int(word.strip()[:9]) >= 1:
            ranks.add(int(word.strip()[:9]))
        else:
            faults.add(
                f"robustness_ranks must be whole numbers of at least 1, got {shown(word)}", about="robustness_ranks"
            )
    return sorted(ranks, reverse=True)
