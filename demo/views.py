"""Views of a picture: the plain 64 px one, and slightly moved, scaled, mirrored or tinted ones for training."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pictures import CANVAS, SIDE

MARGIN = 24  # white border that moved views may look into, pixels of the canvas


def padded(pictures: np.ndarray) -> list[Image.Image]:
    """[N, CANVAS, CANVAS, 3] uint8 -> images with a white margin."""
    width = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
    return [Image.fromarray(picture) for picture in np.pad(pictures, width, constant_values=255)]


def plain_view(picture: Image.Image) -> np.ndarray:
    """[SIDE, SIDE, 3] uint8, exactly as the private pictures are made."""
    edge = MARGIN + CANVAS
    box = (MARGIN, MARGIN, edge, edge)
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))


def moved_view(picture: Image.Image, chance: np.random.Generator, zoom: float, shift: float) -> np.ndarray:
    """[SIDE, SIDE, 3] uint8: scaled by up to 1 +- ``zoom`` and moved by up to ``shift`` canvas pixels."""
    half = CANVAS / 2 * chance.uniform(1 - zoom, 1 + zoom)
    middle = MARGIN + CANVAS / 2 + chance.uniform(-shift, shift, size=2)
    middle = np.clip(middle, half, CANVAS + 2 * MARGIN - half)
    box = (*(middle - half), *(middle + half))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))


def tinted(view: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The view with its ink (white minus colour) mixed a little between the channels; white stays white."""
    mix = np.eye(3) * chance.uniform(0.8, 1.0) + chance.uniform(-0.12, 0.12, size=(3, 3))
    return np.clip(255 - (255.0 - view) @ mix, 0, 255).astype(np.uint8)


def to_tensor(views: list[np.ndarray]) -> Tensor:
    """[B, 3, SIDE, SIDE] float32 in -1 .. 1."""
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
