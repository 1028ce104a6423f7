"""What a LoRA learnt that generalises: how far the denoising error of held-out pictures falls, with its interval."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Losses = NDArray[np.float64]
Share = tuple[float, float, float]  # value and its interval


def log_falls(on: Losses, off: Losses) -> Losses:
    """[n] mean over timesteps of log(off / on): how far each picture's error falls where the LoRA is on.

    Args:
        on, off: [n, T] mean squared errors under the same noise.
    """
    return np.log(np.maximum(off, 1e-12) / np.maximum(on, 1e-12)).mean(axis=1)


def _error_of_mean(values: Losses, groups: Sequence[str]) -> tuple[float, int]:
    """Standard error of a mean over whole groups, infinite for a single one, and how many groups there are."""
    _, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(place.max()) + 1
    if count < 2:
        return float("inf"), count
    sums = np.bincount(place, values - values.mean())  # of each group's departures: groups may be unequal
    return float(np.sqrt(count / (count - 1) * (sums**2).sum())) / len(values), count


def gain_with_interval(falls: Losses, groups: Sequence[str], level: float = 0.95) -> Share:
    """1 - exp(-mean fall), the relative fall of the error, and its interval (t over the means of whole groups).

    Args:
        falls: [n] of ``log_falls``.
        groups: [n]; pictures of one group are not independent.
    """
    middle, low, high = (1 - float(np.exp(-value)) for value in mean_with_interval(falls, groups, level))
    return middle, low, high


def mean_with_interval(values: Losses, groups: Sequence[str], level: float = 0.95) -> Share:
    """Mean of [n] values and its interval: t over the means of whole groups; of a single group without bounds."""
    mean = float(values.mean())
    error, count = _error_of_mean(values, groups)
    if count < 2:
        return mean, float("-inf"), float("inf")
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    return mean, mean - reach, mean + reach


def auc_without_luck(
    first: tuple[Losses, Losses], now: tuple[Losses, Losses], groups: tuple[Sequence[str], Sequence[str]]
) -> tuple[float, float, float]:
    """AUC that the falls of members and non-members would have if both sides were equally easy, and its 95 % interval.

    Some pictures are easier to learn than others, and which of them became members is luck; what they fell by before
    anything was learnt by heart tells how easy they are. Its effect on the difference of the means is taken out
    (analysis of covariance, slope within the sides); the spread of the falls, which an attacker has to live with,
    stays. The AUC is that of two normal distributions: Phi(difference / sqrt(sum of both variances)).

    Args:
        first: falls of members [n] and non-members [m] in an earlier look at the same pictures.
        now: their falls now.
        groups: of both; pictures of one group are not independent.
    """
    earlier = [before - before.mean() for before in first]
    spread = sum(float(before @ before) for before in earlier)
    slope = sum(float(fall @ before) for fall, before in zip(now, earlier, strict=True)) / spread if spread > 0 else 0.0
    rest = [fall - slope * before for fall, before in zip(now, first, strict=True)]
    errors = [_error_of_mean(values, names) for values, names in zip(rest, groups, strict=True)]
    difference = float(rest[0].mean() - rest[1].mean())
    degrees = max(1, min(count for _, count in errors) - 1)
    reach = float(stats.t.ppf(0.975, degrees)) * math.hypot(*(error for error, _ in errors))
    scale = math.hypot(*(float(fall.std()) for fall in now)) or math.inf
    middle, low, high = (float(stats.norm.cdf((difference + shift) / scale)) for shift in (0.0, -reach, reach))
    return middle, low, high


def beyond(of_members: Share, held_out: Share) -> Share:
    """What members gained beyond held-out pictures, with its interval (MOVER: Newcombe 1998, method 10)."""
    (more, more_low, more_high), (less, less_low, less_high) = of_members, held_out
    difference = more - less
    return (
        difference,
        difference - math.hypot(more - more_low, less_high - less),
        difference + math.hypot(more_high - more, less - less_low),
    )


def gains(on: Losses, off: Losses, is_member: NDArray[np.bool_], groups: Sequence[str]) -> dict[str, float]:
    """``held_out_gain`` of the non-members, ``member_gain``, and ``learnt_by_heart`` between them, with intervals.

    Args:
        on, off: [n, T].
        is_member: [n].
        groups: [n].
    """
    falls, names = log_falls(on, off), np.asarray(groups, dtype=str)
    held_out, of_members = (gain_with_interval(falls[side], names[side].tolist()) for side in (~is_member, is_member))
    shares = {
        "held_out_gain": held_out,
        "member_gain": of_members,
        "learnt_by_heart": beyond(of_members, held_out),
    }
    told = {
        f"{name}{end}": value
        for name, share in shares.items()
        for end, value in zip(("", "_low", "_high"), share, strict=True)
    }
    return told | {"held_out_pictures": float((~is_member).sum()), "member_pictures": float(is_member.sum())}
