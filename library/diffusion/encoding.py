"""Pixels to the posterior of the VAE, with one more try in fp32 where half precision overflows."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def posterior_encoder(vae: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A function from pixels [B, 3, H, W] in -1 .. 1 to mean and deviation, each [B, C, h, w] fp32, unscaled.

    What is not finite in fp32 either is given back as it is: the caller knows which picture it was.
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
