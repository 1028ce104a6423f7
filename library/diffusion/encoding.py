"""Pixels to the posterior of the VAE, with one more try in fp32 where half precision overflows."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def posterior_encoder(vae: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function from pixels [B, 3, H, W] in -1 .. 1 to mean and deviation, each [B, C, h, w] fp32, unscaled."""

    @torch.no_grad()
    def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        if not torch.isfinite(posterior.mean).all() and vae.dtype != torch.float32:
            logger.warning("the VAE overflowed in %s; these images are encoded again in fp32", vae.dtype)
            dtype = vae.dtype
            posterior = vae.float().encode(pixels.to(vae.device)).latent_dist
            vae.to(dtype)
        return posterior.mean.float(), posterior.std.float()

    return encode
