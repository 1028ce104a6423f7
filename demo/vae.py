"""The portraits' VAE: 64 px pictures <-> latents [4, 16, 16], trained on the base's pictures only."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from course import Course, Trainer, follow
from views import tinted, to_tensor

SCALING = 0.18215  # as in Stable Diffusion 1.x; the latents are brought to unit deviation after this factor
KL_WEIGHT = 1e-6
PLAIN = 0.5  # share of the views that are the picture itself
CROPS = (0.7, 1.4)  # side of a cut-out that is brought to the picture's size, as a share of it; beyond 1 with a mirror
TINTED = 0.3
SQUARES = 4.0  # weight of the mean square error
MEASURED = 400  # pictures of the base from which the latents' mean and deviation are taken
GLIMPSED = 60  # pictures of each kind whose reconstruction is measured on the way


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=4,
        sample_size=64,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=SCALING,
    )


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean over images [N, 3, h, w] of the peak signal-to-noise ratio of decode(encode), dB, values 0 .. 1."""
    ratios = []
    for part in images.split(32):
        decoded = vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1)
        ratios.append(-10 * torch.log10(((decoded - part) / 2).square().mean((1, 2, 3))))
    return torch.cat(ratios).mean().item()


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: Tensor) -> None:
    """Folds a shift and a scale per channel into the 1 x 1 convolutions, giving scaled latents mean 0, std 1."""
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(32)])
    mean, scale = latents.mean((0, 2, 3)), 1 / (SCALING * latents.std((0, 2, 3)))
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] *= scale[:, None, None, None]
    into.bias[:4] = (into.bias[:4] - mean) * scale
    into.bias[4:] += 2 * scale.log()  # the log-variances
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight /= scale[None, :, None, None]


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
