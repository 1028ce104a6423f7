"""A frozen latent diffusion model: its parts, their sizes, and the hashes that identify it."""

from dataclasses import dataclass
from typing import Any

import torch

from library.diffusion.families.family import Family, Version


@dataclass
class LatentDiffusion:
    """The parts of a frozen latent diffusion model, and the hashes that identify its files."""

    tokenizer: Any  # one; of SDXL a list of two, as kohya's module protocol passes text encoders
    text_encoder: Any
    vae: Any  # in fp32 until ``prepare``
    unet: Any
    scheduler: Any  # DDPMScheduler: the noise schedule and the prediction type
    fingerprint: str  # SHA-256 (hex) over the weight files, including a replaced VAE's
    file_hashes: dict[str, str]  # kohya's ss_sd_model_hash and ss_new_sd_model_hash; empty for a folder
    family: Family
    states_its_target: bool = True  # noise or velocity; most single files do not

    def text_encoders(self) -> list[Any]:
        """The text encoders in the order of the family's ``texts``."""
        return in_a_list(self.text_encoder)

    def tokenizers(self) -> list[Any]:
        """The tokenizers in the same order."""
        return in_a_list(self.tokenizer)

    def latent_factor(self) -> int:
        """Pixels per latent side."""
        return latent_factor(self.vae)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """[C, h, w] of the latents for a training size (width, height) in pixels."""
        factor = self.latent_factor()
        return (self.unet.config.in_channels, size[1] // factor, size[0] // factor)

    def side_multiple(self) -> int:
        """Pixel sides must be multiples of this, so that the sizes of the UNet's levels match."""
        return self.latent_factor() * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def predicts_velocity(self) -> bool:
        """Whether the UNet predicts velocity (arXiv 2202.00512) instead of noise."""
        return bool(self.scheduler.config.prediction_type == "v_prediction")

    def version(self) -> Version:
        """How a LoRA's metadata names this model."""
        return self.family.version_of(velocity=self.predicts_velocity())

    def schedule_summary(self) -> str:
        """What the UNet predicts, and whether its schedule is rescaled to zero SNR; a key of answer caches."""
        rescaled = bool(self.scheduler.config.get("rescale_betas_zero_snr"))
        return f"{self.scheduler.config.prediction_type}{' zero SNR' if rescaled else ''}"

    def prepare(self, device: torch.device, *, full_precision_vae: bool, gradient_checkpointing: bool) -> None:
        """Move the parts to the device for training, the VAE in a dtype in which it does not overflow.

        Args:
            full_precision_vae: keep the VAE in fp32, whatever the dtype of the other parts.
            gradient_checkpointing: recompute activations of UNet and text encoder in the backward pass.
        """
        for part in (*self.text_encoders(), self.unet):
            part.to(device)
        self.vae.to(device, vae_dtype(self.unet.dtype, device, full_precision=full_precision_vae))
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.unet.train()  # no part has dropout or batch statistics, but checkpointing needs the training mode
            for text_encoder in self.text_encoders():
                checkpoint_text_encoder(text_encoder)
                text_encoder.train()


def in_a_list(one_or_more: Any) -> list[Any]:
    """One part, or the list of several."""
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]


def alone_or_all(parts: list[Any]) -> Any:
    """One part as it is, several as a list."""
    return parts[0] if len(parts) == 1 else parts


def checkpoint_text_encoder(text_encoder: Any) -> None:
    """Recompute activations in the backward pass, without reentrant checkpointing.

    The reentrant kind, transformers' default before version 5, gives no gradient if no input requires one, which is so
    for a LoRA behind frozen embeddings.
    """
    renamed = hasattr(text_encoder, "activation_checkpointing_enable")  # the older name warns in 5.23
    enable = text_encoder.activation_checkpointing_enable if renamed else text_encoder.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def latent_factor(vae: Any) -> int:
    """Pixels per latent side of a VAE."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def vae_dtype(training: torch.dtype, device: torch.device, *, full_precision: bool) -> torch.dtype:
    """The training dtype, but never fp16, in which some VAEs overflow: bf16 if the GPU supports it, else fp32."""
    if full_precision:
        return torch.float32
    if training != torch.float16:
        return training
    return torch.bfloat16 if has_bf16(device) else torch.float32


def has_bf16(device: torch.device) -> bool:
    """Whether a GPU computes in bf16 itself (compute capability 8.0); torch's own answer counts slow emulation."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
