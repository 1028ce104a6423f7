"""Writes a model under the names of an original SD 1.x, 2.x or SDXL checkpoint: the inverse of what diffusers reads."""

import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.helpers import tiny

UNET = {
    "block_out_channels": (32, 32, 64, 64),
    "layers_per_block": 2,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
VAE = {
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(name: str, first_up_has_attention: bool = False) -> str:
    """A UNet tensor's name in the original layout; SDXL's way up begins with attention."""
    for new, old in TOP.items():
        if name.startswith(new + "."):
            return "model.diffusion_model." + name.replace(new, old, 1)
    match = re.match(
        r"(down_blocks|up_blocks|mid_block)\.?(\d*)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name
    )
    assert match is not None, name
    part, level, kind, index, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        first = rest.split(".")[0]
        rest = rest.replace(first, RESNET[first], 1)
    if part == "mid_block":
        place = f"middle_block.{2 * index if kind == 'resnets' else 1}"
    elif kind == "downsamplers":
        place, rest = f"input_blocks.{3 * (level + 1)}.0", rest.replace("conv", "op", 1)
    elif kind == "upsamplers":
        place = f"output_blocks.{3 * level + 2}.{1 if level == 0 and not first_up_has_attention else 2}"
    else:
        block = (
            f"input_blocks.{3 * level + index + 1}" if part == "down_blocks" else f"output_blocks.{3 * level + index}"
        )
        place = f"{block}.{0 if kind == 'resnets' else 1}"
    return f"model.diffusion_model.{place}.{rest}"


def vae_name(name: str) -> str:
    """A VAE tensor's name in the original layout."""
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda match: f"up.{3 - int(match[1])}.block.{match[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda match: f"up.{3 - int(match[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        name = name.replace(f"attn_1.{new}", f"attn_1.{old}")
    return "first_stage_model." + name.replace("conv_shortcut", "nin_shortcut")


def original_tensors(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoder: CLIPTextModel, *second: CLIPTextModelWithProjection
) -> dict[str, Tensor]:
    """All tensors of a model under their original names; the VAE's attention as 1x1 convolutions."""
    tensors = {unet_name(name, bool(second)): value for name, value in unet.state_dict().items()}
    for name, value in vae.state_dict().items():
        is_attention = "attn_1" in vae_name(name) and value.dim() == 2
        tensors[vae_name(name)] = value[:, :, None, None] if is_attention else value
    if second:
        tensors |= clip_tensors(text_encoder, "conditioner.embedders.0.transformer.text_model.")
        tensors |= open_clip_tensors(second[0], "conditioner.embedders.1.model.", unused_layer=False)
    elif unet.config.use_linear_projection:
        tensors |= open_clip_tensors(text_encoder)
    else:
        tensors |= clip_tensors(text_encoder, "cond_stage_model.transformer.text_model.")
    return {name: value.contiguous() for name, value in tensors.items()}


def clip_tensors(text_encoder: CLIPTextModel, prefix: str) -> dict[str, Tensor]:
    """CLIP's names, which are those of transformers."""
    return {prefix + name.removeprefix("text_model."): value for name, value in text_encoder.state_dict().items()}


def open_clip_tensors(
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection,
    prefix: str = "cond_stage_model.model.",
    unused_layer: bool = True,
) -> dict[str, Tensor]:
    """OpenCLIP's names: one matrix for queries, keys and values; and a 24th layer that SD 2.x does not use."""
    own = {name.removeprefix("text_model."): value for name, value in text_encoder.state_dict().items()}
    width = text_encoder.config.hidden_size
    projection = own.get("text_projection.weight", torch.eye(width))
    tensors = {
        f"{prefix}positional_embedding": own["embeddings.position_embedding.weight"],
        f"{prefix}token_embedding.weight": own["embeddings.token_embedding.weight"],
        f"{prefix}text_projection": projection.T,
        f"{prefix}logit_scale": torch.tensor(1.0),
    }
    for kind in ("weight", "bias"):
        tensors[f"{prefix}ln_final.{kind}"] = own[f"final_layer_norm.{kind}"]
        for index in range(text_encoder.config.num_hidden_layers):
            layer, block = f"encoder.layers.{index}.", f"{prefix}transformer.resblocks.{index}."
            parts = [own[f"{layer}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            tensors[f"{block}attn.in_proj_{kind}"] = torch.cat(parts)
            tensors[f"{block}attn.out_proj.{kind}"] = own[f"{layer}self_attn.out_proj.{kind}"]
            for new, old in (("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                             ("mlp.fc2", "mlp.c_proj")):  # fmt: skip
                tensors[f"{block}{old}.{kind}"] = own[f"{layer}{new}.{kind}"]
        if unused_layer:
            tensors[f"{prefix}transformer.resblocks.23.ln_1.{kind}"] = torch.ones(width)
    return tensors


def build(folder: Path, second: bool = False) -> tuple[Path, UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """A config folder of SD 1.x's or SD 2.x's shape, narrow, and a model of it with random weights."""
    vocabulary = tiny.write_tokenizer(folder / "tokenizer")
    unet, vae = UNet2DConditionModel(**UNET, use_linear_projection=second), AutoencoderKL(**VAE)
    text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=vocabulary, **tiny.TEXT))
    unet.save_config(folder / "unet")
    vae.save_config(folder / "vae")
    text_encoder.config.save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(tiny.SCHEDULE))
    return folder, unet, vae, text_encoder
