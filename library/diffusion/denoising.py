"""The error of the model's prediction; its square feeds the adaptation loss and the proxy attacker."""

from typing import Any

import torch
from torch import Tensor

from library.diffusion.conditioning import Conditioning
from library.diffusion.families.recognise import family_of_unet
from library.diffusion.noise import Draw


class Denoiser:
    """A frozen latent diffusion model with the network that is injected into it."""

    def __init__(self, unet: Any, text_encoder: Any, scheduler: Any, *, latent_scale: float, clip_skip: int) -> None:
        self.unet = unet
        self.text_encoder = text_encoder
        self.scheduler = scheduler
        self.latent_scale = latent_scale  # 0.18215 for SD 1.x
        self.clip_skip = clip_skip

    def context(self, tokens: Tensor, token_weights: Tensor | None) -> Conditioning:
        """The states of captions in the UNet's dtype, still without a framing.

        Args:
            tokens: [B, pieces, 77], of two text encoders [B, 2, pieces, 77].
            token_weights: [B, pieces, 77], factors of the states; None = 1 everywhere.
        """
        encode = family_of_unet(self.unet.config).encode
        states = encode(self.text_encoder, tokens.to(self.unet.device), self.clip_skip, token_weights)
        return states.cast(self.unet.dtype)

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents in the UNet's scale, [B, C, h, w]."""
        return latents * self.latent_scale

    def difference(self, scaled: Tensor, context: Conditioning, draw: Draw) -> Tensor:
        """Prediction - target, [B, C, h, w] fp32; its square is the error map of arXiv 2402.11989 eq. 1.

        Args:
            scaled: [B, C, h, w] scaled latents.
            context: of the same rows.
        """
        return self.prediction(scaled, context, draw) - self.target(scaled, draw)

    def prediction(self, scaled: Tensor, context: Conditioning, draw: Draw) -> Tensor:
        """What the model predicts, [B, C, h, w] fp32; the arguments are those of ``difference``."""
        device = self.unet.device
        scaled, timesteps, noise = scaled.to(device), draw.timesteps.to(device), draw.noise.to(device)
        added = noise if draw.perturbation is None else noise + draw.perturbation.to(device)
        noisy = self.scheduler.add_noise(scaled, added, timesteps)
        return context.to(device).predicted(self.unet, noisy.to(self.unet.dtype), timesteps).float()

    def target(self, scaled: Tensor, draw: Draw) -> Tensor:
        """Noise or velocity, as the model predicts, [B, C, h, w] fp32; without a perturbation of the input."""
        device = self.unet.device
        scaled, timesteps, noise = scaled.to(device), draw.timesteps.to(device), draw.noise.to(device)
        if self.scheduler.config.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(scaled, noise, timesteps).float()
        return noise.float()

    def timestep_count(self) -> int:
        """Length of the noise schedule, 1000 for Stable Diffusion."""
        return int(self.scheduler.config.num_train_timesteps)


def fixed_draws(
    generators: list[torch.Generator], draw: int, draws: int, shape: tuple[int, ...], steps: int
) -> tuple[Tensor, Tensor]:
    """The ``draw``-th of ``draws`` fixed (timestep, noise) pairs per image, timesteps spread over the whole range.

    Args:
        generators: one per image, made from the image's identity, so that the draw does not depend on the batch.
        shape: latent shape [C, h, w].
        steps: length of the noise schedule.

    Returns:
        timesteps [B], noise [B, C, h, w].
    """
    places = torch.stack([torch.rand((), generator=generator) for generator in generators])
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    return ((draw + places) / draws * steps).long().clamp(max=steps - 1), noise
