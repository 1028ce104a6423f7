"""What a change is to raise: the denoising error of a picture, the distance of its code, the error by its text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from library.audit.queries.audited_model import AuditedModel, noised
from library.audit.queries.error_statistics import noise_for
from library.audit.targets.candidate_table import Picture
from library.diffusion.conditioning import Conditioning

TIMESTEPS = (200, 600)  # of 1000: where detail, and where the layout is decided
KNOWN, FRESH = 0, 2  # numbers of noises: those that the ascent sees, and others to judge its result by


def encoder_of(vae: Any) -> Callable[[Tensor], Tensor]:
    """A function from pixels [B, 3, H, W] in 0..1 to scaled codes (posterior mean) [B, 4, h, w] with a gradient."""

    def encode(pixels: Tensor) -> Tensor:
        mean: Tensor = vae.encode((2 * pixels - 1).to(vae.device, vae.dtype)).latent_dist.mean
        return mean.float() * float(vae.config.scaling_factor)

    return encode


def noises_of(batch: Sequence[Picture], draw: int, device: torch.device) -> list[tuple[int, Tensor]]:
    """(timestep, noise [B, 4, h, w]): each picture's own, whatever the model, so that models are compared under one."""
    shape = tuple(batch[0].latent.shape)
    return [
        (timestep, torch.stack([noise_for(one.identity, timestep, draw, shape) for one in batch]).to(device))
        for timestep in TIMESTEPS
    ]


@dataclass(frozen=True)
class DenoisingLoss:
    """Mean squared error of the predicted noise, mean over fixed timesteps and noises: [B]."""

    audited: AuditedModel
    noises: Sequence[tuple[int, Tensor]]  # timestep, [B, 4, h, w]

    def of(self, latents: Tensor, conditions: Conditioning) -> Tensor:
        """[B] losses of scaled latents [B, 4, h, w]."""
        return torch.stack([self._at(latents, conditions, *one) for one in self.noises]).mean(0)

    def gradients(self, latents: Tensor, conditions: Conditioning, of: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """[B] losses, and their gradient by each of the tensors in ``of``; one timestep at a time, to save memory."""
        losses, sums = torch.zeros(len(latents), device=latents.device), [torch.zeros_like(one) for one in of]
        for one in self.noises:
            found = self._at(latents, conditions, *one) / len(self.noises)
            for place, part in enumerate(torch.autograd.grad(found.sum(), list(of))):
                sums[place] = sums[place] + part
            losses = losses + found.detach()
        return losses, sums

    def _at(self, latents: Tensor, conditions: Conditioning, timestep: int, noise: Tensor) -> Tensor:
        asked = noised(latents, noise, self.audited.alpha_bar(timestep))
        timesteps = torch.full((len(latents),), timestep, dtype=torch.int64, device=latents.device)
        return (self.audited.predict_noise(asked, timesteps, conditions).float() - noise).square().mean((1, 2, 3))


@dataclass(frozen=True)
class LossOfPixels:
    """The denoising loss as a function of the pixels: through the VAE's code, under fixed conditions."""

    encode: Callable[[Tensor], Tensor]
    loss: DenoisingLoss
    conditions: Conditioning  # B rows

    @torch.no_grad()
    def values(self, pixels: Tensor) -> Tensor:
        """[B]"""
        return self.loss.of(self.encode(pixels), self.conditions)

    def ascent(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B] and the gradient [B, 3, H, W]: d loss / d code, carried back through the VAE once."""
        pixels = pixels.detach().requires_grad_(True)
        codes = self.encode(pixels)
        free = codes.detach().requires_grad_(True)
        losses, (by_code,) = self.loss.gradients(free, self.conditions, [free])
        (gradient,) = torch.autograd.grad(codes, pixels, by_code)
        return losses, gradient


@dataclass(frozen=True)
class CodeDistance:
    """How far the VAE's code moves: root mean square of the difference over that of the code itself. No UNet in it."""

    encode: Callable[[Tensor], Tensor]
    codes: Tensor  # [B, 4, h, w] of the pictures as they are

    @torch.no_grad()
    def values(self, pixels: Tensor) -> Tensor:
        """[B]"""
        return self._of(self.encode(pixels))

    def ascent(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """[B] and the gradient [B, 3, H, W]; at the picture itself there is none, so an ascent starts elsewhere."""
        pixels = pixels.detach().requires_grad_(True)
        distances = self._of(self.encode(pixels))
        (gradient,) = torch.autograd.grad(distances.sum(), pixels)
        return distances.detach(), gradient

    def _of(self, codes: Tensor) -> Tensor:
        moved = (codes - self.codes).flatten(1).square().mean(1)
        return (moved / self.codes.flatten(1).square().mean(1)).clamp_min(1e-20).sqrt()


@dataclass(frozen=True)
class LossOfText:
    """The denoising loss as a function of the text states, the picture as it is; other conditions stay."""

    loss: DenoisingLoss
    latents: Tensor  # [B, 4, h, w]
    conditions: Conditioning  # B rows

    @torch.no_grad()
    def values(self, states: Tensor) -> Tensor:
        """[B]"""
        return self.loss.of(self.latents, replace(self.conditions, states=states))

    def ascent(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """[B] and the gradient [B, T, D]."""
        states = states.detach().requires_grad_(True)
        losses, (gradient,) = self.loss.gradients(self.latents, replace(self.conditions, states=states), [states])
        return losses, gradient
