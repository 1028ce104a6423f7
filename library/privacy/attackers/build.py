"""The proxy attacker of the paper, a three-layer MLP on the squared-error map; and how a run's attacker is built."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from library.privacy.attackers.calibrated import CalibratedProxy


@dataclass(frozen=True)
class AttackerRules:
    """How the proxy attacker learns; the fields are options."""

    attack_lr: float
    attack_weight_decay: float
    attack_dropout: float
    proxy_input: str  # error_map: ProxyAttacker; calibrated: CalibratedProxy


class ProxyAttacker(nn.Module):
    """h_w of arXiv 2402.11989: Linear 512, 256, 2 with ReLU and dropout on the flattened map, in fp32."""

    def __init__(self, latent_shape: tuple[int, ...], *, pooled: bool, dropout: float) -> None:
        """
        Args:
            latent_shape: [C, h, w] that the first layer is built for.
            pooled: average-pool every map to that h x w, for latents of several shapes; else maps must have this shape.
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
            ValueError: a map of another shape, unless the attacker pools.
        """
        if self.pooled:
            error_map = nn.functional.adaptive_avg_pool2d(error_map, self.latent_shape[1:])
        elif tuple(error_map.shape[1:]) != self.latent_shape:
            raise ValueError(f"the attacker needs error maps of {self.latent_shape}, got {tuple(error_map.shape[1:])}")
        with torch.autocast(error_map.device.type, enabled=False):
            return self.layers(error_map.float().flatten(1))


def build_attacker(
    latent_shape: tuple[int, ...], rules: AttackerRules, *, pooled: bool, device: torch.device
) -> tuple[nn.Module, torch.optim.Adam]:
    """A fresh proxy on the device, drawn from torch's global stream, and the Adam that trains it.

    Args:
        latent_shape, pooled: as ``ProxyAttacker`` takes them.
    """
    if rules.proxy_input == "calibrated":
        proxy: nn.Module = CalibratedProxy(latent_shape[0], dropout=rules.attack_dropout)
    else:
        proxy = ProxyAttacker(latent_shape, pooled=pooled, dropout=rules.attack_dropout)
    proxy.to(device)
    return proxy, torch.optim.Adam(proxy.parameters(), lr=rules.attack_lr, weight_decay=rules.attack_weight_decay)


@contextmanager
def frozen(proxy: nn.Module, mode: str) -> Iterator[nn.Module]:
    """The proxy without gradients to its weights, in mode "eval" or, as in the released code, "train" (dropout on)."""
    was_training = proxy.training
    proxy.requires_grad_(False)
    proxy.train(mode == "train")
    try:
        yield proxy
    finally:
        proxy.requires_grad_(True)
        proxy.train(was_training)
