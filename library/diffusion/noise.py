"""The noise that training adds to latents: timesteps, offset, pyramid and input perturbation."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseRules:
    """Timesteps and noise of training; None or 0 = off. Validation uses plain noise at all timesteps."""

    noise_offset: float | None
    noise_offset_random_strength: bool
    adaptive_noise_scale: float | None
    multires_noise_iterations: int | None
    multires_noise_discount: float
    ip_noise_gamma: float | None
    ip_noise_gamma_random_strength: bool
    min_timestep: int | None
    max_timestep: int | None  # exclusive


class Draw(NamedTuple):
    """The random draws of one pass."""

    timesteps: Tensor  # [B]
    noise: Tensor  # [B, C, h, w], the target of a noise model
    perturbation: Tensor | None  # [B, C, h, w] more noise, on the UNet's input only


def draw_noise(rules: NoiseRules, latents: Tensor, timestep_count: int, generator: torch.Generator) -> Draw:
    """Timesteps, then noise and what the rules add to it, for scaled latents [B, C, h, w] on the CPU.

    Args:
        timestep_count: length of the noise schedule.
        generator: CPU generator of one named purpose.
    """
    first = rules.min_timestep or 0
    end = timestep_count if rules.max_timestep is None else min(rules.max_timestep, timestep_count)
    timesteps = torch.randint(first, end, (len(latents),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    if rules.noise_offset:
        noise = noise + offset(rules, latents, generator)
    if rules.multires_noise_iterations:
        noise = pyramid(noise, rules.multires_noise_iterations, rules.multires_noise_discount, generator)
    perturbation = None
    if rules.ip_noise_gamma:
        strength = _strength(rules.ip_noise_gamma, rules.ip_noise_gamma_random_strength, len(latents), generator)
        perturbation = strength * torch.randn(latents.shape, generator=generator)
    return Draw(timesteps, noise, perturbation)


def offset(rules: NoiseRules, latents: Tensor, generator: torch.Generator) -> Tensor:
    """One normal constant per image and channel, [B, C, 1, 1], times max(0, noise_offset + scale * |mean latent|).

    The scale is adaptive_noise_scale, the mean is that of the channel; a random strength is uniform in [0,
    noise_offset), one for each image (kohya draws one for each batch: the same for a single image).
    """
    assert rules.noise_offset is not None
    size: Any = _strength(rules.noise_offset, rules.noise_offset_random_strength, len(latents), generator)
    if rules.adaptive_noise_scale is not None:
        size = size + rules.adaptive_noise_scale * latents.mean(dim=(2, 3), keepdim=True).abs()
        size = size.clamp(min=0)
    return size * torch.randn(*latents.shape[:2], 1, 1, generator=generator)


def pyramid(noise: Tensor, iterations: int, discount: float, generator: torch.Generator) -> Tensor:
    """Pyramid noise: noise + sum_i discount^i * enlarged(coarser noise), each image brought to unit deviation.

    Level i is smaller by r^i, with r drawn uniformly from [2, 4) at each level, as in kohya; it ends at side 1.
    kohya divides by the deviation of the whole batch: the same for a single image.
    """
    height, width = noise.shape[2:]
    total = noise
    for level in range(iterations):
        factor = (2 + 2 * torch.rand((), generator=generator).item()) ** level
        side = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = torch.randn(*noise.shape[:2], *side, generator=generator)
        larger = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        total = total + larger * discount**level
        if 1 in side:
            break
    return total / total.std(dim=(1, 2, 3), keepdim=True)


def _strength(size: float, at_random: bool, batch: int, generator: torch.Generator) -> float | Tensor:
    """The size itself, or uniform in [0, size) for each image, [B, 1, 1, 1]."""
    return torch.rand(batch, 1, 1, 1, generator=generator) * size if at_random else size
