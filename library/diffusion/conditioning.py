"""What a UNet is told beside a noisy latent and its timestep: text states, and in SDXL the picture's framing too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Text states for cross-attention, and the conditions that some families add to the timestep's embedding."""

    states: Tensor  # [B, T, D] of the tokens
    pooled: Tensor | None = None  # [B, P] of the whole caption; None: the family has no such state
    framing: Tensor | None = None  # [B, 6] original height and width, top and left of the crop, target height and width

    def __len__(self) -> int:
        """Rows."""
        return len(self.states)

    def framed(self, framing: Tensor) -> "Conditioning":
        """The same with each picture's framing [B, 6], where the family's UNet takes one."""
        return self if self.pooled is None else Conditioning(self.states, self.pooled, framing.to(self.states.device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """The same change of rows or device for every tensor."""
        return Conditioning(*(None if one is None else change(one) for one in self._columns()))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Conditioning":
        """On another device."""
        return self.map(lambda one: one.to(device))

    def cast(self, dtype: torch.dtype) -> "Conditioning":
        """States in another dtype; the framing's pixels stay whole numbers."""
        return Conditioning(self.states.to(dtype), None if self.pooled is None else self.pooled.to(dtype), self.framing)

    def repeated(self, times: int) -> "Conditioning":
        """Every row so many times in a row."""
        return self.map(lambda one: one.repeat_interleave(times, dim=0))

    def row(self, place: int) -> "Conditioning":
        """One row alone, in memory of its own."""
        return self.map(lambda one: one[place : place + 1].clone())

    def equals(self, other: "Conditioning") -> bool:
        """Whether the states of tokens and captions are the same bit for bit."""
        same = torch.equal(self.states, other.states)
        return same and (self.pooled is None or other.pooled is None or torch.equal(self.pooled, other.pooled))

    def predicted(self, unet: Any, latents: Tensor, timesteps: Tensor) -> Tensor:
        """What the UNet predicts, [B, C, h, w]."""
        if self.pooled is None:
            return unet(latents, timesteps, self.states).sample
        added = {"text_embeds": self.pooled, "time_ids": self.framing}
        return unet(latents, timesteps, self.states, added_cond_kwargs=added).sample

    def tensors(self) -> list[Tensor]:
        """What there is of them."""
        return [one for one in self._columns() if one is not None]

    def _columns(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.states, self.pooled, self.framing


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """The rows of several, one after the other; all are of one family."""
    columns = zip(*(part._columns() for part in parts), strict=True)
    return Conditioning(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def uncropped(size: tuple[int, int]) -> Tensor:
    """[6] framing of a picture that has its size (width, height) in pixels from the start, as previews ask for it."""
    return torch.tensor([size[1], size[0], 0, 0, size[1], size[0]])


def blank_conditioning(unet_config: Any, **where: Any) -> Conditioning:
    """One caption of 77 tokens in the widths that a UNet takes, to count what a pass costs.

    Args:
        where: device and dtype; without them those of the moment.
    """
    states = torch.zeros(1, 77, unet_config.cross_attention_dim, **where)
    if unet_config.addition_embed_type != "text_time":
        return Conditioning(states)
    return Conditioning(states, torch.zeros(1, pooled_width(unet_config), **where), torch.zeros(1, 6, **where))


def pooled_width(unet_config: Any) -> int:
    """Width of the caption's state that a UNet of SDXL takes beside six embedded numbers of the framing."""
    return int(unet_config.projection_class_embeddings_input_dim - 6 * unet_config.addition_time_embed_dim)
