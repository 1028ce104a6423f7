"""Latents encoded once, kept as the moments of the VAE's posterior, with a fingerprint of what made them."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from library.check import InputError
from library.data.examples import Example, open_picture
from library.tensor_files import private_folder, read_tensors, write_tensors

FORMAT = 1
logger = logging.getLogger(__name__)

# [B, 3, H, W] pixels in -1 .. 1 -> posterior mean and standard deviation, each [B, C, h, w], unscaled
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of the VAE's posterior for one picture, each [C, h, w] in fp16, unscaled."""

    mean: Tensor
    std: Tensor


def fitted_pixels(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """Scale a picture to cover (width, height), crop the surplus in the centre: [3, H, W] in -1 .. 1."""
    width, height = size
    scale = max(width / picture.width, height / picture.height)
    covered = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.LANCZOS
    resized = picture if covered == picture.size else picture.resize(covered, method)
    left, top = (covered[0] - width) // 2, (covered[1] - height) // 2
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1.0


def encoded_moments(
    examples: Sequence[Example],
    sizes: Sequence[tuple[int, int]],
    encode: Encode,
    *,
    vae_fingerprint: str,
    batch_size: int,
    cache_dir: Path | None,
) -> list[Moments]:
    """Moments of every picture, from the disk cache where the fingerprint fits, else from the VAE.

    Args:
        sizes: training size (width, height) of each picture, multiples of the VAE's factor.
        vae_fingerprint: hash of the VAE's weights and dtype.
        cache_dir: None keeps latents in memory only.

    Raises:
        InputError: a picture whose latents are not finite even in a second pass.
    """
    folder = None if cache_dir is None else private_folder(private_folder(cache_dir) / "latents")
    pairs = zip(examples, sizes, strict=True)
    keys = [_cache_key(example, size, vae_fingerprint) if folder else "" for example, size in pairs]
    found: list[Moments | None] = [_read_cache(folder, key) for key in keys]
    open_rows = [row for row, moments in enumerate(found) if moments is None]
    progress = tqdm(total=len(open_rows), desc="encoding latents", unit="image", leave=False)
    for rows in _batches_of_one_size(open_rows, sizes, batch_size):
        pixels = torch.stack([fitted_pixels(open_picture(examples[row].path), sizes[row]) for row in rows])
        mean, std = encode(pixels)
        for place, row in enumerate(rows):
            moments = Moments(mean[place].half().cpu(), std[place].half().cpu())
            if not (torch.isfinite(moments.mean).all() and torch.isfinite(moments.std).all()):
                raise InputError(
                    f"the VAE gives NaN or Inf for '{examples[row].path}'; use --no_half_vae or "
                    "mixed_precision bf16, or look at the picture"
                )
            found[row] = moments
            if folder is not None:
                write_tensors(folder / f"{keys[row]}.safetensors", vars(moments), {}, private=True)
        progress.update(len(rows))
    progress.close()
    return [moments for moments in found if moments is not None]


def _batches_of_one_size(rows: list[int], sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Rows in batches that share one training size."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        by_size.setdefault(sizes[row], []).append(row)
    return [same[start : start + batch_size] for same in by_size.values() for start in range(0, len(same), batch_size)]


def _cache_key(example: Example, size: tuple[int, int], vae_fingerprint: str) -> str:
    """SHA-256 over everything that shapes the latents: file bytes, VAE, training size, format."""
    image = hashlib.sha256(example.path.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([FORMAT, image, vae_fingerprint, size]).encode()).hexdigest()


def _read_cache(folder: Path | None, key: str) -> Moments | None:
    """Cached moments; a damaged file is made anew."""
    if folder is None or not (folder / f"{key}.safetensors").is_file():
        return None
    try:
        tensors, _ = read_tensors(folder / f"{key}.safetensors")
        return Moments(tensors["mean"], tensors["std"])
    except (InputError, KeyError):
        logger.warning("a latent cache file is damaged and is made anew")
        return None
