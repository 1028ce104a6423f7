"""SDXL, which this suite does not train: how its models are recognised, so that they are refused by name."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from library.errors import InputError
from library.incoming.files import is_file, is_folder
from library.tensor_files import tensor_names

NAME = "SDXL"
FILE_PREFIX = "conditioner.embedders."  # of the text encoders' tensors in a single file


def is_sdxl_file(names: Iterable[str]) -> bool:
    """Whether the tensors of a single file, by name, are those of SDXL."""
    return any(name.startswith(FILE_PREFIX) for name in names)


def is_sdxl_folder(folder: Path, unet_settings: Mapping[str, Any]) -> bool:
    """Whether a diffusers folder has a second text encoder, or a UNet that takes conditions besides the text."""
    return is_folder(folder / "text_encoder_2") or bool(unet_settings.get("addition_embed_type"))


def is_sdxl_place(place: Path) -> bool | None:
    """Whether a base model's file or folder is one of SDXL, tensors unopened; None where that is not seen."""
    if is_folder(place / "unet"):
        return is_folder(place / "text_encoder_2")
    if place.suffix.lower() != ".safetensors" or not is_file(place):
        return None
    try:
        return is_sdxl_file(tensor_names(place))
    except InputError:  # opening the model says what is wrong with it
        return None
