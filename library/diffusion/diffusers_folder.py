"""Opens a model in diffusers layout, part by part; every wrong part is reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTokenizer

from library.diffusion.conditioning import pooled_width
from library.diffusion.families import sdxl
from library.diffusion.families.family import Family
from library.diffusion.families.recognise import family_of_settings
from library.diffusion.folder_settings import MOST_CONFIG, UNET, check_files
from library.diffusion.hub import without_network
from library.diffusion.latent_diffusion import LatentDiffusion, alone_or_all
from library.diffusion.weight_files import compare_names, folder_fingerprint
from library.errors import Faults, InputError
from library.incoming.files import is_folder
from library.incoming.foreign import foreign_reader
from library.incoming.shapes import check_shape
from library.incoming.texts import read_json

NEEDED = ("unet", "vae", "scheduler")  # beside the text encoders
TARGETS = ("epsilon", "v_prediction")


def open_folder(folder: Path, dtype: torch.dtype, tokenizer_folder: Path | None = None) -> LatentDiffusion:
    """Read a diffusers folder of a family that this suite trains.

    Args:
        tokenizer_folder: folder of the tokenizer; None: ``tokenizer`` in the model's folder.

    Raises:
        InputError: models of another kind, by name; missing, damaged or misshapen parts, all at once.
    """
    family = check_kind(folder)
    places = [folder / one.tokenizer for one in family.texts]
    places[0] = tokenizer_folder or places[0]
    check_parts(folder, family, [place.name for place in places if not is_folder(place)])
    faults = Faults()
    unet = read_part(UNet2DConditionModel, folder / "unet", dtype, faults)
    vae = read_part(AutoencoderKL, folder / "vae", torch.float32, faults)
    text_encoders = [read_part(one.kind, folder / one.folder, dtype, faults) for one in family.texts]
    scheduler = faults.attempt(_opened, DDPMScheduler, folder / "scheduler", "scheduler", faults)
    tokenizers = [faults.attempt(_opened, CLIPTokenizer, place, "tokenizer", faults) for place in places]
    if scheduler is not None and scheduler.config.prediction_type not in TARGETS:
        faults.add(
            f"'{folder}' predicts {scheduler.config.prediction_type!r} (scheduler/); this suite trains models that "
            f"predict {' or '.join(TARGETS)}"
        )
    for place, tokenizer, text_encoder in zip(places, tokenizers, text_encoders, strict=True):
        if text_encoder is not None and tokenizer is not None:
            faults.attempt(check_words, tokenizer, text_encoder, f"'{place}'")
    faults.raise_if_any()
    check_texts(folder, unet, text_encoders, tokenizers)
    return LatentDiffusion(
        tokenizer=alone_or_all(tokenizers),
        text_encoder=alone_or_all(text_encoders),
        vae=vae,
        unet=unet,
        scheduler=scheduler,
        fingerprint=folder_fingerprint(folder, [*(one.folder for one in family.texts), "unet", "vae"]),
        file_hashes={},
        family=family,
    )


def check_parts(folder: Path, family: Family | None, absent: Sequence[str] = ()) -> None:
    """Raises: InputError when a part has no folder, or is named as absent already.

    Args:
        family: None: it is not known, because the UNet is absent.
    """
    texts = ["text_encoder"] if family is None else [one.folder for one in family.texts]
    lacking = [*(name for name in (*NEEDED[:2], *texts, *NEEDED[2:]) if not is_folder(folder / name)), *absent]
    if lacking:
        kind = "a Stable Diffusion" if family is None else f"an {family.name}"
        raise InputError(f"'{folder}' is not a diffusers folder of {kind} model: it has no {', '.join(lacking)}")


def check_texts(folder: Path, unet: Any, text_encoders: Sequence[Any], tokenizers: Sequence[Any]) -> None:
    """Raises: InputError when several text encoders do not go with each other, or with the UNet."""
    if len(text_encoders) == 1:
        return
    widths = [one.config.hidden_size for one in text_encoders]
    if sum(widths) != unet.config.cross_attention_dim or text_encoders[-1].config.projection_dim != pooled_width(
        unet.config
    ):
        raise InputError(
            f"'{folder}': the text encoders give {' + '.join(map(str, widths))} numbers a token and "
            f"{text_encoders[-1].config.projection_dim} for the caption, and the UNet takes "
            f"{unet.config.cross_attention_dim} and {pooled_width(unet.config)}; the parts are of different models"
        )
    if any(one.get_vocab() != tokenizers[0].get_vocab() for one in tokenizers):
        raise InputError(f"'{folder}' has tokenizers with different word lists; SDXL's two share one")


def check_kind(folder: Path) -> Family:
    """The family of a folder, by its UNet's settings.

    Raises:
        InputError: no UNet; an inpainting model, SDXL's refiner or another relative.
    """
    if not is_folder(folder / "unet"):
        check_parts(folder, None, [] if is_folder(folder / "tokenizer") else ["tokenizer"])
    file = folder / "unet" / "config.json"
    settings = read_json(file, f"'{file}'", MOST_CONFIG, huge=True)
    check_shape(settings, UNET, f"'{file}'")
    channels, answers = settings.get("in_channels", 4), settings.get("out_channels", 4)
    if channels == 9:
        raise InputError(f"'{folder}' is an inpainting model (9 input channels); give the ordinary one")
    if channels != answers or settings.get("class_embed_type") or settings.get("num_class_embeds"):
        raise InputError(
            f"'{folder}' is not a plain text-to-image model: its UNet takes {channels} channels, or a class besides "
            "the text; give the ordinary one"
        )
    family = family_of_settings(settings)
    has = [is_folder(folder / one.folder) for one in family.texts]
    if len(has) > 1 and has == [False, True]:
        raise sdxl.refiner_refused(folder)
    if settings.get("addition_embed_type") and len(family.texts) == 1:
        raise InputError(
            f"'{folder}' takes conditions beside the text ({settings['addition_embed_type']!r}) that no family here has"
        )
    return family


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
