"""The VAE: 64 px pictures <-> latents [4, 16, 16], trained on the base's pictures only."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from course import Course, Trainer, follow
from views import moved_view, padded, plain_view, tinted, to_tensor

SCALING = 0.18215  # as in Stable Diffusion 1.x; the latents are brought to unit deviation after this factor
KL_WEIGHT = 1e-6


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


def reconstruction_loss(pictures: list[Image.Image], batch: int, vae: nn.Module, chance: np.random.Generator) -> Tensor:
    """L1 + mean square + a little KL, on fresh random views."""
    views = []
    for index in chance.integers(len(pictures), size=batch):
        plain = chance.random() < 0.4
        view = plain_view(pictures[index]) if plain else moved_view(pictures[index], chance, zoom=0.2, shift=20)
        view = view[:, ::-1] if chance.random() < 0.5 else view
        views.append(tinted(view, chance) if chance.random() < 0.3 else view)
    images = to_tensor(views)  # [B, 3, 64, 64]
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample.float()
    error = decoded - images
    return error.abs().mean() + error.square().mean() + KL_WEIGHT * posterior.kl().float().mean()


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


def export_autoencoder(work: Path, base: np.ndarray, held_out: np.ndarray, vae: nn.Module, trainer: Trainer) -> None:
    """work/vae: the normalised EMA weights, float32, and work/vae.json: what they cost and what they reach."""
    vae = new_autoencoder().eval()
    vae.load_state_dict(trainer.average.state_dict())
    images = to_tensor([plain_view(picture) for picture in padded(base)])
    normalise_latents(vae, images)
    vae.save_pretrained(work / "vae")
    facts = trainer.facts() | {
        "psnr_private": round(psnr(vae, to_tensor([plain_view(picture) for picture in padded(held_out)])), 2),
        "psnr_base": round(psnr(vae, images[:480]), 2),
    }
    facts |= {"parameters": sum(p.numel() for p in vae.parameters())}
    (work / "vae.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    print(f"vae: {facts}", flush=True)


def train_autoencoder(rank: int, course: Course) -> None:
    """One process of the course; see course.follow."""
    torch.manual_seed(course.seed)
    base = np.load(course.work / "base.npz")["pictures"]
    held_out = np.load(course.work / "private.npz")["pictures"]
    loss = partial(reconstruction_loss, padded(base), course.batch)
    follow(course, rank, new_autoencoder(), loss, partial(export_autoencoder, course.work, base, held_out))
