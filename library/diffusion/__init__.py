"""The frozen latent diffusion model: loading, text, denoising error, previews, memory."""
