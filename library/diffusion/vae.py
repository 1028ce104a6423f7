"""The VAE: pixels to its posterior and latents to pixels, in fp32 if half precision overflows."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def posterior_encoder(vae: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function from pixels [B, 3, H, W] in -1 .. 1 to mean and deviation, each [B, C, h, w] fp32, unscaled.

    Values that are not finite in fp32 either are returned unchanged: the caller knows the picture's name.
    """

    @torch.no_grad()
    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = _posterior(vae, pixels)
        bad = ~(mean.isfinite() & std.isfinite()).flatten(1).all(1)  # [B]
        if bad.any() and vae.dtype != torch.float32:
            dtype = vae.dtype
            logger.warning("the VAE overflowed in %s; %d images are encoded again in fp32", dtype, int(bad.sum()))
            mean[bad], std[bad] = _posterior(vae.float(), pixels[bad.to(pixels.device)])
            vae.to(dtype)
        return mean, std

    return encode


def _posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    return posterior.mean.float(), posterior.std.float()


def decoder_of(vae: Any) -> Callable[[Tensor], Tensor]:
    """A function from scaled latents [B, 4, h, w] to pixels [B, 3, H, W] in 0 .. 1; NaN stays NaN."""

    @torch.no_grad()
    def decode(latents: Tensor) -> Tensor:
        return (_pixels(vae, latents) / 2 + 0.5).clamp(0, 1)

    return decode


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] in -1 .. 1 of scaled latents, for display: values that are not finite become grey."""
    pixels = _pixels(vae, latents)
    if not pixels.isfinite().all():
        logger.warning(
            "a preview holds NaN or infinity and is shown in grey: the LoRA has diverged, or the base model "
            "cannot make this picture"
        )
    return torch.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)


def _pixels(vae: Any, latents: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] fp32 of scaled latents, in the VAE's own dtype, and again in fp32 if that overflows."""
    with torch.autocast(vae.device.type, enabled=False):
        pixels = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
        if not pixels.isfinite().all() and vae.dtype != torch.float32:
            logger.warning("the VAE overflowed in %s; these images are decoded again in fp32", vae.dtype)
            dtype = vae.dtype
            pixels = vae.float().decode(latents.to(vae.device).float() / vae.config.scaling_factor).sample
            vae.to(dtype)
    return pixels.float()
