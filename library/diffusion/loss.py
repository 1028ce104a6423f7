"""The adaptation loss of a batch: per element, masked, averaged, weighted. The proxy attacker never sees any of it."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from library.diffusion.loss_weights import loss_weights


@dataclass(frozen=True)
class LossRules:
    """How an error becomes the adaptation loss L."""

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
    """L [] in kohya's order: per element, mask, mean over C, h, w, sample weight, weight by timestep, mean over B.

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
    return (elements.mean(dim=(1, 2, 3)) * (weights * by_timestep).to(elements.device)).mean()


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
    has no scale s = huber_scale in kohya.
    """
    if rules.huber_schedule == "constant":
        return torch.full(timesteps.shape, rules.huber_c * rules.huber_scale)
    if rules.huber_schedule == "exponential":
        share = timesteps.cpu() / scheduler.config.num_train_timesteps
        return rules.huber_scale * torch.exp(math.log(rules.huber_c) * share)
    signal = scheduler.alphas_cumprod.cpu()[timesteps.cpu()]
    sigma = ((1 - signal) / signal).sqrt()
    return (1 - rules.huber_c) / (1 + sigma) ** 2 + rules.huber_c
