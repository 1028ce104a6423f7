"""One checkpoint file in the original layout: what kind of model it is, and its parts through diffusers' key maps."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.weight_files import file_hashes, fill, read_checkpoint
from library.errors import Faults, InputError, shortened

SD15_FOLDER = Path(__file__).parent / "families" / "sd15"
SD2_FOLDER = Path(__file__).parent / "families" / "sd2"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
CONTEXT_SD2 = 1024  # cross-attention width
logger = logging.getLogger(__name__)


def open_single_file(file: Path, dtype: torch.dtype, config_folder: Path | None = None) -> LatentDiffusion:
    """Convert an original SD 1.x or 2.x file; every tensor must find its place. EMA copies (model_ema.*) are not read.

    Args:
        config_folder: dimensions, schedule and tokenizer; None takes those shipped for the file's kind.

    Raises:
        InputError: files of another kind, by name; missing, unexpected or misshapen tensors, all at once.
    """
    checkpoint = with_text_model_names(file, read_checkpoint(file))
    is_v2 = is_second_generation(file, checkpoint)
    folder = config_folder or (SD2_FOLDER if is_v2 else SD15_FOLDER)
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    faults = Faults()
    try:
        weights = converted(unet, vae, text_encoder, checkpoint, is_v2)
    except KeyError as error:
        raise InputError(f"'{file}' lacks {error} and perhaps more; the file is incomplete, fetch it again") from error
    for name, (part, state) in weights.items():
        fill(part, state, f"'{file}', {name}", faults)
    faults.raise_if_any()
    hashes = file_hashes(file)
    return LatentDiffusion(
        tokenizer=shipped_tokenizer(folder / "tokenizer"),
        text_encoder=text_encoder.to(dtype),
        vae=vae,
        unet=unet.to(dtype),
        scheduler=DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True),
        fingerprint=hashes["ss_new_sd_model_hash"],
        file_hashes=hashes,
        is_v2=is_v2,
    )


def converted(
    unet: Any, vae: Any, text_encoder: Any, checkpoint: Mapping[str, Tensor], is_v2: bool
) -> dict[str, tuple[Any, dict[str, Tensor]]]:
    """Each part with the tensors that a file has for it, under diffusers' names. Raises: KeyError for some gaps."""
    return {
        "UNet": (unet, convert_ldm_unet_checkpoint(dict(checkpoint), config=dict(unet.config))),
        "VAE": (vae, convert_ldm_vae_checkpoint(dict(checkpoint), config=dict(vae.config))),
        "text encoder": (text_encoder, text_encoder_tensors(text_encoder, checkpoint, is_v2)),
    }


def text_encoder_tensors(text_encoder: Any, checkpoint: Mapping[str, Tensor], is_v2: bool) -> dict[str, Tensor]:
    """The text encoder's tensors under transformers' names.

    SD 2.x files hold all 24 layers of OpenCLIP-H; the model was trained on the 23rd's output, so the 24th is left out.
    """
    if not is_v2:
        return dict(convert_ldm_clip_checkpoint(dict(checkpoint)))
    return dict(convert_open_clip_checkpoint(text_encoder, dict(checkpoint), prefix=OPEN_CLIP_PREFIX))


def with_text_model_names(file: Path, checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Very old SD 1.x files name their text encoder without ``text_model.``: those names are put right in memory."""
    old = [
        name for name in checkpoint if name.startswith(CLIP_PREFIX) and not name.startswith(f"{CLIP_PREFIX}text_model.")
    ]
    if not old:
        return checkpoint
    logger.info("'%s' names its text encoder as old files do, without 'text_model.'; read as if it stood there", file)
    renamed = {name: f"{CLIP_PREFIX}text_model.{name.removeprefix(CLIP_PREFIX)}" for name in old}
    return {renamed.get(name, name): value for name, value in checkpoint.items()}


def is_second_generation(file: Path, checkpoint: Mapping[str, Tensor]) -> bool:
    """Whether a file is SD 2.x (else it is SD 1.x). Base and 768-v of SD 2.x have the same tensors.

    Raises:
        InputError: LoRA files, SDXL, inpainting models, parts of models: what it is, or what it lacks.
    """
    if any(name.startswith(("lora_unet_", "lora_te")) for name in checkpoint):
        raise InputError(f"'{file}' is a LoRA, no base model; give the checkpoint that it was trained on")
    if any(name.startswith("conditioner.embedders.") for name in checkpoint):
        raise InputError(f"'{file}' is an SDXL checkpoint; this suite trains SD 1.x and SD 2.x")
    first = checkpoint.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    if first is not None and first.shape[1] == 9:
        raise InputError(f"'{file}' is an inpainting model (9 input channels); give the ordinary one")
    key = checkpoint.get(f"{UNET_PREFIX}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight")
    has_open_clip = any(name.startswith(OPEN_CLIP_PREFIX) for name in checkpoint)
    is_v2 = has_open_clip or (key is not None and key.shape[-1] == CONTEXT_SD2)
    text_prefix = OPEN_CLIP_PREFIX if is_v2 else f"{CLIP_PREFIX}text_model."
    parts = {UNET_PREFIX: "UNet", VAE_PREFIX: "VAE", text_prefix: "text encoder"}
    absent = [
        f"{part} ({prefix}*)"
        for prefix, part in parts.items()
        if not any(name.startswith(prefix) for name in checkpoint)
    ]
    if absent:
        kind = "SD 2.x" if is_v2 else "SD 1.x"
        raise InputError(
            f"'{file}' is no whole {kind} checkpoint: it has no {', '.join(absent)}; its first tensors are "
            f"{shortened(sorted(checkpoint), 3)}"
        )
    return is_v2


def shipped_tokenizer(folder: Path) -> CLIPTokenizer:
    """A tokenizer from its folder; one that states its settings alone takes CLIP's vocabulary from SD 1.5's.

    SD 2.x has the same vocabulary and pads with id 0 ("!") where SD 1.x pads with the end token.
    """
    if (folder / "vocab.json").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    return CLIPTokenizer.from_pretrained(SD15_FOLDER / "tokenizer", local_files_only=True, **settings)
