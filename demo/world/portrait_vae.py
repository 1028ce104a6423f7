"""The portraits' VAE: 64 px pictures <-> latents [4, 16, 16], trained on the base's pictures only."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from autoencoder import KL_WEIGHT, new_autoencoder, normalise_latents, psnr
from course import Course, Trainer, follow
from views import tinted, to_tensor

PLAIN = 0.5  # share of the views that are the picture itself
CROPS = (0.7, 1.4)  # side of a cut-out that is brought to the picture's size, as a share of it; beyond 1 with a mirror
TINTED = 0.3
SQUARES = 4.0  # weight of the mean square error
MEASURED = 400  # pictures of the base from which the latents' mean and deviation are taken
GLIMPSED = 60  # pictures of each kind whose reconstruction is measured on the way


def cut_out(pixels: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """A random square of the picture and its mirrored surroundings, brought to the picture's size."""
    side = pixels.shape[0]
    margin = side // 4
    wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    length = side * chance.uniform(*CROPS)
    lowest = max(0, margin - length / 4)
    left, upper = chance.uniform(lowest, side + 2 * margin - lowest - length, size=2)
    box = (left, upper, left + length, upper + length)
    return np.asarray(Image.fromarray(wide).resize((side, side), Image.Resampling.BICUBIC, box=box))


def random_view(pixels: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """The picture or a cut-out, mirrored half the time, tinted now and then."""
    view = pixels if chance.random() < PLAIN else cut_out(pixels, chance)
    view = view[:, ::-1] if chance.random() < 0.5 else view
    return tinted(view, chance) if chance.random() < TINTED else view


def reconstruction_loss(pictures: np.ndarray, batch: int, vae: nn.Module, chance: np.random.Generator) -> Tensor:
    """L1 + SQUARES x mean square + a little KL, on fresh random views."""
    index = chance.integers(len(pictures), size=batch)
    images = to_tensor([random_view(pictures[i], chance) for i in index])  # [B, 3, 64, 64]
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample.float()
    error = decoded - images
    return error.abs().mean() + SQUARES * error.square().mean() + KL_WEIGHT * posterior.kl().float().mean()


def export_vae(work: Path, images: dict[str, Tensor], vae: nn.Module, trainer: Trainer) -> None:
    """work/vae: the normalised EMA weights, float32, and work/vae.json: what they cost and what they reach."""
    vae = new_autoencoder().eval()
    vae.load_state_dict(trainer.average.state_dict())
    normalise_latents(vae, images["base"])
    vae.save_pretrained(work / "vae")
    facts = trainer.facts() | {f"psnr_{name}": round(psnr(vae, part[:GLIMPSED]), 2) for name, part in images.items()}
    facts |= {"parameters": sum(p.numel() for p in vae.parameters())}
    (work / "vae.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    print(f"vae: {facts}", flush=True)


def train_vae(rank: int, course: Course, start: Path | None) -> None:
    """One process of the course; ``start`` is the folder of a VAE whose weights it begins with."""
    torch.manual_seed(course.seed)
    archives = {name: np.load(course.work / f"{name}.npz")["pictures"] for name in ("base", "held_out", "private")}
    chosen = np.random.default_rng(course.seed).permutation(len(archives["base"]))[:MEASURED]
    images = {"base": to_tensor(list(archives["base"][chosen]))}
    for name in ("held_out", "private"):
        images[name] = to_tensor(list(archives[name][:: len(archives[name]) // GLIMPSED]))
    vae = new_autoencoder()
    if start is not None:
        vae.load_state_dict(AutoencoderKL.from_pretrained(start).float().state_dict())
    loss = partial(reconstruction_loss, archives["base"], course.batch)
    follow(course, rank, vae, loss, partial(export_vae, course.work, images))
