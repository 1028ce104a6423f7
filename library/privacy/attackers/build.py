"""The proxy attacker: a three-layer MLP that tells members from others by the squared-error map."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class ProxyAttacker(nn.Module):
    """h_w of arXiv 2402.11989: Linear 512, 256, 2 with ReLU and dropout on the flattened map, in fp32."""

    def __init__(self, latent_shape: tuple[int, ...], *, pooled: bool, dropout: float) -> None:
        """
        Args:
            latent_shape: [C, h, w] that the first layer is built for.
            pooled: average-pool every map to that h x w (latents of several shapes); else maps must have the shape.
        """
        super().__init__()
        channels, height, width = latent_shape
        self.latent_shape = (channels, height, width)
        self.pooled = pooled
        self.layers = nn.Sequential(
            nn.Linear(channels * height * width, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(256, 2),
        )

    def forward(self, error_map: Tensor) -> Tensor:
        """Logits [B, 2] (non-member, member) of squared-error maps [B, C, h, w].

        Raises:
            ValueError: a map of another shape where the attacker does not pool.
        """
        if self.pooled:
            error_map = nn.functional.adaptive_avg_pool2d(error_map, self.latent_shape[1:])
        elif tuple(error_map.shape[1:]) != self.latent_shape:
            raise ValueError(f"error map is {tuple(error_map.shape[1:])}, the attacker takes {self.latent_shape}")
        with torch.autocast(error_map.device.type, enabled=False):
            return self.layers(error_map.float().flatten(1))


@dataclass(frozen=True)
class AttackerRules:
    """How the proxy attacker learns; the fields are options."""

    attack_lr: float
    attack_weight_decay: float
    attack_dropout: float


def build_attacker(
    latent_shape: tuple[int, ...], rules: AttackerRules, *, pooled: bool, device: torch.device
) -> tuple[ProxyAttacker, torch.optim.Adam]:
    """A fresh proxy attacker on the device, and its Adam.

    Args:
        latent_shape, pooled: see ProxyAttacker.
    """
    proxy = ProxyAttacker(latent_shape, pooled=pooled, dropout=rules.attack_dropout)
    proxy.to(device)
    return proxy, torch.optim.Adam(proxy.parameters(), lr=rules.attack_lr, weight_decay=rules.attack_weight_decay)


@contextmanager
def frozen(proxy: ProxyAttacker, mode: str) -> Iterator[ProxyAttacker]:
    """The proxy as the LoRA's adversary: no gradient to its weights; "eval" or, as released, "train" (dropout on)."""
    was_training = proxy.training
    proxy.requires_grad_(False)
    proxy.train(mode == "train")
    try:
        yield proxy
    finally:
        proxy.requires_grad_(True)
        proxy.train(was_training)
