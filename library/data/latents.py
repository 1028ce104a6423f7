"""Latents that are encoded once: moments of the VAE's posterior, cached under a hash of their inputs."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from library.data.augmentation import plain_pixels
from library.data.examples import Example
from library.errors import InputError
from library.progress import counted
from library.tensor_files import not_finite, private_folder, read_tensors, state_fingerprint, write_tensors

FORMAT = 3
logger = logging.getLogger(__name__)

# [B, 3, H, W] pixels in -1 .. 1 -> posterior mean and standard deviation, each [B, C, h, w], unscaled
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of the VAE's posterior for one picture, each [C, h, w] in fp16, unscaled."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class View:
    """One picture at one training size, in the centre crop, mirrored or not."""

    example: Example
    size: tuple[int, int]  # (width, height) in pixels, multiples of the VAE's factor
    mirrored: bool

    def pixels(self) -> Tensor:
        """[3, H, W] in -1 .. 1."""
        pixels = plain_pixels(self.example, self.size)
        return pixels.flip(-1) if self.mirrored else pixels


def encoded_moments(
    examples: Sequence[Example],
    sizes: Sequence[tuple[int, int]],
    encode: Encode,
    *,
    vae_fingerprint: str,
    batch_size: int,
    cache_dir: Path | None,
) -> list[Moments]:
    """Moments of every picture without mirroring, from the disk cache if it has them."""
    views = [View(example, size, False) for example, size in zip(examples, sizes, strict=True)]
    return encoded_views(
        views, encode, vae_fingerprint=vae_fingerprint, batch_size=batch_size, cache_dir=cache_dir, rebuild=False
    )


def encoded_views(
    views: Sequence[View],
    encode: Encode,
    *,
    vae_fingerprint: str,
    batch_size: int,
    cache_dir: Path | None,
    rebuild: bool,
) -> list[Moments]:
    """Moments of every view, from the disk cache if it has them, else from the VAE.

    Args:
        vae_fingerprint: hash of the VAE's weights and dtype.
        cache_dir: None keeps latents only in memory.
        rebuild: encode again, whatever the cache has.

    Raises:
        InputError: a picture whose latents are not finite even in fp32.
    """
    folder = None if cache_dir is None else private_folder(private_folder(cache_dir) / "latents")
    keys = [_cache_key(view, vae_fingerprint) if folder else "" for view in views]
    found: list[Moments | None] = [None if rebuild else _read_cache(folder, key) for key in keys]
    missing = [index for index, moments in enumerate(found) if moments is None]
    progress = counted(len(missing), "encoding latents")
    for indices in _batches_of_one_size(missing, views, batch_size):
        moments_of = encoded_pixels(
            [views[index].pixels() for index in indices], [views[index].example for index in indices], encode
        )
        for index, moments in zip(indices, moments_of, strict=True):
            found[index] = moments
            if folder is not None:
                checksum = {"checksum": state_fingerprint(vars(moments))}
                write_tensors(folder / f"{keys[index]}.safetensors", vars(moments), checksum, private=True)
        progress.update(len(indices))
    progress.close()
    return [moments for moments in found if moments is not None]


def encoded_pixels(pixels: Sequence[Tensor], examples: Sequence[Example], encode: Encode) -> list[Moments]:
    """Moments of pictures of one size, encoded together.

    Args:
        pixels: [3, H, W] each.
        examples: their pictures, for messages.

    Raises:
        InputError: latents that are not finite, with the file's name.
    """
    mean, std = encode(torch.stack(list(pixels)))
    moments = [Moments(mean[place].half().cpu(), std[place].half().cpu()) for place in range(len(examples))]
    for example, one in zip(examples, moments, strict=True):
        if not (torch.isfinite(one.mean).all() and torch.isfinite(one.std).all()):
            raise InputError(
                f"the VAE gives NaN or infinity for '{example.path}'; use --no_half_vae or "
                "mixed_precision bf16, or check the picture"
            )
    return moments


def _batches_of_one_size(indices: list[int], views: Sequence[View], batch_size: int) -> list[list[int]]:
    """Indices in batches of one training size."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index in indices:
        by_size.setdefault(views[index].size, []).append(index)
    return [same[start : start + batch_size] for same in by_size.values() for start in range(0, len(same), batch_size)]


def _cache_key(view: View, vae_fingerprint: str) -> str:
    """SHA-256 over all inputs of the latents: pixels (not the file, which may change), VAE, size, crop, and so on."""
    rules = view.example.subset.looks
    parts = [
        FORMAT,
        view.example.pixels,
        vae_fingerprint,
        view.size,
        "centre",
        rules.resize_interpolation,
        view.mirrored,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _read_cache(folder: Path | None, key: str) -> Moments | None:
    """Cached moments; None if there is no file, or a damaged one."""
    if folder is None or not (folder / f"{key}.safetensors").is_file():
        return None
    try:
        tensors, metadata = read_tensors(folder / f"{key}.safetensors")
        if metadata.get("checksum") != state_fingerprint(tensors):
            raise InputError("its checksum differs")
        mean, std = tensors["mean"], tensors["std"]
        if mean.shape != std.shape or mean.dim() != 3 or {mean.dtype, std.dtype} != {torch.half} or not_finite(tensors):
            raise InputError("it holds no moments")
        return Moments(mean, std)
    except (InputError, KeyError):
        logger.warning("the latent cache file '%s' is damaged and is rebuilt", folder / f"{key}.safetensors")
        return None
