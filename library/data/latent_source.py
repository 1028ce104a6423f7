"""Latents of the training set: encoded once and cached, or encoded at every use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from library.data.augmentation import as_tensor, centre_crop, use_of
from library.data.examples import Example
from library.data.latents import Encode, Moments, encoded_pixels
from library.data.masks import mask_of

Keep = Callable[[Example, Moments, bool], Moments]  # moments as cache_latents_mode wants them; mirrored or not


@dataclass(frozen=True)
class EncodedPicture:
    """One use of one picture."""

    moments: Moments
    mask: Tensor | None  # [1, h, w] in 0 .. 1, averaged over each latent pixel; None: 1 everywhere


class LatentSource(Protocol):
    """Where the latents of rows come from."""

    def shape(self, row: int) -> tuple[int, ...]:
        """Latent shape [C, h, w] of a row."""

    def of(self, rows: Sequence[int], generators: Sequence[torch.Generator] | None) -> list[EncodedPicture]:
        """One use of each of some rows of one shape; without generators the plain view of each."""


class CachedLatents:
    """Latents in memory, and their mirror images where half of all uses are mirrored."""

    def __init__(
        self,
        examples: Sequence[Example],
        sizes: Sequence[tuple[int, int]],
        moments: Sequence[Moments],
        mirrored: Sequence[Moments | None],
    ) -> None:
        """
        Args:
            sizes: training size (width, height) of each row.
            mirrored: moments of the mirror image; None for rows that are never mirrored.
        """
        self.moments = list(moments)
        self.mirrored = list(mirrored)
        self.masks = [
            latent_mask(plain_mask(example, size), one.mean.shape)
            for example, size, one in zip(examples, sizes, moments, strict=True)
        ]

    def shape(self, row: int) -> tuple[int, ...]:
        """Latent shape [C, h, w] of a row."""
        return tuple(self.moments[row].mean.shape)

    def of(self, rows: Sequence[int], generators: Sequence[torch.Generator] | None) -> list[EncodedPicture]:
        """One use of each row: a coin says whether it is mirrored, its mask with it."""
        encoded = []
        for place, row in enumerate(rows):
            other, mask = self.mirrored[row], self.masks[row]
            if other is not None and generators is not None and torch.rand((), generator=generators[place]) < 0.5:
                encoded.append(EncodedPicture(other, None if mask is None else mask.flip(-1)))
            else:
                encoded.append(EncodedPicture(self.moments[row], mask))
        return encoded


class FreshLatents:
    """Pictures opened and encoded at every use, as colours, crops and a VAE without cache need it."""

    def __init__(
        self,
        examples: Sequence[Example],
        sizes: Sequence[tuple[int, int]],
        shapes: Sequence[tuple[int, ...]],
        encode: Encode,
        keep: Keep,
        batch_size: int,
    ) -> None:
        """
        Args:
            shapes: latent shape [C, h, w] of each row.
            batch_size: images encoded at once.
        """
        self.examples = list(examples)
        self.sizes = list(sizes)
        self.shapes = list(shapes)
        self.encode = encode
        self.keep = keep
        self.batch_size = batch_size

    def shape(self, row: int) -> tuple[int, ...]:
        """Latent shape [C, h, w] of a row."""
        return self.shapes[row]

    def of(self, rows: Sequence[int], generators: Sequence[torch.Generator] | None) -> list[EncodedPicture]:
        """One use of each row, encoded now."""
        uses = [
            use_of(self.examples[row], self.sizes[row], None if generators is None else generators[place])
            for place, row in enumerate(rows)
        ]
        encoded = []
        for start in range(0, len(rows), self.batch_size):
            some = slice(start, start + self.batch_size)
            examples = [self.examples[row] for row in rows[some]]
            moments = encoded_pixels([pixels for pixels, _ in uses[some]], examples, self.encode)
            for example, one, (_, mask) in zip(examples, moments, uses[some], strict=True):
                encoded.append(EncodedPicture(self.keep(example, one, False), latent_mask(mask, one.mean.shape)))
        return encoded


def plain_mask(example: Example, size: tuple[int, int]) -> Tensor | None:
    """The mask of a picture's plain view, [1, H, W] in 0 .. 1, or None."""
    mask = mask_of(example)
    if mask is None:
        return None
    crop = centre_crop(example.width, example.height, size)
    return as_tensor(crop.of(mask, example.subset.looks.resize_interpolation)) / 255


def latent_mask(mask: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """[1, H, W] -> [1, h, w]: each latent pixel takes the mean of the pixels that it covers."""
    if mask is None:
        return None
    return torch.nn.functional.adaptive_avg_pool2d(mask[None], (shape[-2], shape[-1]))[0]
