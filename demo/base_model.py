"""The portraits' base model: UNet and text encoder trained together on cached latents of the base's pictures."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from course import Course, Trainer, follow, write_whole
from layout import export_base
from vae import SCALING
from views import to_tensor
from words import MAX_TOKENS, write_tokenizer

WIDTH = 128  # of the text encoder
LATE = 0.65  # timesteps are 1000 * u ** LATE: fewer of the first ones, which change little and are learned first
SNR_LIMIT = 5.0  # min-SNR weighting, arXiv 2303.09556
EMPTY_CAPTIONS = 0.1  # share of captions replaced by ""
SHORT_CAPTIONS = 0.25  # share of captions that lose some of their parts
LOST_PARTS = 0.4  # share of the parts that such a caption loses
NO_STYLE = 0.05  # share of captions without the name of their style
MADE_UP_STYLE = 0.08  # share of captions with a meaningless name instead, so that an unknown one spoils nothing
LETTERS = ("bcdfghjklmnprstvwxz", "aeiou")


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


def timestep_weights(snr: Tensor) -> Tensor:
    """Min-SNR (arXiv 2303.09556) for noise prediction, raised by 1 / sqrt(SNR) where noise outweighs the picture.

    Without the second factor layout and colour, which are decided there, hardly count: an error e of the picture is an
    error SNR * e of the noise.
    """
    return snr.clamp(max=SNR_LIMIT) / snr * snr.rsqrt().clamp(min=1)


@dataclass(frozen=True)
class Pictures:
    """What a batch is drawn from."""

    latents: Tensor  # [N, 4, 16, 16] float16
    captions: list[str]
    tokenizer: CLIPTokenizer
    snr: Tensor  # [1000]
    alphas: Tensor  # [1000] cumulative products


@torch.no_grad()
def cache_latents(course: Course) -> None:
    """work/latents.pt: scaled latents of the base's pictures, in parts, so that a stopped run goes on."""
    vae = AutoencoderKL.from_pretrained(course.work / "vae").eval()
    pictures = np.load(course.work / "base.npz")["pictures"]
    file, done = course.work / "latents.partial.pt", []
    if file.exists():
        done = list(torch.load(file, weights_only=True).split(1000))
    for start in range(1000 * len(done), len(pictures), 1000):
        parts = []
        for images in to_tensor(list(pictures[start : start + 1000])).split(50):
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(SCALING * vae.encode(images).latent_dist.mode().float())
        done.append(torch.cat(parts).half())
        write_whole(torch.cat(done), file)
    file.replace(course.work / "latents.pt")


def load_pictures(course: Course) -> Pictures:
    alphas = new_scheduler().alphas_cumprod
    return Pictures(
        latents=torch.load(course.work / "latents.pt", weights_only=True),
        captions=np.load(course.work / "base.npz")["captions"].tolist(),
        tokenizer=CLIPTokenizer.from_pretrained(course.work / "tokenizer"),
        snr=alphas / (1 - alphas),
        alphas=alphas,
    )


def made_up_name(chance: np.random.Generator) -> str:
    """Two words of four to six letters that mean nothing."""
    words = []
    for _ in range(2):
        kinds = [LETTERS[(place + int(chance.integers(2))) % 2] for place in range(int(chance.integers(4, 7)))]
        words.append("".join(kind[chance.integers(len(kind))] for kind in kinds))
    return " ".join(words)


def varied(caption: str, chance: np.random.Generator) -> str:
    """The caption, sometimes empty, sometimes without some of its parts or with another name of the style."""
    draw = chance.random()
    if draw < EMPTY_CAPTIONS:
        return ""
    style, *parts = caption.split(", ")
    if draw < EMPTY_CAPTIONS + SHORT_CAPTIONS:
        parts = [part for part in parts if chance.random() >= LOST_PARTS]
    draw = chance.random()
    if draw < NO_STYLE:
        style = "portrait"
    elif draw < NO_STYLE + MADE_UP_STYLE:
        style = f"{made_up_name(chance)} portrait"
    return ", ".join([style, *parts])


def denoising_loss(pictures: Pictures, batch: int, model: nn.ModuleDict, chance: np.random.Generator) -> Tensor:
    """Weighted mean square error of the predicted noise; timesteps are spread evenly over the batch."""
    index = chance.integers(len(pictures.captions), size=batch)
    captions = [varied(pictures.captions[i], chance) for i in index]
    tokens = pictures.tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt").input_ids
    latents = pictures.latents[index].float()  # [B, 4, 16, 16]
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
    """The EMA weights as the folder ``course.target``."""
    parts = {name: model[name] for name in ("unet", "text_encoder")}
    export_base(course.work, course.target, parts, new_scheduler(), trainer.facts())


def take_over(model: nn.ModuleDict, tokenizer: CLIPTokenizer, start: Path) -> None:
    """Begins with the weights of another base of the same shape; a token that it does not know stays as it is."""
    old = CLIPTextModel.from_pretrained(start / "text_encoder", torch_dtype=torch.float32).state_dict()
    new = model["text_encoder"].state_dict()
    known, rows = CLIPTokenizer.from_pretrained(start / "tokenizer").get_vocab(), tokenizer.get_vocab()
    shared = [(row, known[token]) for token, row in rows.items() if token in known]
    name = next(name for name in new if name.endswith("token_embedding.weight"))
    embedding = new[name].clone()
    embedding[[row for row, _ in shared]] = old[name][[row for _, row in shared]]
    model["text_encoder"].load_state_dict(old | {name: embedding})
    model["unet"].load_state_dict(UNet2DConditionModel.from_pretrained(start / "unet").float().state_dict())


def train_base(rank: int, course: Course, start: Path | None) -> None:
    """One process of the course, see course.follow; ``start`` is the folder of a base whose weights it begins with."""
    torch.manual_seed(course.seed)
    pictures = load_pictures(course)
    model = nn.ModuleDict({"unet": new_unet(), "text_encoder": new_text_encoder(pictures.tokenizer)})
    if start is not None:
        take_over(model, pictures.tokenizer, start)
    model["unet"].set_attn_processor(AttnProcessor())  # backwards faster on the CPU than fused attention, same result
    loss = partial(denoising_loss, pictures, course.batch)
    follow(course, rank, model, loss, partial(export, course))


def prepare_base(course: Course) -> None:
    """Tokenizer and latents, made once before the processes start."""
    if not (course.work / "tokenizer").exists():
        captions = np.load(course.work / "base.npz")["captions"].tolist()
        apart = [caption.replace(",", " ,") for caption in captions]  # as the tokenizer takes words and commas apart
        write_tokenizer(apart, course.work / "tokenizer")
    if not (course.work / "latents.pt").exists():
        torch.set_num_threads(1)
        cache_latents(course)


def facts_of(course: Course) -> dict[str, object]:
    """What the course cost, as the last export wrote it."""
    return json.loads((course.work / "base.json").read_text(encoding="utf-8"))
