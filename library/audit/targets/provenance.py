"""What a LoRA file states about its training, and whether it was trained on this base."""

import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from library.errors import InputError
from library.lora_files.lora_file import read_lora, weight_files
from library.lora_files.metadata import PRIVACY_PREFIX
from library.tensor_files import read_tensors, state_fingerprint, write_tensors
from library.trainers import PRIVATE, TRAINERS

KEPT_APART = ("base_fingerprint",)


@dataclass(frozen=True)
class Provenance:
    """Facts of the training; None where the file does not state them."""

    method: str
    trainer: str  # the suite's own door that trained it; empty for another trainer, whatever the file says
    settings: Mapping[str, str]
    exposures: float | None
    defended: bool | None
    fingerprint: str  # of the tensors: a stamp in the metadata does not change it
    shape: str  # of names and ranks: untrained adapters of this shape are shared


def provenance(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Provenance:
    """Read the ss_privacy_* keys. A stranger may have written them: only the suite's own names are taken from them.

    Raises:
        InputError: a figure that is not a number.
    """
    ours = {name: text for name, text in metadata.items() if name.startswith(PRIVACY_PREFIX)}
    stated = {name.removeprefix(PRIVACY_PREFIX): text for name, text in ours.items()}
    settings = {name: text for name, text in stated.items() if name not in KEPT_APART and not name.startswith("audit_")}
    if "ss_network_dim" in metadata:
        settings["network_dim"] = metadata["ss_network_dim"]
    alpha, exposures = (_figure(stated, name) for name in ("param_alpha", "exposures_per_image"))
    method = stated["method"] if stated.get("method") in TRAINERS else "another trainer"
    defended = None if alpha is None else alpha > 0 or bool(_figure(stated, "distill_folds"))
    if method in PRIVATE:
        defended = True
    shapes = {name: value.new_zeros(value.shape) for name, value in tensors.items() if not name.endswith("alpha")}
    return Provenance(
        method="LoRA" if defended is False else method,
        trainer=method if method in TRAINERS else "",
        settings=settings,
        exposures=exposures,
        defended=defended,
        fingerprint=state_fingerprint(tensors),
        shape=state_fingerprint(shapes),
    )


def _figure(stated: Mapping[str, str], name: str) -> float | None:
    """A number that the file states, or None where it states none."""
    if name not in stated:
        return None
    try:
        value = float(stated[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise InputError(
            f"the LoRA's metadata says {PRIVACY_PREFIX}{name} = {stated[name]!r}, which is not a number of at least 0; "
            "this suite did not write it, or somebody changed it since"
        )
    return value


def check_base(file: Path, metadata: Mapping[str, str], base_fingerprint: str, base_hashes: Mapping[str, str]) -> None:
    """Raises: InputError when the file names another base than the one that was opened."""
    known = {f"{PRIVACY_PREFIX}base_fingerprint": base_fingerprint, **base_hashes}
    for name, here in known.items():
        stated = metadata.get(name)
        if stated and here and stated != here:
            raise InputError(
                f"'{file}' was trained on another base model ({name}: {stated[:12]} in the file, {here[:12]} here); "
                "give its own base with --pretrained_model_name_or_path, and its VAE with --vae if it had another"
            )


def read_adapter(file: Path) -> tuple[dict[str, Tensor], dict[str, str], Provenance]:
    """Tensors of a LoRA file or peft folder under kohya's names, its metadata, and what it says of itself.

    Raises:
        InputError: what is no LoRA, or one of another family; NaN in it.
    """
    lora = read_lora(file)
    return lora.tensors, lora.metadata, provenance(lora.tensors, lora.metadata)


def stamp(lora: Path, facts: Mapping[str, str]) -> None:
    """Put measured figures into a LoRA's metadata in place of an earlier audit's; tensors, hash and mode stay."""
    for file in weight_files(lora):
        tensors, metadata = read_tensors(file)
        mode = stat.S_IMODE(file.stat().st_mode)
        kept = {name: text for name, text in metadata.items() if not name.startswith(f"{PRIVACY_PREFIX}audit_")}
        write_tensors(file, tensors, {**kept, **facts})
        file.chmod(mode)
