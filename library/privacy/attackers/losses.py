"""The proxy attacker's loss, its cross-entropy in the LoRA's objective, and its decision margin."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MEMBER, NON_MEMBER = 1, 0


def member_cross_entropy(proxy: nn.Module, seen: Tensor, gain_limit: float | None) -> Tensor:
    """CE: mean over the batch of -log P(member), each image capped at ``gain_limit`` nats (method 13).

    Args:
        seen: [B, ...] what the proxy sees of member images, with gradient to the LoRA.

    Returns:
        [] nats; no gradient flows through an image beyond the limit.
    """
    labels = torch.full((len(seen),), MEMBER, device=seen.device)
    per_image = nn.functional.cross_entropy(proxy(seen), labels, reduction="none")  # [B]
    if gain_limit is not None:
        per_image = per_image.clamp(max=gain_limit)
    return per_image.mean()


def attacker_losses(proxy: nn.Module, seen: Sequence[Tensor], is_member: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Cross-entropies [] (nats) of the proxy on aux members and on aux non-members; the attacker minimises their mean.

    arXiv 2402.11989 eq. 5: G = -(both) / 2.

    Args:
        seen: what the proxy sees, each [B, ...]; error maps may be of any shapes.
        is_member: a [B] bool tensor for each of them.
    """
    logits = torch.cat([proxy(one) for one in seen])
    member = torch.cat(list(is_member)).to(logits.device)
    per_image = nn.functional.cross_entropy(logits, member.long(), reduction="none")
    return per_image[member].mean(), per_image[~member].mean()


@torch.no_grad()
def membership_margin(proxy: nn.Module, seen: Tensor) -> Tensor:
    """Logit(member) - logit(non-member), [B]; above 0 the proxy decides for member."""
    logits = proxy(seen)
    return logits[:, MEMBER] - logits[:, NON_MEMBER]
