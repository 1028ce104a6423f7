"""The frozen latent diffusion model: loading, text, denoising error, previews, memory."""

from library.optional_packages import hide_broken

hide_broken("bitsandbytes", "xformers")  # before any module of this room imports diffusers
