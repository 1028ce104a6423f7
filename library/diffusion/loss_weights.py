"""Weights of the adaptation loss by timestep, each for the kind of target that it was made for."""

from typing import Any

import torch
from torch import Tensor

MOST_SNR = 1000.0  # where the clean end would make a weight vanish or explode


def signal_to_noise(scheduler: Any, timesteps: Tensor) -> Tensor:
    """SNR(t) = a_t / (1 - a_t) of the noise schedule, [B]."""
    signal = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return signal / (1 - signal)


def min_snr_weight(snr: Tensor, gamma: float, *, velocity: bool) -> Tensor:
    """min(SNR, g) / SNR for noise, / (SNR + 1) for velocity (arXiv 2303.09556 eq. 4); 1 at SNR 0 for noise."""
    return snr.clamp(max=gamma) / (snr + 1) if velocity else (gamma / snr).clamp(max=1)


def debiased_weight(snr: Tensor, *, velocity: bool) -> Tensor:
    """1 / sqrt(SNR) for noise, 1 / (SNR + 1) for velocity, SNR capped at 1000 (arXiv 2310.08442)."""
    capped = snr.clamp(max=MOST_SNR)
    return 1 / (capped + 1) if velocity else capped.rsqrt()


def velocity_share(snr: Tensor) -> Tensor:
    """SNR / (SNR + 1): what a velocity loss is multiplied by to weigh timesteps as a noise loss does."""
    capped = snr.clamp(max=MOST_SNR)
    return capped / (capped + 1)


def loss_weights(
    scheduler: Any, timesteps: Tensor, *, min_snr_gamma: float | None, debiased_estimation_loss: bool,
    scale_v_pred_loss_like_noise_pred: bool, v_pred_like_loss: float | None,
) -> Tensor:  # fmt: skip
    """Product of the weights asked for, [B]; ones where nothing is asked for. Arguments are the options' names.

    Args:
        timesteps: [B].
        v_pred_like_loss: w; factor 1 + w (SNR + 1) / SNR, SNR capped at 1000.

    Raises:
        ValueError: a weight that is not finite, which takes a noise model at SNR 0.
    """
    snr = signal_to_noise(scheduler, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    weights = torch.ones_like(snr)
    if min_snr_gamma:
        weights = weights * min_snr_weight(snr, min_snr_gamma, velocity=velocity)
    if scale_v_pred_loss_like_noise_pred:
        weights = weights * velocity_share(snr)
    if v_pred_like_loss:
        weights = weights * (1 + v_pred_like_loss / velocity_share(snr))
    if debiased_estimation_loss:
        weights = weights * debiased_weight(snr, velocity=velocity)
    if timesteps.device.type == "cpu" and not torch.isfinite(weights).all():
        raise ValueError(f"the loss weight at timesteps {timesteps.tolist()} is not finite: SNR {snr.tolist()}")
    return weights
