"""Opens one checkpoint file in the original layout, with diffusers' key maps."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from library.diffusion.families.family import Family
from library.diffusion.families.recognise import family_of_file
from library.diffusion.families.sd1 import CLIP_PREFIX
from library.diffusion.families.sdxl import VELOCITY_MARK
from library.diffusion.latent_diffusion import LatentDiffusion, alone_or_all
from library.diffusion.weight_files import file_hashes, fill, read_checkpoint
from library.errors import Faults, InputError, shortest
from library.incoming.texts import read_json

logger = logging.getLogger(__name__)


def open_single_file(file: Path, dtype: torch.dtype, config_folder: Path | None = None) -> LatentDiffusion:
    """Convert a file in the original layout; every tensor must have its place. EMA copies (model_ema.*) are not read.

    Args:
        config_folder: dimensions, schedule and tokenizer; None: those shipped for the file's family.

    Raises:
        InputError: files of another kind, by name; all missing, unexpected and misshapen tensors.
    """
    checkpoint = with_text_model_names(file, read_checkpoint(file))
    family = family_of_file(file, checkpoint)
    folder = config_folder or family.settings
    with init_empty_weights(include_buffers=False):  # the file's own tensors become the weights, without a copy
        unet, vae, *text_encoders = parts = unfilled_parts(folder, family)
    faults = Faults()
    weights = converted(file, parts, checkpoint, family)
    for name, (part, state) in weights.items():
        fill(part, state, f"'{file}', {name}", faults)
    faults.raise_if_any()
    hashes = file_hashes(file)
    return LatentDiffusion(
        tokenizer=alone_or_all([shipped_tokenizer(folder / one.tokenizer, family) for one in family.texts]),
        text_encoder=alone_or_all([one.to(dtype) for one in text_encoders]),
        vae=vae.float(),
        unet=unet.to(dtype),
        scheduler=_schedule(folder / "scheduler", says_velocity=VELOCITY_MARK in checkpoint),
        states_its_target=VELOCITY_MARK in checkpoint,
        fingerprint=hashes["ss_new_sd_model_hash"],
        file_hashes=hashes,
        family=family,
    )


def _schedule(folder: Path, *, says_velocity: bool) -> DDPMScheduler:
    """The shipped noise schedule, with the target of a file that says that it predicts velocity."""
    scheduler = DDPMScheduler.from_pretrained(folder, local_files_only=True)
    if says_velocity:
        scheduler.register_to_config(prediction_type="v_prediction")
    return scheduler


def unfilled_parts(folder: Path, family: Family) -> tuple[Any, ...]:
    """UNet, VAE and the text encoders from their settings, with weights that are still to be read."""
    return (
        UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")),
        AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")),
        *(one.kind(CLIPTextConfig.from_pretrained(folder / one.folder)) for one in family.texts),
    )


def converted(
    file: Path, parts: Sequence[Any], checkpoint: Mapping[str, Tensor], family: Family
) -> dict[str, tuple[Any, dict[str, Tensor]]]:
    """UNet, VAE and the text encoders by role, each with its tensors from a file under diffusers' names.

    Raises:
        InputError: tensors that are missing, or of shapes that diffusers' key maps do not take.
    """
    unet, vae, *text_encoders = parts
    try:
        return {
            "UNet": (unet, convert_ldm_unet_checkpoint(dict(checkpoint), config=dict(unet.config))),
            "VAE": (vae, convert_ldm_vae_checkpoint(dict(checkpoint), config=dict(vae.config))),
            **{
                one.role: (text_encoder, one.tensors(text_encoder, checkpoint))
                for one, text_encoder in zip(family.texts, text_encoders, strict=True)
            },
        }
    except KeyError as error:
        raise InputError(f"'{file}' lacks {error} and possibly more; the file is incomplete, fetch it again") from error
    except (IndexError, RuntimeError, ValueError, TypeError, AttributeError) as error:  # of diffusers' key maps
        raise InputError(
            f"'{file}' has tensors of shapes that no {family.name} model has ({shortest(error)})"
        ) from error


def with_text_model_names(file: Path, checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add ``text_model.`` to the names of the text encoder's tensors in very old SD 1.x files."""
    old = [
        name for name in checkpoint if name.startswith(CLIP_PREFIX) and not name.startswith(f"{CLIP_PREFIX}text_model.")
    ]
    if not old:
        return checkpoint
    logger.info("'%s' has the text encoder's names of old files, without 'text_model.'; it is added", file)
    renamed = {name: f"{CLIP_PREFIX}text_model.{name.removeprefix(CLIP_PREFIX)}" for name in old}
    return {renamed.get(name, name): value for name, value in checkpoint.items()}


def shipped_tokenizer(folder: Path, family: Family) -> CLIPTokenizer:
    """A tokenizer from its folder; a folder with settings only gets the family's shipped vocabulary."""
    if (folder / "vocab.json").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    file = folder / "tokenizer_config.json"
    settings = read_json(file, f"'{file}'", huge=True)
    return CLIPTokenizer.from_pretrained(family.vocabulary, local_files_only=True, **settings)
