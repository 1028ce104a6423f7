"""The base model: UNet and text encoder trained together on cached latents of the base's pictures."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from autoencoder import SCALING
from course import Course, Trainer, follow, write_whole
from layout import export_base
from views import moved_view, padded, plain_view, to_tensor
from words import MAX_TOKENS, write_tokenizer

WIDTH = 128  # of the text encoder
COPIES = 3  # moved views of each picture, besides the plain one
LATE = 0.65  # timesteps are 1000 * u ** LATE: fewer of the first ones, which change little and are learned first
EMPTY_CAPTIONS = 0.1  # share of captions replaced by ""
SHORT_CAPTIONS = 0.15  # share of captions that lose some words
DRAWS = {"Smileys & Emotion": 2.0, "Symbols": 0.7, "People & Body": 0.5, "Flags": 0.3}  # how often a picture comes up
CONCRETE_DRAWS = 3.0  # the same for every other group
SNR_LIMIT = 5.0  # min-SNR weighting, arXiv 2303.09556


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 96, 160),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config)


@dataclass(frozen=True)
class Pictures:
    """What a batch is drawn from."""

    latents: Tensor  # [N, 1 + COPIES, 4, 16, 16] float16, the plain view first
    captions: list[str]
    shares: np.ndarray  # [N] how often each is drawn
    tokenizer: CLIPTokenizer
    snr: Tensor  # [1000]
    alphas: Tensor  # [1000] cumulative products


@torch.no_grad()
def cache_latents(course: Course) -> None:
    """work/latents.pt: scaled latents of the plain and the moved views of the base's pictures."""
    vae = AutoencoderKL.from_pretrained(course.work / "vae").eval()
    chance = np.random.default_rng([course.seed, 7])
    copies = []
    pictures = padded(np.load(course.work / "base.npz")["pictures"])
    for copy in range(1 + COPIES):
        views = [moved_view(p, chance, zoom=0.04, shift=4) if copy else plain_view(p) for p in pictures]
        parts = to_tensor(views).split(32)
        copies.append(torch.cat([SCALING * vae.encode(part).latent_dist.mode() for part in parts]))
    write_whole(torch.stack(copies, 1).half(), course.work / "latents.pt")


def load_pictures(course: Course) -> Pictures:
    base = np.load(course.work / "base.npz")
    weights = np.array([DRAWS.get(group, CONCRETE_DRAWS) for group in base["groups"]])
    alphas = new_scheduler().alphas_cumprod
    return Pictures(
        latents=torch.load(course.work / "latents.pt", weights_only=True),
        captions=base["captions"].tolist(),
        shares=weights / weights.sum(),
        tokenizer=CLIPTokenizer.from_pretrained(course.work / "tokenizer"),
        snr=alphas / (1 - alphas),
        alphas=alphas,
    )


def varied(caption: str, chance: np.random.Generator) -> str:
    """The caption, sometimes shortened by some words of the name, sometimes empty."""
    draw = chance.random()
    if draw < EMPTY_CAPTIONS:
        return ""
    first, words = caption.split(" ")[:2], caption.split(" ")[2:]
    if draw < EMPTY_CAPTIONS + SHORT_CAPTIONS and len(words) > 1:
        kept = chance.random(len(words)) < 0.6
        kept[chance.integers(len(words))] = True
        words = [word for word, keep in zip(words, kept, strict=True) if keep]
    return " ".join(first + words)


def timestep_weights(snr: Tensor) -> Tensor:
    """Min-SNR (arXiv 2303.09556) for noise prediction, raised by 1 / sqrt(SNR) where noise outweighs the picture.

    Without the second factor layout and colour, which are decided there, hardly count: an error e of the picture is an
    error SNR * e of the noise.
    """
    return snr.clamp(max=SNR_LIMIT) / snr * snr.rsqrt().clamp(min=1)


def denoising_loss(pictures: Pictures, batch: int, model: nn.ModuleDict, chance: np.random.Generator) -> Tensor:
    """Weighted mean square error of the predicted noise; timesteps are spread evenly over the batch."""
    index = chance.choice(len(pictures.captions), size=batch, p=pictures.shares)
    captions = [varied(pictures.captions[i], chance) for i in index]
    tokens = pictures.tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    copies = np.where(chance.random(batch) < 0.5, 0, chance.integers(1, 1 + COPIES, size=batch))
    latents = pictures.latents[index, copies].float()  # [B, 4, 16, 16]
    timesteps = torch.from_numpy(((chance.permutation(batch) + chance.random(batch)) / batch) ** LATE * 1000).long()
    noise = torch.randn_like(latents)
    alpha = pictures.alphas[timesteps][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16):
        states = model["text_encoder"](tokens).last_hidden_state
        predicted = model["unet"](noisy, timesteps, states).sample
    error = (predicted.float() - noise).square().mean((1, 2, 3))
    return (error * timestep_weights(pictures.snr[timesteps])).mean()


def export(course: Course, model: nn.Module, trainer: Trainer) -> None:
    """The EMA weights as demo/base."""
    parts = {name: model[name] for name in ("unet", "text_encoder")}
    export_base(course.work, course.target, parts, new_scheduler(), trainer.facts())


def train_base(rank: int, course: Course) -> None:
    """One process of the course; see course.follow."""
    torch.manual_seed(course.seed)
    pictures = load_pictures(course)
    model = nn.ModuleDict({"unet": new_unet(), "text_encoder": new_text_encoder(pictures.tokenizer)})
    loss = partial(denoising_loss, pictures, course.batch)
    follow(course, rank, model, loss, partial(export, course))


def prepare_base(course: Course) -> None:
    """Tokenizer and latents, made once before the processes start."""
    if not (course.work / "tokenizer").exists():
        captions = np.load(course.work / "base.npz")["captions"].tolist()
        write_tokenizer(captions, course.work / "tokenizer")
    if not (course.work / "latents.pt").exists():
        torch.set_num_threads(1)
        cache_latents(course)
