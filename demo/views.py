"""Views of a picture for training the VAE."""

import numpy as np
import torch
from torch import Tensor


def tinted(view: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The view with its ink (white minus colour) mixed a little between the channels; white stays white."""
    mix = np.eye(3) * chance.uniform(0.8, 1.0) + chance.uniform(-0.12, 0.12, size=(3, 3))
    return np.clip(255 - (255.0 - view) @ mix, 0, 255).astype(np.uint8)


def to_tensor(views: list[np.ndarray]) -> Tensor:
    """[B, 3, side, side] float32 in -1 .. 1."""
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
