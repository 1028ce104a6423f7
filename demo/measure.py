"""The numbers of the world: how well the VAE gives pictures back, and how far apart the private pictures are."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from collection import read_folder, thumbnail
from vae import psnr
from views import to_tensor

MEASURED = 240  # pictures of each kind, evenly spread over the archive


def nearest_distances(thumbnails: np.ndarray) -> np.ndarray:
    """[N] mean difference (0 .. 255) of each thumbnail [N, 16, 16, 3] to the nearest other one."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    nearest = []
    for number, own in enumerate(flat):
        distances = np.abs(flat - own).mean(1)
        distances[number] = np.inf
        nearest.append(distances.min())
    return np.array(nearest)


def measure(folder: Path, work: Path) -> dict[str, object]:
    """Prints the numbers and returns them."""
    torch.set_num_threads(1)
    private = read_folder(folder / "images")
    nearest = nearest_distances(np.stack([thumbnail(picture.pixels) for picture in private]))
    numbers: dict[str, object] = {  # the nearest other picture: least and median distance
        "private_pictures": len(private),
        "private_persons": len({picture.person for picture in private}),
        "different_captions": len({picture.caption for picture in private}),
        "different_pictures": len({picture.pixels.tobytes() for picture in private}),
        "nearest_other_picture": [round(float(value), 2) for value in (nearest.min(), np.median(nearest))],
    }
    vae = AutoencoderKL.from_pretrained(folder / "base" / "vae", torch_dtype=torch.float32).eval()
    for name in ("base", "held_out", "private"):
        pictures = np.load(work / f"{name}.npz")["pictures"]
        some = pictures[:: max(1, len(pictures) // MEASURED)][:MEASURED]
        numbers[f"vae_psnr_{name}"] = {"dB": round(psnr(vae, to_tensor(list(some))), 2), "n": len(some)}
    print(json.dumps(numbers, indent=1))
    return numbers
