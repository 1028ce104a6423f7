"""Opens a model in diffusers layout, part by part; every wrong part is reported."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from library.diffusion.families import sdxl
from library.diffusion.families.recognise import TRAINED, family_of_unet
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.weight_files import compare_names, first_line, folder_fingerprint
from library.errors import Faults, InputError

NEEDED = ("unet", "vae", "text_encoder", "scheduler")
TARGETS = ("epsilon", "v_prediction")


def open_folder(folder: Path, dtype: torch.dtype, tokenizer_folder: Path | None = None) -> LatentDiffusion:
    """Read a diffusers folder of a family that this suite trains.

    Args:
        tokenizer_folder: folder of the tokenizer; None: ``tokenizer`` in the model's folder.

    Raises:
        InputError: models of another kind, by name; missing, damaged or misshapen parts, all at once.
    """
    tokenizer_folder = tokenizer_folder or folder / "tokenizer"
    absent = [name for name in NEEDED if not (folder / name).is_dir()]
    absent += [] if tokenizer_folder.is_dir() else ["tokenizer"]
    if absent:
        raise InputError(
            f"'{folder}' is not a diffusers folder of a Stable Diffusion model: it has no {', '.join(absent)}"
        )
    check_kind(folder)
    faults = Faults()
    unet = read_part(UNet2DConditionModel, folder / "unet", dtype, faults)
    vae = read_part(AutoencoderKL, folder / "vae", torch.float32, faults)
    text_encoder = read_part(CLIPTextModel, folder / "text_encoder", dtype, faults)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    if scheduler.config.prediction_type not in TARGETS:
        faults.add(
            f"'{folder}' predicts {scheduler.config.prediction_type!r} (scheduler/); this suite trains models that "
            f"predict {' or '.join(TARGETS)}"
        )
    faults.raise_if_any()
    return LatentDiffusion(
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True),
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        fingerprint=folder_fingerprint(folder),
        file_hashes={},
        family=family_of_unet(unet.config),
    )


def check_kind(folder: Path) -> None:
    """Raises: InputError when the UNet's settings are those of SDXL, of an inpainting model or of another relative."""
    file = folder / "unet" / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{file}' cannot be read: {first_line(error)}") from error
    if sdxl.is_sdxl_folder(folder, settings):
        raise InputError(f"'{folder}' is an {sdxl.NAME} model; this suite trains {TRAINED}")
    channels, answers = settings.get("in_channels", 4), settings.get("out_channels", 4)
    if channels == 9:
        raise InputError(f"'{folder}' is an inpainting model (9 input channels); give the ordinary one")
    if channels != answers or settings.get("class_embed_type") or settings.get("num_class_embeds"):
        raise InputError(
            f"'{folder}' is not a plain text-to-image model: its UNet takes {channels} channels, or a class besides "
            "the text; give the ordinary one"
        )


def read_part(kind: Any, folder: Path, dtype: torch.dtype, faults: Faults) -> Any:
    """Read one part from its folder; None after a fault."""
    try:
        part, report = kind.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        faults.add(f"'{folder}' cannot be read: {first_line(error)}")
        return None
    missing, surplus = (
        [key for key in report.get(name, []) if not key.endswith("position_ids")]
        for name in ("missing_keys", "unexpected_keys")
    )
    compare_names(f"'{folder}'", missing, surplus, faults)
    return part
