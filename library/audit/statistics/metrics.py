"""How well scores tell members from non-members: AUC, true-positive rate at a false-positive rate, thresholds."""

import math

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def checked(members: Scores, non_members: Scores) -> tuple[Scores, Scores]:
    """Both sides as float64; refuses an empty side and scores that are not numbers."""
    sides = np.asarray(members, np.float64), np.asarray(non_members, np.float64)
    for name, scores in zip(("members", "non-members"), sides, strict=False):
        if scores.ndim != 1 or len(scores) == 0:
            raise ValueError(f"scores of {name} must be one row of at least one number, got shape {scores.shape}")
        if np.isnan(scores).any():
            raise ValueError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores of {name} are NaN")
    return sides


def auc(members: Scores, non_members: Scores) -> float:
    """Chance that a member scores above a non-member, ties counted half (Mann-Whitney)."""
    members, non_members = checked(members, non_members)
    ordered = np.sort(non_members)
    below = np.searchsorted(ordered, members, side="left")
    not_above = np.searchsorted(ordered, members, side="right")
    return float((below + not_above).mean() / (2 * len(ordered)))


def flipped_auc(members: Scores, non_members: Scores) -> float:
    """max(AUC, 1 - AUC): an over-defended model leaks inverted, and an attacker who knows few labels flips the sign."""
    area = auc(members, non_members)
    return max(area, 1 - area)


def non_members_needed(fpr: float) -> int:
    """How many non-members resolve a false-positive rate. Raises: ValueError for a rate that is not between 0 and 1."""
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must lie between 0 and 1, got {fpr}")
    return math.ceil(1 / fpr - 1e-9)


def allowed_false_positives(non_members: int, fpr: float) -> int:
    """floor(fpr * N), at least 1. Raises: ValueError where N is too small to resolve the rate."""
    needed = non_members_needed(fpr)
    allowed = math.floor(non_members * fpr + 1e-9)
    if allowed < 1:
        raise ValueError(f"fpr={fpr} needs {needed} non-members, got {non_members}")
    return allowed


def tpr_at_fpr(members: Scores, non_members: Scores, fpr: float) -> float:
    """Share of members accused when at most ``fpr`` of the non-members are (arXiv 2112.03570); ties acquit.

    Args:
        members: [M] scores, higher = more likely a member.
        non_members: [N] scores; needs N >= 1 / fpr, or the answer would be luck.
    """
    members, non_members = checked(members, non_members)
    allowed = allowed_false_positives(len(non_members), fpr)
    threshold = np.sort(non_members)[-allowed - 1] if allowed < len(non_members) else -np.inf
    return float((members > threshold).mean())


def chance_tpr(non_members: int, fpr: float) -> float:
    """What guessing reaches at ``tpr_at_fpr``: (k + 1) / (N + 1) with k allowed false positives, not fpr itself."""
    return (allowed_false_positives(non_members, fpr) + 1) / (non_members + 1)


def roc_points(members: Scores, non_members: Scores) -> tuple[Scores, Scores]:
    """False- and true-positive rates at every distinct threshold, from (0, 0) to (1, 1), by exact sort."""
    members, non_members = checked(members, non_members)
    thresholds = np.unique(np.concatenate([members, non_members]))[::-1]
    false_rate = 1 - np.searchsorted(np.sort(non_members), thresholds, side="left") / len(non_members)
    true_rate = 1 - np.searchsorted(np.sort(members), thresholds, side="left") / len(members)
    return np.concatenate([[0.0], false_rate]), np.concatenate([[0.0], true_rate])


def accuracy_threshold(members: Scores, non_members: Scores) -> float:
    """Threshold of the best balanced accuracy: halfway between neighbours; chosen on the aux sides only."""
    members, non_members = checked(members, non_members)
    values = np.unique(np.concatenate([members, non_members]))
    cuts = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    true_rate = 1 - np.searchsorted(np.sort(members), cuts, side="right") / len(members)
    true_negative_rate = np.searchsorted(np.sort(non_members), cuts, side="right") / len(non_members)
    return float(cuts[np.argmax(true_rate + true_negative_rate)])


def false_positive_threshold(non_members: Scores, fpr: float) -> float:
    """Conservative threshold for ``fpr`` from known non-members: one false positive fewer than allowed if possible."""
    allowed = allowed_false_positives(len(non_members), fpr)
    ordered = np.sort(np.asarray(non_members, np.float64))
    kept = max(allowed - 1, 0)
    return float(ordered[-kept - 1])


def rates_above(members: Scores, non_members: Scores, threshold: float) -> tuple[float, float]:
    """(true-, false-positive rate) of "member if strictly above ``threshold``"."""
    members, non_members = checked(members, non_members)
    return float((members > threshold).mean()), float((non_members > threshold).mean())


def balanced_accuracy(members: Scores, non_members: Scores, threshold: float) -> float:
    """Half the true-positive plus half the true-negative rate at a threshold chosen elsewhere ("ASR")."""
    true_rate, false_rate = rates_above(members, non_members, threshold)
    return (true_rate + 1 - false_rate) / 2
