"""What a LoRA learnt that generalises: how far the denoising error of held-out pictures falls, with its interval."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Losses = NDArray[np.float64]


def log_falls(on: Losses, off: Losses) -> Losses:
    """[n] mean over timesteps of log(off / on): how far each picture's error falls where the LoRA is on.

    Args:
        on, off: [n, T] mean squared errors under the same noise.
    """
    return np.log(np.maximum(off, 1e-12) / np.maximum(on, 1e-12)).mean(axis=1)


def gain_with_interval(falls: Losses, groups: Sequence[str], level: float = 0.95) -> tuple[float, float, float]:
    """1 - exp(-mean fall), the relative fall of the error, and its interval (t over the means of whole groups).

    Args:
        falls: [n] of ``log_falls``.
        groups: [n]; pictures of one group are not independent.
    """
    mean = float(falls.mean())
    _, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    count = int(place.max()) + 1
    if count < 2:
        return 1 - float(np.exp(-mean)), float("-inf"), 1.0
    sums = np.bincount(place, falls - mean)  # of each group's departures: the error of a mean of unequal groups
    error = float(np.sqrt(count / (count - 1) * (sums**2).sum())) / len(falls)
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    low, middle, high = (1 - float(np.exp(-value)) for value in (mean - reach, mean, mean + reach))
    return middle, low, high


def falls_since(first: tuple[Losses, Losses], members: Losses, non_members: Losses) -> tuple[Losses, Losses]:
    """What of each picture's fall its fall in an earlier look does not explain (analysis of covariance).

    Some pictures are easier to learn than others, and which of them became members is luck; what they fell by before
    anything was learnt by heart tells how easy they are. The slope is that within the sides, so that a rise of all
    members takes nothing from itself.

    Args:
        first: falls of members [n] and non-members [m] in the earlier look.
        members, non_members: [n] and [m] falls now.
    """
    pairs = [(now, before - before.mean()) for now, before in zip((members, non_members), first, strict=True)]
    spread = sum(float(before @ before) for _, before in pairs)
    slope = sum(float((now - now.mean()) @ before) for now, before in pairs) / spread if spread > 0 else 0.0
    inside, outside = (now - slope * before for now, before in zip((members, non_members), first, strict=True))
    return inside, outside


def gains(on: Losses, off: Losses, is_member: NDArray[np.bool_], groups: Sequence[str]) -> dict[str, float]:
    """``held_out_gain`` of the non-members with its interval; the members' gain, and what of it is learnt by heart.

    Args:
        on, off: [n, T].
        is_member: [n].
        groups: [n].
    """
    falls, names = log_falls(on, off), np.asarray(groups, dtype=str)
    gain, low, high = gain_with_interval(falls[~is_member], names[~is_member].tolist())
    of_members = gain_with_interval(falls[is_member], names[is_member].tolist())[0]
    return {
        "held_out_gain": gain,
        "held_out_gain_low": low,
        "held_out_gain_high": high,
        "held_out_pictures": float((~is_member).sum()),
        "member_gain": of_members,
        "learnt_by_heart": of_members - gain,
    }
