"""Opens a model in diffusers layout, part by part; every wrong part is reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from library.diffusion.families import sdxl
from library.diffusion.families.recognise import TRAINED, family_of_unet
from library.diffusion.folder_settings import MOST_CONFIG, UNET, check_files
from library.diffusion.hub import without_network
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.weight_files import compare_names, folder_fingerprint
from library.errors import Faults, InputError
from library.incoming.files import is_folder
from library.incoming.foreign import foreign_reader
from library.incoming.shapes import check_shape
from library.incoming.texts import read_json

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
    check_parts(folder, [] if is_folder(tokenizer_folder) else ["tokenizer"])
    check_kind(folder)
    faults = Faults()
    unet = read_part(UNet2DConditionModel, folder / "unet", dtype, faults)
    vae = read_part(AutoencoderKL, folder / "vae", torch.float32, faults)
    text_encoder = read_part(CLIPTextModel, folder / "text_encoder", dtype, faults)
    scheduler = faults.attempt(_opened, DDPMScheduler, folder / "scheduler", "scheduler", faults)
    tokenizer = faults.attempt(_opened, CLIPTokenizer, tokenizer_folder, "tokenizer", faults)
    if scheduler is not None and scheduler.config.prediction_type not in TARGETS:
        faults.add(
            f"'{folder}' predicts {scheduler.config.prediction_type!r} (scheduler/); this suite trains models that "
            f"predict {' or '.join(TARGETS)}"
        )
    if text_encoder is not None and tokenizer is not None:
        faults.attempt(check_words, tokenizer, text_encoder, f"'{tokenizer_folder}'")
    faults.raise_if_any()
    return LatentDiffusion(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        fingerprint=folder_fingerprint(folder),
        file_hashes={},
        family=family_of_unet(unet.config),
    )


def check_parts(folder: Path, absent: Sequence[str] = ()) -> None:
    """Raises: InputError when a part has no folder, or is named as absent already."""
    lacking = [*(name for name in NEEDED if not is_folder(folder / name)), *absent]
    if lacking:
        raise InputError(
            f"'{folder}' is not a diffusers folder of a Stable Diffusion model: it has no {', '.join(lacking)}"
        )


def check_kind(folder: Path) -> None:
    """Raises: InputError when the UNet's settings are those of SDXL, of an inpainting model or of another relative."""
    file = folder / "unet" / "config.json"
    settings = read_json(file, f"'{file}'", MOST_CONFIG, huge=True)
    check_shape(settings, UNET, f"'{file}'")
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


def _opened(kind: Any, folder: Path, role: str, faults: Faults, **options: Any) -> Any:
    """A part, opened without the network once its files have been checked; None after a fault.

    Args:
        role: see ``check_files``.
    """
    before = len(faults.messages)
    check_files(folder, role, faults)
    if len(faults.messages) > before:
        return None
    with foreign_reader(f"'{folder}'"), without_network():
        return kind.from_pretrained(folder, local_files_only=True, **options)


def check_words(tokenizer: Any, text_encoder: Any, name: str) -> None:
    """Raises: InputError for a tokenizer without start, end or padding, or with numbers that the encoder lacks."""
    with foreign_reader(name):
        numbers = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        largest = max([*tokenizer.get_vocab().values(), *(number for number in numbers if number is not None)])
        tokenizer("a", add_special_tokens=False)
    if None in numbers:
        raise InputError(f"{name} has no start, end or padding token")
    if largest >= text_encoder.config.vocab_size:
        raise InputError(
            f"{name} numbers its words up to {largest}, and the text encoder knows {text_encoder.config.vocab_size}"
        )


def read_part(kind: Any, folder: Path, dtype: torch.dtype, faults: Faults) -> Any:
    """Read one part from its folder; None after a fault."""
    role = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae"}.get(kind.__name__, "text_encoder")
    found = faults.attempt(_opened, kind, folder, role, faults, torch_dtype=dtype, output_loading_info=True)
    if found is None:
        return None
    part, report = found
    missing, surplus = (
        [key for key in report.get(name, []) if not key.endswith("position_ids")]
        for name in ("missing_keys", "unexpected_keys")
    )
    compare_names(f"'{folder}'", missing, surplus, faults)
    return part
