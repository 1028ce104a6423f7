"""The arithmetic of DP-SGD: units by Poisson sampling, clipped gradients, their sum and its noise."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from library.seeding import StreamKey, normals, uniforms


def sampled(units: int, rate: float, key: StreamKey, step: int) -> list[int]:
    """The units of one step: each enters by a coin of its own, so that their number varies and may be 0."""
    coins = uniforms(key, units, "units of the step", step)
    return [unit for unit in range(units) if coins[unit] < rate]


def packed(units: Sequence[int], sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Units in their order, in passes of at most ``most`` pictures; no unit is divided.

    Args:
        sizes: pictures of each unit, at most ``most``.
    """
    together: list[int] = []
    for unit in units:
        if together and sum(sizes[one] for one in together) + sizes[unit] > most:
            yield together
            together = []
        together.append(unit)
    if together:
        yield together


def clipped_sum(gradients: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    """Sum [P] of gradients [U, P], each scaled down to the norm ``limit``; and their norms [U] before.

    A gradient that is not finite counts as zero: what a unit adds stays bounded whatever its picture holds.
    """
    norms = gradients.norm(dim=1)
    is_finite = norms.isfinite()
    factors = torch.where(is_finite, (limit / norms.clamp(min=1e-30)).clamp(max=1.0), 0.0)
    return factors @ torch.where(is_finite[:, None], gradients, 0.0), norms


def noise(count: int, deviation: float, key: StreamKey, step: int) -> Tensor:
    """Gaussian noise [P] of one step: a function of the run's secret, so every process draws the same numbers."""
    if deviation == 0:
        return torch.zeros(count)
    return deviation * torch.from_numpy(normals(key, count, "noise of the step", step)).float()
