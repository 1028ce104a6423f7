"""FLOP of a UNet pass and peak FLOP/s of a GPU, for the model FLOP utilisation (MFU)."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from library.diffusion.conditioning import blank_conditioning

# Dense bf16 peak in FLOP/s from the vendor's data sheets; other cards get no figure.
PEAKS = {"A100": 312e12, "H100 80GB HBM3": 989e12, "H200": 989e12, "RTX 4090": 165e12}
# Forward and backward through frozen weights, as a multiple of forward (measured on SD 1.5, rank 16); checkpointing
# computes the forward pass once more.
STEP, CHECKPOINTED_STEP = 2.15, 3.15


def forward_flops(unet: Any, latent_size: tuple[int, int]) -> float:
    """FLOP (multiply and add = 2) of one forward pass for one image, counted on a copy without data.

    Args:
        latent_size: (height, width) of the latent.
    """
    with torch.device("meta"), torch.no_grad():
        copy = UNet2DConditionModel.from_config(unet.config)
        sample = torch.empty(1, unet.config.in_channels, *latent_size)
        with FlopCounterMode(display=False) as counter:
            blank_conditioning(unet.config).predicted(copy, sample, torch.zeros(1, dtype=torch.long))
    return float(counter.get_total_flops())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak of a GPU in half precision, FLOP/s; None if it is not known."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for card, peak in PEAKS.items() if card in name), None)
