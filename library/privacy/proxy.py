"""The proxy attacker: a three-layer MLP that tells members from others by the squared-error map."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MEMBER, NON_MEMBER = 1, 0


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
            nn.Linear(channels * height * width, 512), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(512, 256), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(256, 2),
        )  # fmt: skip

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


def member_cross_entropy(proxy: ProxyAttacker, error_map: Tensor, gain_limit: float | None) -> Tensor:
    """CE: mean over the batch of -log P(member), each image capped at ``gain_limit`` nats (method 13).

    Args:
        error_map: [B, C, h, w] of member images, with gradient to the LoRA.

    Returns:
        [] nats; no gradient flows through an image beyond the limit.
    """
    labels = torch.full((len(error_map),), MEMBER, device=error_map.device)
    per_image = nn.functional.cross_entropy(proxy(error_map), labels, reduction="none")  # [B]
    if gain_limit is not None:
        per_image = per_image.clamp(max=gain_limit)
    return per_image.mean()


def attacker_losses(
    proxy: ProxyAttacker, error_maps: Sequence[Tensor], is_member: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Cross-entropies [] (nats) of the proxy on aux members and on aux non-members; the attacker minimises their mean.

    arXiv 2402.11989 eq. 5: G = -(both) / 2.

    Args:
        error_maps: squared-error maps, each [B, C, h, w], of any shapes.
        is_member: [B] bool for each map.
    """
    logits = torch.cat([proxy(error_map) for error_map in error_maps])
    member = torch.cat(list(is_member)).to(logits.device)
    per_image = nn.functional.cross_entropy(logits, member.long(), reduction="none")
    return per_image[member].mean(), per_image[~member].mean()


@torch.no_grad()
def membership_margin(proxy: ProxyAttacker, error_map: Tensor) -> Tensor:
    """Logit(member) - logit(non-member), [B]; above 0 the proxy says member."""
    logits = proxy(error_map)
    return logits[:, MEMBER] - logits[:, NON_MEMBER]
