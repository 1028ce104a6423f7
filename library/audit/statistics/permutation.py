"""Tests against luck: deal the labels out again among groups, as the split did, and compare."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

DRAWS = 10_000  # of the labels


@dataclass(frozen=True)
class PermutationTest:
    """Two-sided p of |AUC - 0.5| for each row of scores, and of the largest among all rows."""

    aucs: NDArray[np.float64]  # [A] as observed
    p_each: NDArray[np.float64]  # [A]
    p_max: float
    draws: int


def p_number(p: float) -> str:
    """A p-value as text: the smallest that ``DRAWS`` deals can give is only an upper limit, and says so."""
    least = 1 / (1 + DRAWS)
    return f"<= {least:.4f}" if p <= 1.01 * least else f"{p:.4f}"


def p_text(p: float) -> str:
    """ "p = 0.0123" or "p <= 0.0001"."""
    number = p_number(p)
    return f"p {number}" if number.startswith("<=") else f"p = {number}"


def dealt_labels(
    is_member: NDArray[np.bool_], position: NDArray[np.intp], draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """[draws, G] labels of the groups in random order. Raises: ValueError for a group of members and non-members."""
    groups = int(position.max()) + 1
    share = np.bincount(position, is_member, groups) / np.bincount(position, minlength=groups)
    if not np.isin(share, (0.0, 1.0)).all():
        raise ValueError(f"{int((~np.isin(share, (0.0, 1.0))).sum())} groups hold members and non-members")
    order = generator.random((draws, groups)).argsort(1)
    return share[order]


def permutation_test(
    scores: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    groups: Sequence[str],
    generator: np.random.Generator,
    draws: int = DRAWS,
) -> PermutationTest:
    """Shuffle the group labels ``draws`` times; exact for fixed and coin-flip splits given their number of members.

    Args:
        scores: [A, n] one row per attack.
        is_member: [n] labels of the same images.
    """
    scores = np.atleast_2d(np.asarray(scores, np.float64))
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    ranks = np.stack([stats.rankdata(row) for row in scores], axis=1)  # [n, A], ties get their mean rank
    _, position = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    rank_sums = np.zeros((int(position.max()) + 1, ranks.shape[1]))
    np.add.at(rank_sums, position, ranks)
    sizes = np.bincount(position).astype(np.float64)

    def areas(labels: NDArray[np.float64]) -> NDArray[np.float64]:
        members = (labels @ sizes)[:, None]
        return (labels @ rank_sums - members * (members + 1) / 2) / (members * (sizes.sum() - members))

    observed = areas((np.bincount(position, is_member) / sizes)[None])[0]
    deviations = np.abs(areas(dealt_labels(is_member, position, draws, generator)) - 0.5)
    margin = np.abs(observed - 0.5) - 1e-12
    p_each = (1 + (deviations >= margin).sum(0)) / (1 + draws)
    p_max = (1 + int((deviations.max(1) >= margin.max()).sum())) / (1 + draws)
    return PermutationTest(observed, p_each, p_max, draws)


def dataset_level_p(
    scores: NDArray[np.float64], is_member: NDArray[np.bool_], groups: Sequence[str]
) -> tuple[float, int, int]:
    """One-sided Welch test on group means: was this *portfolio* used (arXiv 2411.12858)? Returns p and both sizes."""
    _, position = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sizes = np.bincount(position)
    means = np.bincount(position, scores) / sizes
    inside = np.bincount(position, is_member) / sizes > 0.5
    if inside.sum() < 2 or (~inside).sum() < 2:
        raise ValueError("the dataset-level test needs two groups on each side")
    if np.ptp(means) == 0:
        return 1.0, int(inside.sum()), int((~inside).sum())
    result = stats.ttest_ind(means[inside], means[~inside], equal_var=False, alternative="greater")
    return float(result.pvalue), int(inside.sum()), int((~inside).sum())
