"""Latents of the training set: encoded once and cached, or encoded at every use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from library.data.augmentation import as_tensor, centre_crop, plain_framing, use_of
from library.data.examples import Example
from library.data.latents import Encode, Moments, encoded_pixels
from library.data.masks import mask_of

Keep = Callable[[Example, Moments, bool], Moments]  # applies cache_latents_mode; the bool: mirrored or not


@dataclass(frozen=True)
class EncodedPicture:
    """One use of one picture."""

    moments: Moments
    mask: Tensor | None  # [1, h, w] in 0 .. 1, averaged over each latent pixel; None: 1 everywhere
    framing: Tensor  # [6] of this use, see ``Crop.framing``


class LatentSource(Protocol):
    """Where the latents of pictures come from; indices are those of the training set."""

    def shape(self, index: int) -> tuple[int, ...]:
        """Latent shape [C, h, w] of a picture."""

    def of(self, indices: Sequence[int], generators: Sequence[torch.Generator] | None) -> list[EncodedPicture]:
        """One use of each of some pictures of one shape; without generators no augmentation."""


class CachedLatents:
    """Latents in memory, with those of mirror images for pictures with flip_aug."""

    def __init__(
        self,
        examples: Sequence[Example],
        sizes: Sequence[tuple[int, int]],
        moments: Sequence[Moments],
        mirrored: Sequence[Moments | None],
    ) -> None:
        """
        Args:
            sizes: training size (width, height) of each picture.
            mirrored: moments of the mirror image; None for pictures that are never mirrored.
        """
        self.moments = list(moments)
        self.mirrored = list(mirrored)
        self.framings = [
            [plain_framing(example, size, mirrored=one) for one in (False, True)]
            for example, size in zip(examples, sizes, strict=True)
        ]
        self.masks = [
            latent_mask(plain_mask(example, size), one.mean.shape)
            for example, size, one in zip(examples, sizes, moments, strict=True)
        ]

    def shape(self, index: int) -> tuple[int, ...]:
        """Latent shape [C, h, w] of a picture."""
        return tuple(self.moments[index].mean.shape)

    def of(self, indices: Sequence[int], generators: Sequence[torch.Generator] | None) -> list[EncodedPicture]:
        """One use of each picture: a random draw decides whether it is mirrored, together with its mask."""
        encoded = []
        for place, index in enumerate(indices):
            other, mask = self.mirrored[index], self.masks[index]
            if other is not None and generators is not None and torch.rand((), generator=generators[place]) < 0.5:
                turned = None if mask is None else mask.flip(-1)
                encoded.append(EncodedPicture(other, turned, self.framings[index][True]))
            else:
                encoded.append(EncodedPicture(self.moments[index], mask, self.framings[index][False]))
        return encoded


class FreshLatents:
    """Pictures that are read and encoded at every use, for changes of colour and crop."""

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
            shapes: latent shape [C, h, w] of each picture.
            batch_size: images encoded at once.
        """
        self.examples = list(examples)
        self.sizes = list(sizes)
        self.shapes = list(shapes)
        self.encode = encode
        self.keep = keep
        self.batch_size = batch_size

    def shape(self, index: int) -> tuple[int, ...]:
        """Latent shape [C, h, w] of a picture."""
        return self.shapes[index]

    def of(self, indices: Sequence[int], generators: Sequence[torch.Generator] | None) -> list[EncodedPicture]:
        """One use of each picture, encoded now."""
        uses = [
            use_of(self.examples[index], self.sizes[index], None if generators is None else generators[place])
            for place, index in enumerate(indices)
        ]
        encoded = []
        for start in range(0, len(indices), self.batch_size):
            some = slice(start, start + self.batch_size)
            examples = [self.examples[index] for index in indices[some]]
            moments = encoded_pixels([use.pixels for use in uses[some]], examples, self.encode)
            for example, one, use in zip(examples, moments, uses[some], strict=True):
                mask = latent_mask(use.mask, one.mean.shape)
                encoded.append(EncodedPicture(self.keep(example, one, False), mask, use.framing))
        return encoded


def plain_mask(example: Example, size: tuple[int, int]) -> Tensor | None:
    """The mask of a picture without augmentation, [1, H, W] in 0 .. 1, or None."""
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
