"""A tiny SDXL: a diffusers folder, and a narrow model of the real layout with its settings for a single file."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from library.seeding import stream, stream_seed
from tests.helpers import ldm_layout, tiny

SECOND = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
          "projection_dim": 12}  # fmt: skip
SHAPE = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 1, 2],  # the real one: 1, 2, 10; at the first level there are none
    "layers_per_block": 2,
    "cross_attention_dim": tiny.TEXT["hidden_size"] + SECOND["hidden_size"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + SECOND["projection_dim"],
}
UNET = {**SHAPE, "block_out_channels": (8, 8, 16), "attention_head_dim": [2, 2, 4], "norm_num_groups": 4,
        "sample_size": 8}  # fmt: skip
NARROW = {**SHAPE, "block_out_channels": (32, 32, 64), "attention_head_dim": [4, 4, 8], "norm_num_groups": 32,
          "sample_size": 8}  # fmt: skip
VAE = {**tiny.VAE, "scaling_factor": 0.13025}


def second_config(vocabulary: int) -> CLIPTextConfig:
    """Of the second text encoder; the caption's state is that of the last word of the list, the end token."""
    return CLIPTextConfig(
        vocab_size=vocabulary, max_position_embeddings=77, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=0, hidden_act="gelu", **SECOND,
    )  # fmt: skip


def first_config(vocabulary: int) -> CLIPTextConfig:
    """Of the first text encoder."""
    return CLIPTextConfig(
        vocab_size=vocabulary, max_position_embeddings=77, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1, **tiny.TEXT,
    )  # fmt: skip


def write_tokenizers(folder: Path) -> int:
    """Two tokenizers of one word list; the second pads with id 0. Returns the size of the list."""
    vocabulary = tiny.write_tokenizer(folder / "tokenizer")
    tiny.write_tokenizer(folder / "tokenizer_2")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / "tokenizer_2" / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "!"}))
    return vocabulary


def write_model(folder: Path, seed: int = 0, prediction_type: str = "epsilon") -> Path:
    """A tiny SDXL as a diffusers folder; pictures of 16 x 16 become latents of [4, 8, 8]."""
    vocabulary = write_tokenizers(folder)
    torch.manual_seed(stream_seed(seed, "tiny sdxl"))
    UNet2DConditionModel(**UNET).save_pretrained(folder / "unet")
    AutoencoderKL(**VAE).save_pretrained(folder / "vae")
    CLIPTextModel(first_config(vocabulary)).save_pretrained(folder / "text_encoder")
    CLIPTextModelWithProjection(second_config(vocabulary)).save_pretrained(folder / "text_encoder_2")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    EulerDiscreteScheduler(**schedule, prediction_type=prediction_type).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "EulerDiscreteScheduler"],
             "text_encoder": ["transformers", "CLIPTextModel"],
             "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
             "force_zeros_for_empty_prompt": True, "feature_extractor": [None, None],
             "image_encoder": [None, None]}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def write_file(place: Path) -> tuple[Path, Path, tuple]:
    """A narrow SDXL: folder of its settings, single file in the original layout, and its parts."""
    folder = place / "config"
    vocabulary = write_tokenizers(folder)
    torch.manual_seed(stream_seed(0, "narrow sdxl"))
    unet, vae = UNet2DConditionModel(**NARROW), AutoencoderKL(**{**ldm_layout.VAE, "scaling_factor": 0.13025})
    first = CLIPTextModel(first_config(vocabulary))
    second = CLIPTextModelWithProjection(second_config(vocabulary))
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    first.config.save_pretrained(folder / "text_encoder")
    second.config.save_pretrained(folder / "text_encoder_2")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(tiny.SCHEDULE))
    file = place / "narrow_xl.safetensors"
    save_file(ldm_layout.original_tensors(unet, vae, first, second), file)
    return folder, file, (unet, vae, first, second)


@torch.no_grad()
def unet_output(unet) -> torch.Tensor:
    """The UNet on fixed input."""
    width, pooled = unet.config.cross_attention_dim, SECOND["projection_dim"]
    added = {"text_embeds": torch.randn(2, pooled, generator=stream(7)),
             "time_ids": torch.tensor([[16, 16, 0, 0, 16, 16], [24, 16, 4, 0, 16, 16]])}  # fmt: skip
    states = torch.randn(2, 77, width, generator=stream(6))
    latents = torch.randn(2, 4, 8, 8, generator=stream(5))
    return unet(latents, 300, states, added_cond_kwargs=added).sample
