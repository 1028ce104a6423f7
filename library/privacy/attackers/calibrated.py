"""A proxy attacker that sees what auditors see: errors with the LoRA on and off under one noise, and the timestep."""

import math

import torch
from torch import Tensor, nn

FREQUENCIES = 4  # of the timestep, sine and cosine each
WIDTH = 64
CLOSENESS = 10.0  # log ratios differ by hundredths between members and others; networks learn best from numbers near 1


def log_errors(error_map: Tensor) -> Tensor:
    """Logarithms [B, 1 + C] of the mean squared error of the whole map and of each channel.

    Args:
        error_map: [B, C, h, w] squared errors.
    """
    channels = error_map.float().mean(dim=(2, 3))  # [B, C]
    return torch.cat([channels.mean(1, keepdim=True), channels], dim=1).clamp(min=1e-12).log()


def calibrated_evidence(log_on: Tensor, log_off: Tensor, timesteps: Tensor, timestep_count: int) -> Tensor:
    """What one (timestep, noise) pair tells, [B, 2 + C + 2 * FREQUENCIES]: log(off / on), log off, and the timestep.

    Args:
        log_on, log_off: ``log_errors`` under the same noise, with gradient to the LoRA in the first.
        timesteps: [B].
    """
    place = timesteps.to(log_on.device).float()[:, None] / timestep_count  # [B, 1] in 0 .. 1
    angles = place * math.pi * 2.0 ** torch.arange(FREQUENCIES, device=log_on.device)
    return torch.cat([CLOSENESS * (log_off - log_on), log_off[:, :1], angles.sin(), angles.cos()], dim=1)


class CalibratedProxy(nn.Module):
    """Adds up what K pairs of a picture tell; few inputs, so that it cannot learn the aux pictures by heart."""

    def __init__(self, channels: int, *, dropout: float) -> None:
        """
        Args:
            channels: C of the latents.
        """
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 + channels + 2 * FREQUENCIES, WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(WIDTH, WIDTH),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(WIDTH, 1),
        )

    def forward(self, evidence: Tensor) -> Tensor:
        """Logits [B, 2] (non-member, member) of the evidence [B, K, F] of K pairs, in fp32."""
        with torch.autocast(evidence.device.type, enabled=False):
            member = self.layers(evidence.float()).sum(dim=1)  # [B, 1]
        return torch.cat([torch.zeros_like(member), member], dim=1)
