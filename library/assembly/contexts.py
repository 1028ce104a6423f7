"""Text states of the pictures: made at each use, or once where neither the text encoder nor the captions change."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from library.data.batches import Batch, Pictures
from library.diffusion.conditioning import Conditioning, joined
from library.diffusion.denoising import Denoiser
from library.errors import InputError
from library.progress import counted
from networks.network_protocol import can_be_switched_off, switched_off

logger = logging.getLogger(__name__)
CHUNK = 16  # captions encoded at once


class Contexts:
    """What the UNet attends to, by batch; with a table, equal captions share one entry, kept beside the latents."""

    def __init__(
        self,
        denoiser: Denoiser,
        table: Conditioning | None,
        entries: Sequence[int],
        off_table: Conditioning | None = None,
    ) -> None:
        self.denoiser = denoiser
        self.table = table  # of all different captions, on the CPU, in the UNet's dtype; None: encode at each use
        self.entries = entries  # place in the table of each row of the pictures
        self.off_table = table if off_table is None else off_table  # without the network

    def of(self, batch: Batch, *, off: bool = False) -> Conditioning:
        """The conditions of a batch in the UNet's dtype.

        Args:
            off: the network is switched off.
        """
        if self.table is None or self.off_table is None:
            return self.denoiser.context(batch.tokens, batch.token_weights).framed(batch.framing)
        table, places = self.off_table if off else self.table, [self.entries[row] for row in batch.indices]
        return table.map(lambda one: one[places].to(self.denoiser.unet.device)).framed(batch.framing)


def open_contexts(accelerator: Any, denoiser: Denoiser, pictures: Pictures, network: Any, *, insist: bool) -> Contexts:
    """Encode every caption once where that changes no number.

    A frozen network in the text encoder (rate 0) is taken as it stands, without its dropout.

    Args:
        network: in the model.
        insist: refuse to start where captions must be encoded at each use.

    Raises:
        InputError: ``insist``, and why it cannot be.
    """
    reason = _why_not(accelerator, denoiser, pictures, network)
    if reason:
        if insist:
            raise InputError(f"cache_text_encoder_outputs cannot be: {reason}")
        return Contexts(denoiser, None, ())
    table, entries = _table(accelerator, denoiser, pictures)
    logger.info(
        "text encoder frozen: %d captions were encoded once (%.1f MB)",
        len(table), sum(one.numel() * one.element_size() for one in table.tensors()) / 1e6,
    )  # fmt: skip
    if not can_be_switched_off(network):
        return Contexts(denoiser, table, entries)
    with switched_off(network):
        off_table, _ = _table(accelerator, denoiser, pictures)
    return Contexts(denoiser, table, entries, None if off_table.equals(table) else off_table)


def _table(accelerator: Any, denoiser: Denoiser, pictures: Pictures) -> tuple[Conditioning, list[int]]:
    """The states of all different captions, and the place of each row of the pictures."""
    places: dict[bytes, int] = {}
    entries: list[int] = []
    states: list[Conditioning] = []
    count = len(pictures.examples)
    progress = counted(count, "encoding captions", "captions", silent=not accelerator.is_main_process)
    for start in range(0, count, CHUNK):
        tokens, weights = pictures.plain_tokens(range(start, min(start + CHUNK, count)))
        contexts = _encoded(accelerator, denoiser, tokens, weights)
        for place in range(len(tokens)):
            caption = tokens[place].numpy().tobytes() + (b"" if weights is None else weights[place].numpy().tobytes())
            if caption not in places:
                places[caption] = len(states)
                states.append(contexts.row(place))
            entries.append(places[caption])
        progress.update(len(tokens))
    progress.close()
    return joined(states), entries


@torch.no_grad()
def _encoded(accelerator: Any, denoiser: Denoiser, tokens: Tensor, weights: Tensor | None) -> Conditioning:
    with accelerator.autocast():
        return denoiser.context(tokens, weights).to(torch.device("cpu"))


def _why_not(accelerator: Any, denoiser: Denoiser, pictures: Pictures, network: Any) -> str:
    """What makes text states differ from use to use; empty when nothing does."""
    if not pictures.static_captions:
        return "captions change from use to use (shuffle_caption, dropout, wildcards, warm-up); leave these out"
    tokens, weights = pictures.plain_tokens([0])
    with torch.enable_grad(), accelerator.autocast():
        states = denoiser.context(tokens, weights).tensors()
    if _depends_on(states, [one for one in network.parameters() if one.requires_grad]):
        return "the text encoder is trained; set network_train_unet_only = true, or text_encoder_lr = 0"
    return ""


def _depends_on(states: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
    """Whether the states change with any of the parameters.

    That they require a gradient does not say so: activation checkpointing gives frozen embeddings one as well.
    """
    reached = [one.float().sum() for one in states if one.requires_grad]
    if not reached or not parameters:
        return False
    total = torch.stack(reached).sum()
    return any(one is not None for one in torch.autograd.grad(total, list(parameters), allow_unused=True))
