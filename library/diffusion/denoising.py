"""How wrong the model's prediction is: the squared-error map that feeds the adaptation loss and the proxy attacker."""

from typing import Any

import torch
from torch import Tensor

from library.diffusion.text import encode_text


class Denoiser:
    """A frozen latent diffusion model, with whatever a network has injected into it."""

    def __init__(self, unet: Any, text_encoder: Any, scheduler: Any, *, latent_scale: float, clip_skip: int) -> None:
        self.unet = unet
        self.text_encoder = text_encoder
        self.scheduler = scheduler
        self.latent_scale = latent_scale  # 0.18215 for SD 1.x
        self.clip_skip = clip_skip

    def error_map(
        self, latents: Tensor, tokens: Tensor, generator: torch.Generator, token_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Squared error [B, C, h, w] fp32 at one random timestep and noise per image, and the timesteps [B].

        arXiv 2402.11989 eq. 1.

        Args:
            latents: [B, C, h, w] unscaled latents.
            tokens: [B, pieces, 77].
            generator: CPU generator; draws the timesteps, then the noise.
            token_weights: [B, pieces, 77] of the text states; None where all are 1.
        """
        timesteps = torch.randint(0, self.timestep_count(), (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        return self.error_map_at(latents, tokens, timesteps, noise, token_weights), timesteps

    def error_map_at(
        self, latents: Tensor, tokens: Tensor, timesteps: Tensor, noise: Tensor, token_weights: Tensor | None = None
    ) -> Tensor:
        """The same at given timesteps [B] and noise [B, C, h, w]; the target is the model's own (noise or velocity)."""
        device = self.unet.device
        scaled = (latents * self.latent_scale).to(device)
        timesteps, noise = timesteps.to(device), noise.to(device)
        noisy = self.scheduler.add_noise(scaled, noise, timesteps)
        context = encode_text(self.text_encoder, tokens.to(device), self.clip_skip, token_weights)
        prediction = self.unet(noisy.to(self.unet.dtype), timesteps, context.to(self.unet.dtype)).sample
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(scaled, noise, timesteps)
        else:
            target = noise
        return (prediction.float() - target.float()).square()

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
