"""The adaptation loss of a batch: per element, masked, averaged, weighted by timestep."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_SNR = 1000.0  # beyond it, a weight at the clean end would vanish or explode


@dataclass(frozen=True)
class LossRules:
    """How an error becomes the adaptation loss L; the fields are options."""

    loss_type: str
    huber_schedule: str
    huber_c: float
    huber_scale: float
    min_snr_gamma: float | None
    debiased_estimation_loss: bool
    scale_v_pred_loss_like_noise_pred: bool
    v_pred_like_loss: float | None


def adaptation_loss(
    difference: Tensor, timesteps: Tensor, scheduler: Any, rules: LossRules, weights: Tensor, mask: Tensor | None
) -> Tensor:
    """L [], the mean of ``adaptation_losses`` over the batch."""
    return adaptation_losses(difference, timesteps, scheduler, rules, weights, mask).mean()


def adaptation_losses(
    difference: Tensor, timesteps: Tensor, scheduler: Any, rules: LossRules, weights: Tensor, mask: Tensor | None
) -> Tensor:
    """[B] in kohya's order: per element, mask, mean over C, h, w, sample weight, weight by timestep.

    Args:
        difference: [B, C, h, w] prediction - target.
        timesteps: [B] on the CPU.
        weights: [B] of the images.
        mask: [B, 1, h, w] in 0 .. 1; None = 1 everywhere.
    """
    elements = element_loss(difference, timesteps, scheduler, rules)
    if mask is not None:
        elements = elements * mask.to(elements.device)
    by_timestep = loss_weights(
        scheduler,
        timesteps,
        min_snr_gamma=rules.min_snr_gamma,
        debiased_estimation_loss=rules.debiased_estimation_loss,
        scale_v_pred_loss_like_noise_pred=rules.scale_v_pred_loss_like_noise_pred,
        v_pred_like_loss=rules.v_pred_like_loss,
    )
    return elements.mean(dim=(1, 2, 3)) * (weights * by_timestep).to(elements.device)


def element_loss(difference: Tensor, timesteps: Tensor, scheduler: Any, rules: LossRules) -> Tensor:
    """d^2, |d|, or with r = sqrt(d^2 + c^2) - c: 2 c r (huber), 2 r (smooth_l1); [B, C, h, w].

    Pseudo-Huber as in kohya (arXiv 2403.16728): the first tends to d^2 for large c, the second to 2 |d| for small c.
    """
    if rules.loss_type == "l2":
        return difference.square()
    if rules.loss_type == "l1":
        return difference.abs()
    threshold = huber_threshold(timesteps, scheduler, rules).to(difference.device)[:, None, None, None]
    bowl = 2 * ((difference.square() + threshold.square()).sqrt() - threshold)
    return threshold * bowl if rules.loss_type == "huber" else bowl


def huber_threshold(timesteps: Tensor, scheduler: Any, rules: LossRules) -> Tensor:
    """c(t) [B] of the pseudo-Huber losses: from 1 at the clean end to huber_c at the noisy one.

    constant: s c. exponential: s c^(t / T). snr: (1 - c) / (1 + sigma_t)^2 + c with sigma = sqrt((1 - a) / a), which
    does not use the scale s = huber_scale, as in kohya.
    """
    if rules.huber_schedule == "constant":
        return torch.full(timesteps.shape, rules.huber_c * rules.huber_scale)
    if rules.huber_schedule == "exponential":
        share = timesteps.cpu() / scheduler.config.num_train_timesteps
        return rules.huber_scale * torch.exp(math.log(rules.huber_c) * share)
    signal = scheduler.alphas_cumprod.cpu()[timesteps.cpu()]
    sigma = ((1 - signal) / signal).sqrt()
    return (1 - rules.huber_c) / (1 + sigma) ** 2 + rules.huber_c


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
    """SNR / (SNR + 1): the factor that gives a velocity loss the timestep weights of a noise loss."""
    capped = snr.clamp(max=MOST_SNR)
    return capped / (capped + 1)


def loss_weights(
    scheduler: Any,
    timesteps: Tensor,
    *,
    min_snr_gamma: float | None,
    debiased_estimation_loss: bool,
    scale_v_pred_loss_like_noise_pred: bool,
    v_pred_like_loss: float | None,
) -> Tensor:
    """Product of the selected weights, [B]; ones if none is selected. The arguments are options.

    Args:
        timesteps: [B].
        v_pred_like_loss: w; factor 1 + w (SNR + 1) / SNR, SNR capped at 1000.

    Raises:
        ValueError: a weight that is not finite, which happens for a noise model at SNR 0.
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
