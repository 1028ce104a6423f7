"""The frozen latent diffusion model: loading, text, noise, denoising error, loss, previews, memory."""

from library.optional_packages import hide_broken

hide_broken("bitsandbytes", "xformers")  # before any module of this room imports diffusers
