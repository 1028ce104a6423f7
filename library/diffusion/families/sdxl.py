"""SDXL, which this suite does not train: how its models are recognised, so that they are refused by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NAME = "SDXL"
FILE_PREFIX = "conditioner.embedders."  # of the text encoders' tensors in a single file


def is_sdxl_file(names: Iterable[str]) -> bool:
    """Whether the tensors of a single file, by name, are those of SDXL."""
    return any(name.startswith(FILE_PREFIX) for name in names)


def is_sdxl_folder(folder: Path, unet_settings: Mapping[str, Any]) -> bool:
    """Whether a diffusers folder has a second text encoder, or a UNet that takes conditions besides the text."""
    return (folder / "text_encoder_2").is_dir() or bool(unet_settings.get("addition_embed_type"))
