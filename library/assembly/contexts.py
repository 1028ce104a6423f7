"""Text states of the pictures: made at each use, or once where neither the text encoder nor the captions change."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from library.data.batches import Batch, Pictures
from library.diffusion.denoising import Denoiser
from library.errors import InputError
from library.progress import counted

logger = logging.getLogger(__name__)
CHUNK = 16  # captions encoded at once


class Contexts:
    """What the UNet attends to, by batch; with a table, equal captions share one entry, kept beside the latents."""

    def __init__(self, denoiser: Denoiser, table: Tensor | None, entries: Sequence[int]) -> None:
        self.denoiser = denoiser
        self.table = table  # [captions, T, D] on the CPU, in the UNet's dtype; None: encode at each use
        self.entries = entries  # place in the table of each row of the pictures

    def of(self, batch: Batch) -> Tensor:
        """Text states [B, T, D] in the UNet's dtype."""
        if self.table is None:
            return self.denoiser.context(batch.tokens, batch.token_weights)
        return self.table[[self.entries[row] for row in batch.indices]].to(self.denoiser.unet.device)


def open_contexts(accelerator: Any, denoiser: Denoiser, pictures: Pictures, *, insist: bool) -> Contexts:
    """Encode every caption once where that changes no number.

    A frozen network in the text encoder (rate 0) is taken as it stands, without its dropout.

    Args:
        insist: refuse to start where captions must be encoded at each use.

    Raises:
        InputError: ``insist``, and why it cannot be.
    """
    reason = _why_not(accelerator, denoiser, pictures)
    if reason:
        if insist:
            raise InputError(f"cache_text_encoder_outputs cannot be: {reason}")
        return Contexts(denoiser, None, ())
    places: dict[bytes, int] = {}
    entries: list[int] = []
    states: list[Tensor] = []
    count = len(pictures.examples)
    progress = counted(count, "encoding captions", "captions", silent=not accelerator.is_main_process)
    for start in range(0, count, CHUNK):
        tokens, weights = pictures.plain_tokens(range(start, min(start + CHUNK, count)))
        contexts = _encoded(accelerator, denoiser, tokens, weights)
        for place in range(len(tokens)):
            caption = tokens[place].numpy().tobytes() + (b"" if weights is None else weights[place].numpy().tobytes())
            if caption not in places:
                places[caption] = len(states)
                states.append(contexts[place])
            entries.append(places[caption])
        progress.update(len(tokens))
    progress.close()
    table = torch.stack(states)
    logger.info(
        "text encoder frozen: %d captions were encoded once (%.1f MB)",
        len(table), table.numel() * table.element_size() / 1e6,
    )  # fmt: skip
    return Contexts(denoiser, table, entries)


@torch.no_grad()
def _encoded(accelerator: Any, denoiser: Denoiser, tokens: Tensor, weights: Tensor | None) -> Tensor:
    with accelerator.autocast():
        return denoiser.context(tokens, weights).cpu()


def _why_not(accelerator: Any, denoiser: Denoiser, pictures: Pictures) -> str:
    """What makes text states differ from use to use; empty when nothing does."""
    if not pictures.static_captions:
        return "captions change from use to use (shuffle_caption, dropout, wildcards, warm-up); leave these out"
    tokens, weights = pictures.plain_tokens([0])
    with torch.enable_grad(), accelerator.autocast():
        trained = denoiser.context(tokens, weights).requires_grad
    if trained:
        return "the text encoder is trained; set network_train_unet_only = true, or text_encoder_lr = 0"
    return ""
