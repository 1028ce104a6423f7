"""A tiny latent diffusion model in diffusers layout and folders of small pictures, made by the tests."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from library.seeding import stream, stream_seed

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
UNET = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "sample_size": 8,
}
VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


def write_tokenizer(folder: Path) -> int:
    """A CLIP tokenizer with the byte alphabet and no merges; returns its vocabulary size."""
    folder.mkdir(parents=True)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in visible] + [chr(256 + index) for index in range(256 - len(visible))]
    words = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
               "pad_token": "<|endoftext|>"}  # fmt: skip
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return len(words)


def build_parts(vocabulary: int, seed: int = 0) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """UNet, VAE and text encoder with random weights."""
    torch.manual_seed(stream_seed(seed, "tiny model"))
    unet = UNet2DConditionModel(**UNET)
    vae = AutoencoderKL(**VAE)
    text_encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=vocabulary, max_position_embeddings=77, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1, **TEXT,
    ))  # fmt: skip
    return unet, vae, text_encoder


def write_model(folder: Path, seed: int = 0) -> Path:
    """A tiny model as a diffusers folder; pictures of 16 x 16 become latents of [4, 8, 8]."""
    vocabulary = write_tokenizer(folder / "tokenizer")
    unet, vae, text_encoder = build_parts(vocabulary, seed)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder")
    DDIMScheduler(**SCHEDULE).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"],
             "safety_checker": [None, None], "feature_extractor": [None, None],
             "requires_safety_checker": False}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_picture(path: Path, seed: int, size: tuple[int, int] = (16, 16)) -> None:
    """A picture of smooth noise that depends on the seed alone."""
    noise = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)


def write_pictures(
    folder: Path, count: int, *, repeats: int = 1, sizes: tuple[tuple[int, int], ...] = ((16, 16),), first: int = 0
) -> Path:
    """A kohya parent folder with one class folder of captioned pictures; caption words are easy to search for."""
    place = folder / f"{repeats}_zebrafolder"
    place.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        write_picture(place / f"quokka{index:03d}.png", index, sizes[index % len(sizes)])
        (place / f"quokka{index:03d}.txt").write_text(f"walrus{index:03d}, ocelot picture\n")
    return folder


def unet_output(unet) -> torch.Tensor:
    """The UNet on fixed input."""
    with torch.no_grad():
        return unet(
            torch.randn(2, 4, 8, 8, generator=stream(5)), 300, torch.randn(2, 77, 16, generator=stream(6))
        ).sample
