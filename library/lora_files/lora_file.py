"""One reader for LoRA files of every kind and naming: training, merging and the audit see the same tensors."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from library.errors import Faults, InputError, shortened
from library.incoming.files import is_file, is_folder, open_regular
from library.lora_files import adapter_config
from library.lora_files.format import KINDS, factors_agree, kind_of, modules_of
from library.lora_files.other_names import kohya_named, other_family, rank_of, renamed
from library.lora_files.sdxl_names import all_sdxl_named, is_sdxl
from library.tensor_files import read_tensors, tensor_hash

PICKLES = (".pt", ".pth", ".ckpt", ".bin")
PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # how torch.save's files begin
PEFT_FILE = "adapter_model.safetensors"
ANY_DIMENSIONS = ("alpha", "dora_scale", "rescale", "diff", "diff_b", "w_norm", "b_norm")
PARTS_OF_KINDS = frozenset(part for sets in KINDS.values() for parts in sets for part in parts)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as every part of the suite sees it."""

    path: Path
    tensors: dict[str, Tensor]  # under kohya's names; every alpha is there and has no dimension
    metadata: dict[str, str]
    kinds: frozenset[str]  # as in library/lora_files/format.py, with "DoRA" where a module has its scale


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file, or a folder that peft wrote.

    Raises:
        InputError: pickles, other families, tensors of no known kind, values and shapes that no LoRA has.
    """
    tensors, metadata = _named_tensors(path)
    tensors = with_sound_alphas(with_todays_glora(tensors))
    faults = Faults()
    for fault in faults_of(tensors):
        faults.add(f"'{path}' {fault}")
    faults.raise_if_any()
    return LoraFile(path, tensors, metadata, kinds_of(tensors))


def check_hash(lora: LoraFile) -> None:
    """Raises: InputError when a file states sshs_model_hash and its tensors have another."""
    stated = lora.metadata.get("sshs_model_hash")
    if stated and not is_folder(lora.path) and stated != (found := tensor_hash(read_tensors(lora.path)[0])):
        raise InputError(
            f"'{lora.path}' is not what was saved: its header states the hash {stated[:12]}, its tensors have "
            f"{found[:12]}; fetch it again, or write a copy with the right hash (check_lora_weights.py --strip)"
        )


def weight_files(path: Path) -> list[Path]:
    """The files with a LoRA's tensors: itself, or those of a peft folder, which may have one for each part."""
    if not is_folder(path):
        return [path]
    places = [path / PEFT_FILE, *(path / part / PEFT_FILE for part in adapter_config.PARTS)]
    return [file for file in places if is_file(file)]


def refuse_pickle(path: Path) -> None:
    """Raises: InputError for files that only Python's pickle reads."""
    with open_regular(path, f"'{path}'") as file:
        start = file.read(4)
    if path.suffix in PICKLES or start.startswith(PICKLED):
        raise InputError(f"'{path}' is a pickle, which can run code: convert it first, to a .safetensors file")


def _named_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors under kohya's names, and the metadata; of a peft folder, all of its parts together."""
    if not is_folder(path):
        return _of_file(path)
    if not adapter_config.is_peft_folder(path):
        raise InputError(f"'{path}' is a folder without peft's adapter_config.json; name the LoRA file in it")
    if is_file(path / "adapter_config.json"):
        return _of_peft_folder(path, "")
    found: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for part in adapter_config.PARTS:
        if is_file(path / part / "adapter_config.json"):
            tensors, stated = _of_peft_folder(path / part, f"{part}.")
            found, metadata = found | tensors, metadata | stated
    return (all_sdxl_named(found) if is_sdxl(found) else found), metadata


def _of_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    refuse_pickle(path)
    tensors, metadata = read_tensors(path)
    _refuse_other_families(path, tensors)
    with _about(path):
        return kohya_named(tensors, metadata), metadata


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Put the file's name before what is said of its tensors."""
    try:
        yield
    except InputError as error:
        raise InputError(*(f"'{path}': {message}" for message in error.messages)) from error


