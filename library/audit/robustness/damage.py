"""What a change of the picture does to drawings that are made from it (img2img)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.images.generated import GUIDANCE, ddim_timesteps, denoised
from library.audit.queries.audited_model import AuditedModel, noised
from library.audit.targets.candidate_table import Picture
from library.diffusion.conditioning import Conditioning
from library.seeding import stream

STRENGTH = 0.5  # share of the way to pure noise, as img2img's "strength"


@dataclass(frozen=True)
class Redrawing:
    """Draws pictures anew from themselves, under fixed noise and captions (SDEdit, arXiv 2108.01073)."""

    audited: AuditedModel
    encode: Callable[[Tensor], Tensor]  # pixels in 0..1 -> scaled codes
    decode: Callable[[Tensor], Tensor]  # scaled codes -> pixels in 0..1
    noise: Tensor  # [B, 4, h, w]
    both: Conditioning  # 2 B rows, of the captions, then of empty ones
    steps: int  # DDIM steps of a whole drawing; STRENGTH of them are made

    @torch.no_grad()
    def of(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] drawings in 0..1."""
        timesteps = ddim_timesteps(self.audited, self.steps)
        timesteps = timesteps[len(timesteps) - max(1, round(STRENGTH * len(timesteps))) :]
        here = noised(self.encode(pixels), self.noise, self.audited.alpha_bar(timesteps[0]))
        return self.decode(denoised(self.audited, here, self.both, timesteps, GUIDANCE))


def redrawing_noise(batch: Sequence[Picture], device: torch.device) -> Tensor:
    """[B, 4, h, w] each picture's own, whatever the model."""
    shape = tuple(batch[0].latent.shape)
    return torch.stack([torch.randn(shape, generator=stream("img2img", one.identity)) for one in batch]).to(device)


def moved(drawn: Tensor, other: Tensor) -> Tensor:
    """[B] root mean square of the difference of two drawings, in the unit of their pixels (0..1)."""
    return (drawn - other).flatten(1).square().mean(1).sqrt()
