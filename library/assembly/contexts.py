"""Text states of the pictures: made at each use, or once where neither the text encoder nor the captions change."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from library.check import InputError
from library.data.batches import Batch, Pictures
from library.diffusion.denoising import Denoiser

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
        return self.table[[self.entries[row] for row in batch.rows]].to(self.denoiser.unet.device)


def open_contexts(accelerator: Any, denoiser: Denoiser, pictures: Pictures, *, insist: bool) -> Contexts:
    """Encode every caption once where that changes no number.

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
    rows = range(len(pictures.examples))
    for start in range(0, len(rows), CHUNK):
        for batch in pictures.plain_batches(rows[start : start + CHUNK], CHUNK):
            contexts = _encoded(accelerator, denoiser, batch)
            for place, row in enumerate(batch.rows):
                weights = b"" if batch.token_weights is None else batch.token_weights[place].numpy().tobytes()
                caption = batch.tokens[place].numpy().tobytes() + weights
                if caption not in places:
                    places[caption] = len(states)
                    states.append(contexts[place])
                entries += [0] * (row + 1 - len(entries))
                entries[row] = places[caption]
    table = torch.stack(states)
    logger.info(
        "text encoder frozen, captions static: %d captions were encoded once (%.1f MB in memory)",
        len(table), table.numel() * table.element_size() / 1e6,
    )  # fmt: skip
    return Contexts(denoiser, table, entries)


@torch.no_grad()
def _encoded(accelerator: Any, denoiser: Denoiser, batch: Batch) -> Tensor:
    with accelerator.autocast():
        return denoiser.context(batch.tokens, batch.token_weights).cpu()


def _why_not(accelerator: Any, denoiser: Denoiser, pictures: Pictures) -> str:
    """What makes text states differ from use to use; empty when nothing does."""
    if not static_captions(pictures):
        return "captions change from use to use (shuffle_caption, dropout, wildcards, warm-up); leave these out"
    (batch,) = pictures.plain_batches([0], 1)
    before = _chance(denoiser.unet.device)
    with torch.enable_grad(), accelerator.autocast():
        trained = denoiser.context(batch.tokens, batch.token_weights).requires_grad
    if trained:
        return "the text encoder is trained; set network_train_unet_only = true, or text_encoder_lr = 0"
    if _chance(denoiser.unet.device) != before:
        return "the text encoder's network draws dropout at each use; set network_train_unet_only = true"
    return ""


def static_captions(pictures: Any) -> bool:
    """Whether a picture's tokens are the same at every use."""
    return bool(getattr(pictures, "static_captions", not getattr(pictures, "shuffle_caption", False)))


def _chance(device: torch.device) -> bytes:
    """State of torch's global generators; it moves when something draws from them."""
    state = torch.get_rng_state().numpy().tobytes()
    return state + (torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b"")
