"""Weights of the adaptation loss by timestep: min-SNR and debiased estimation, for either kind of target."""

from typing import Any

import torch
from torch import Tensor


def signal_to_noise(scheduler: Any, timesteps: Tensor) -> Tensor:
    """SNR(t) = a_t / (1 - a_t) of the noise schedule, [B]."""
    signal = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return signal / (1 - signal)


def loss_weights(scheduler: Any, timesteps: Tensor, *, min_snr_gamma: float | None, debiased: bool) -> Tensor:
    """Weight of each image's loss, [B]; ones where nothing is asked for.

    Args:
        timesteps: [B].
        min_snr_gamma: min(SNR, g) / SNR for noise, / (SNR + 1) for velocity (arXiv 2303.09556 eq. 4); unset: no weight.
        debiased: 1 / sqrt(SNR) for noise, 1 / (SNR + 1) for velocity, SNR capped at 1000 (arXiv 2310.08442).
    """
    snr = signal_to_noise(scheduler, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    weights = torch.ones_like(snr)
    if min_snr_gamma is not None:
        weights = weights * snr.clamp(max=min_snr_gamma) / (snr + 1 if velocity else snr)
    if debiased:
        capped = snr.clamp(max=1000)
        weights = weights * (1 / (capped + 1) if velocity else capped.rsqrt())
    return weights
