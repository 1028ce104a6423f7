"""Lower bounds on epsilon from one training run: a fair coin put each image in or out, and we guess the coins."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

LARGEST_EPSILON = 30.0
LARGEST_MU = 12.0
TOLERANCE = 1e-12  # of every root


def guess_p_value(epsilon: float, guesses: int, correct: int, canaries: int, delta: float) -> float:
    """Chance of ``correct`` of ``guesses`` coins under (epsilon, delta)-DP (arXiv 2305.08846, Theorem 5.2).

    p <= P[Bin(r, q) >= v] + 2 m delta max_i P[v - i <= Bin(r, q) < v] / i, with q = e^eps / (1 + e^eps).
    """
    success = 1 / (1 + math.exp(-epsilon))
    tail = stats.binom.sf(np.arange(correct, -1, -1) - 1, guesses, success)  # P[Bin >= v - i], i = 0..v
    near = np.max((tail[1:] - tail[0]) / np.arange(1, correct + 1)) if correct else 0.0
    return float(min(1.0, tail[0] + 2 * canaries * delta * near))


def largest_rejected(p_value: Callable[[float], float], level: float) -> float:
    """Largest epsilon whose p stays below ``level``; 0 where even 0 is not rejected. p grows with epsilon."""
    if p_value(0.0) >= level:
        return 0.0
    if p_value(LARGEST_EPSILON) < level:
        return LARGEST_EPSILON
    return float(optimize.brentq(lambda epsilon: p_value(epsilon) - level, 0.0, LARGEST_EPSILON, xtol=TOLERANCE))


def one_run_epsilon(guesses: int, correct: int, canaries: int, delta: float = 1e-5, level: float = 0.05) -> float:
    """Lower bound on epsilon that holds with confidence 1 - ``level`` (one-run audit)."""
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} correct of {guesses} guesses on {canaries} canaries is impossible")
    return largest_rejected(lambda epsilon: guess_p_value(epsilon, guesses, correct, canaries, delta), level)


def gaussian_excess(mu: float, guesses: int, correct: int, canaries: int, level: float = 0.05) -> float:
    """Above 0 where the run refutes mu-Gaussian-DP; falls with mu.

    Recursion of arXiv 2410.22235 for two-sided guesses (k = 2).
    """
    if correct == 0:
        return -guesses / canaries
    outside = level * correct / canaries
    inside = level * (guesses - correct) / canaries
    for index in range(correct - 1, -1, -1):
        bound = max(inside, float(stats.norm.cdf(stats.norm.ppf(outside) - mu)))
        outside += index / (guesses - index) * (bound - inside)
        inside = bound
    return outside + inside - guesses / canaries


def gaussian_epsilon(mu: float, delta: float = 1e-5) -> float:
    """epsilon of mu-Gaussian-DP at ``delta``: solves delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)."""
    if mu <= 0:
        return 0.0

    def spent(epsilon: float) -> float:
        second = epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)
        return float(stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(second))

    if spent(0.0) <= delta:
        return 0.0
    high = 1.0
    while spent(high) > delta:
        high *= 2
    return float(optimize.brentq(lambda epsilon: spent(epsilon) - delta, 0.0, high, xtol=TOLERANCE))


def gaussian_one_run_epsilon(
    guesses: int, correct: int, canaries: int, delta: float = 1e-5, level: float = 0.05
) -> float:
    """Lower bound on epsilon *against Gaussian mechanisms only* (for DP-SGD runs): tighter than ``one_run_epsilon``."""

    def excess(mu: float) -> float:
        return gaussian_excess(mu, guesses, correct, canaries, level)

    if excess(0.0) <= 0:
        return 0.0
    if excess(LARGEST_MU) > 0:
        return gaussian_epsilon(LARGEST_MU, delta)
    return gaussian_epsilon(float(optimize.brentq(excess, 0.0, LARGEST_MU, xtol=TOLERANCE)), delta)


@dataclass(frozen=True)
class OneRunBound:
    """One line of the one-run audit: how many guesses, how many right, what follows."""

    guesses: int
    correct: int
    canaries: int
    epsilon: float
    ceiling: float  # what all guesses right would give
    gaussian_epsilon: float


def one_run_bounds(
    scores: NDArray[np.float64],
    is_member: NDArray[np.bool_],
    groups: Sequence[str],
    guess_counts: Sequence[int] = (20, 50, 100, 200, 500),
    delta: float = 1e-5,
    level: float = 0.05,
) -> list[OneRunBound]:
    """Guess the r/2 highest groups IN and the r/2 lowest OUT, for each r fixed beforehand, Bonferroni over the r's.

    Valid where each group entered by an independent fair coin; indicative otherwise.
    """
    _, position = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sizes = np.bincount(position)
    means = np.bincount(position, scores) / sizes
    inside = np.bincount(position, is_member) / sizes > 0.5
    order = np.argsort(means, kind="stable")
    counts = [count for count in guess_counts if count <= len(means)] or [len(means) // 2 * 2]
    share = level / len(counts)
    bounds = []
    for count in counts:
        half = count // 2
        correct = int(inside[order[-half:]].sum() + (~inside[order[:half]]).sum()) if half else 0
        bounds.append(
            OneRunBound(
                2 * half,
                correct,
                len(means),
                one_run_epsilon(2 * half, correct, len(means), delta, share),
                one_run_epsilon(2 * half, 2 * half, len(means), delta, share),
                gaussian_one_run_epsilon(2 * half, correct, len(means), delta, share) if half else 0.0,
            )
        )
    return bounds