def _of_peft_folder(folder: Path, part: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Args: part: "unet.", "text_encoder." or "text_encoder_2.", or empty where the names of the modules tell."""
    file = folder / PEFT_FILE
    config = adapter_config.config_in_folder(folder)
    if not is_file(file):
        pickled = folder / "adapter_model.bin"
        if is_file(pickled):
            refuse_pickle(pickled)
        raise InputError(f"'{folder}' has no {PEFT_FILE}")
    tensors, metadata = read_tensors(file)
    _refuse_other_families(folder, tensors)
    inner = {f"{part}{name.removeprefix('base_model.model.')}": value for name, value in tensors.items()}
    with _about(folder):
        return renamed(inner, dict.fromkeys(adapter_config.PARTS.values(), config), metadata), metadata


def _refuse_other_families(path: Path, tensors: Mapping[str, Tensor]) -> None:
    other = other_family(tensors)
    if other is not None:
        raise InputError(f"'{path}' is a LoRA for {other}; this suite reads those of SD 1.x, SD 2.x and SDXL")


def with_todays_glora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GLoRA as LyCORIS writes it today (W a1 a2 + b1 b2); early versions had the two names of each pair exchanged."""
    found = dict(tensors)
    for module, parts in modules_of(tensors).items():
        first = parts.get("a1.weight")
        if kind_of(frozenset({*parts, "alpha"})) != "GLoRA" or first is None or first.dim() < 2:
            continue
        if first.shape[0] < first.flatten(1).shape[1]:  # [rank, in] instead of [in, rank]
            for pair in "ab":
                one, two = f"{module}.{pair}1.weight", f"{module}.{pair}2.weight"
                found[one], found[two] = tensors[two], tensors[one]
    return found


def with_sound_alphas(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Alphas of one value as floating numbers without dimension; missing ones are the rank, as every client assumes."""
    sound = dict(tensors)
    for name, value in tensors.items():
        if name.endswith(".alpha") and value.numel() == 1 and value.dtype != torch.bool and not value.is_complex():
            plain = value if value.is_floating_point() else value.float()
            sound[name] = plain.reshape(()) if plain.dim() else plain
    for module, parts in modules_of(tensors).items():
        if "alpha" in parts or kind_of(frozenset(parts)) in ("full difference", "norm"):
            continue
        rank = rank_of(tensors, module)
        if rank is not None or {"lokr_w1", "lokr_w2"} <= set(parts):
            sound[f"{module}.alpha"] = torch.tensor(float(1 if rank is None else rank))
        elif "oft_blocks" in parts:
            sound[f"{module}.alpha"] = torch.tensor(0.0)  # no constraint
    return sound


def kinds_of(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Kinds of the modules, with "DoRA" if one has its scale."""
    parts = modules_of(tensors).values()
    kinds = {kind_of(frozenset(found)) or "unknown" for found in parts}
    return frozenset(kinds | ({"DoRA"} if any("dora_scale" in found for found in parts) else set()))


def faults_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the tensors of a file, each as the end of a sentence; empty if nothing is."""
    if not tensors:
        return ["is no LoRA: it holds no tensor"]
    if not any(name.partition(".")[2] in PARTS_OF_KINDS for name in tensors):
        return [f"is no LoRA: its first tensors are {shortened(sorted(tensors), 3)}"]
    unknown = sorted(name for name, parts in modules_of(tensors).items() if kind_of(frozenset(parts)) is None)
    checks = (
        (unknown, "{} modules of no kind that is read here, or with a part missing"),
        (_where(tensors, Tensor.is_complex), "{} tensors of complex numbers"),
        (_where(tensors, _is_whole), "{} tensors of whole numbers or truth values instead of weights"),
        (_where(tensors, _is_not_finite), "NaN or infinity in {} tensors"),
        (_where(tensors, lambda value: value.numel() == 0), "{} tensors of rank 0 or without a value"),
        (_misshapen(tensors), "{} factors with fewer than 2 or more than 4 dimensions"),
        (_torn(tensors), "{} modules whose factors cannot be multiplied"),
        (_bad_alphas(tensors), "{} alphas that are not one number above 0"),
    )
    return [f"has {what.format(len(names))}: {shortened(names, 3)}" for names, what in checks if names]


def _where(tensors: Mapping[str, Tensor], test: Callable[[Tensor], bool]) -> list[str]:
    return sorted(name for name, value in tensors.items() if test(value))


def _is_whole(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())


def _is_not_finite(value: Tensor) -> bool:
    return value.is_floating_point() and not bool(value.float().isfinite().all())


def _misshapen(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(
        name
        for name, value in tensors.items()
        if name.partition(".")[2] not in ANY_DIMENSIONS and not 2 <= value.dim() <= 4
    )


def _torn(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(name for name, parts in modules_of(tensors).items() if not factors_agree(parts))


def _bad_alphas(tensors: Mapping[str, Tensor]) -> list[str]:
    """OFT's alpha is a constraint and may be 0."""
    return sorted(
        name
        for name, value in tensors.items()
        if name.endswith(".alpha")
        and (value.numel() != 1 or value.is_complex() or not _is_positive(value, tensors, name.partition(".")[0]))
    )


def _is_positive(alpha: Tensor, tensors: Mapping[str, Tensor], module: str) -> bool:
    number = float(alpha)
    return number > 0 or (number == 0 and f"{module}.oft_blocks" in tensors)
