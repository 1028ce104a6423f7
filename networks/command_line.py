"""What the tools on LoRA files share: strict flags, checked places, LoRA files as factors, what is written."""

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from library.diffusion.families.recognise import FAMILIES
from library.errors import Faults, InputError, did_you_mean, shortened
from library.incoming.files import exists, is_file, is_folder
from library.lora_files.families import context_width, family_name
from library.lora_files.format import DTYPES, BrokenNetworkError, kind_of, modules_of, stated_ranks, write_lora
from library.lora_files.lora_file import LoraFile, check_hash, read_lora
from library.lora_files.metadata_leaks import carried
from library.lora_files.sdxl_names import is_sdxl
from library.plain_text import plain
from networks.low_rank import Factors, factors_of

NAMES_OF_DTYPES = {dtype: name for name, dtype in DTYPES.items()}
RESERVE = 16 * 1024**2  # bytes that a disk keeps free beside what is written


class Flags(argparse.ArgumentParser):
    """Flags with kohya's names, strictly read: none is abbreviated, and faults are one InputError."""

    def __init__(self, about: str) -> None:
        super().__init__(description=about, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises: InputError."""
        raise InputError(message)

    def names(self) -> set[str]:
        """The flags without dashes, positional ones left out."""
        return {flag[2:] for action in self._actions for flag in action.option_strings if flag.startswith("--")}

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """The options; dashes within a flag are taken for underscores. Raises: InputError, with every unknown flag."""
        words = [_underscored(word) for word in arguments]
        known = {f"--{name}" for name in self.names()}
        faults = Faults()
        for word in words:
            flag = word.partition("=")[0]
            if word.startswith("--") and flag not in known:
                faults.add(f"unknown option '{flag}'{did_you_mean(flag, known)}")
        faults.raise_if_any()
        return self.parse_args(words)

    def add_common(self, *, precision: bool = True) -> None:
        """save_precision, no_metadata, device and overwrite, which every tool that writes has."""
        if precision:
            self.add_argument(
                "--save_precision", choices=list(DTYPES), help="dtype of the file; the input's by default"
            )
        self.add_argument("--no_metadata", action="store_true", help="write only what clients need to read the file")
        self.add_argument("--device", default="cpu", help="where the arithmetic runs: cpu (default) or cuda")
        self.add_argument("--overwrite", action="store_true", help="replace save_to where it exists")


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, sign, value = word[2:].partition("=")
    return f"--{flag.replace('-', '_')}{sign}{value}"


def checked_device(name: str) -> torch.device:
    """Raises: InputError for a device that this machine does not have."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{name}' is not there; use --device cpu") from error
    return device


def check_positive(value: float | None, name: str, most: float | None = None) -> None:
    """Raises: InputError for a number that is not above 0, or above its bound."""
    if value is not None and (not value > 0 or (most is not None and value > most)):
        bound = "above 0" + (f" and at most {most:g}" if most is not None else "")
        raise InputError(f"{name} must be {bound}, got {value:g}")


def check_output(save_to: str, inputs: Sequence[str | Path], *, overwrite: bool, folder: bool = False) -> Path:
    """The place of the result, so that no input is touched and nothing is lost.

    Args:
        folder: the result is a folder; one that exists is never replaced.

    Raises:
        InputError: an input itself, a place inside one, a file that exists, a missing folder, another ending.
    """
    path = Path(save_to)
    for one in map(Path, inputs):
        if exists(one) and (path.resolve() == one.resolve() or (exists(path) and os.path.samefile(path, one))):
            raise InputError(
                f"save_to '{path}' is also an input; the tools leave inputs as they are: give another name"
            )
        if is_folder(one) and path.resolve().is_relative_to(one.resolve()):
            raise InputError(f"save_to '{path}' lies inside the input '{one}'; give a place outside it")
    if not folder and path.suffix != ".safetensors":
        raise InputError(f"save_to '{path}' must end in .safetensors; other formats can run code and are not written")
    if not is_folder(path.parent):
        raise InputError(f"save_to '{path}': there is no folder '{path.parent}'; make it first")
    if exists(path) and (folder or not overwrite or not is_file(path)):
        way_out = "give another name" if folder or not is_file(path) else "use --overwrite or give another name"
        raise InputError(f"save_to '{path}' exists already; {way_out}")
    return path


def check_room(path: Path, size: int) -> None:
    """Raises: InputError when the disk has too little room for a file of this size, before hours are spent on it."""
    free = shutil.disk_usage(path.parent).free
    if size + RESERVE > free:
        raise InputError(
            f"'{path}' needs {size / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free; inputs are as they were"
        )


def read_checked(path: str) -> LoraFile:
    """A LoRA of any kind and naming. Raises: InputError, see ``read_lora``; a hash that is not its tensors'."""
    lora = read_lora(Path(path))
    check_hash(lora)
    return lora


def factors_in(lora: LoraFile, task: str) -> dict[str, Factors]:
    """The factors of every module.

    Args:
        task: what the tool cannot do with other kinds, e.g. "cut to a rank".

    Raises:
        InputError: kinds whose change is no product of two factors, by name.
    """
    modules = modules_of(lora.tensors)
    found = {name: factors_of(parts) for name, parts in modules.items()}
    others = [name for name, factors in found.items() if factors is None]
    if others:
        kinds = {kind_of(frozenset(modules[name])) or "unknown" for name in others if "dora_scale" not in modules[name]}
        kinds |= {"DoRA"} if any("dora_scale" in modules[name] for name in others) else set()
        raise InputError(
            f"'{lora.path}' holds modules of the kind {' and '.join(sorted(kinds))}, which cannot be {task}: "
            f"{shortened(others, 2)}; merge it into its base model (merge_lora.py --sd_model) and take a LoRA of the "
            "result (extract_lora_from_models.py)"
        )
    return {name: factors for name, factors in found.items() if factors is not None}


def precision_of(tensors: Mapping[str, Tensor]) -> str:
    """The save_precision that keeps the dtype of a file's tensors; the widest where they differ."""
    widest = torch.float16
    dtypes = {value.dtype for name, value in tensors.items() if not name.endswith(".alpha")}
    if dtypes == {torch.bfloat16}:
        return "bf16"
    return NAMES_OF_DTYPES[widest] if dtypes <= {widest} else "float"


def family_facts(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What names and widths say of the base model; nothing where they are of no family."""
    family = next((one for one in FAMILIES if one.name == family_name(tensors)), None)
    if family is None:
        return {}
    base_model, architecture, implementation = family.version
    return {
        "ss_v2": str(family.v2),
        "ss_base_model_version": base_model,
        "modelspec.architecture": architecture,
        "modelspec.implementation": implementation,
    }


def check_family(checkpoint: Any, options: argparse.Namespace) -> None:
    """Raises: InputError for a checkpoint of another family than the flags v2 and sdxl say."""
    family = checkpoint.family
    for flag, is_so in (("v2", family.v2), ("sdxl", family.name == "SDXL")):
        if getattr(options, flag) and not is_so:
            raise InputError(f"{flag} is set, but '{checkpoint.path}' is an {family.name} model; leave --{flag} out")


def check_one_family(loras: Sequence[LoraFile]) -> None:
    """Raises: InputError for LoRAs of different families, or whose layers read text states of different widths."""
    of_sdxl = {lora.path: is_sdxl(lora.tensors) for lora in loras}
    if len(set(of_sdxl.values())) > 1:
        stated = ", ".join(f"'{path}'" for path, is_so in of_sdxl.items() if is_so)
        raise InputError(f"the LoRAs were made for different base models: SDXL alone {stated}, the others for others")
    widths = {lora.path: context_width(lora.tensors) for lora in loras}
    known = {width for width in widths.values() if width is not None}
    if len(known) > 1:
        stated = ", ".join(f"'{path}' {width}" for path, width in widths.items() if width is not None)
        raise InputError(f"the LoRAs were made for different base models: width of the text states: {stated}")


def write_result(
    path: Path,
    modules: Mapping[str, Mapping[str, Tensor]],
    sources: Sequence[Mapping[str, str]],
    precision: str,
    *,
    no_metadata: bool,
    more: Mapping[str, str] | None = None,
) -> None:
    """Write a LoRA with new hashes, and the metadata that its sources share and that may be shared.

    Args:
        more: metadata of the tool's own.

    Raises:
        InputError: values that the precision cannot hold; a disk without room.
    """
    tensors = {f"{name}.{part}": value for name, parts in modules.items() for part, value in parts.items()}
    dim, alpha = stated_ranks(tensors)
    facts = {
        "modelspec.sai_model_spec": "1.0.1",
        **family_facts(tensors),
        "modelspec.title": "LoRA",
        **carried(sources),
        "ss_network_module": "networks.lora",
        "ss_network_dim": dim,
        "ss_network_alpha": alpha,
        "ss_network_args": "{}",
        **(more or {}),
    }
    check_room(path, sum(value.numel() for value in tensors.values()) * DTYPES[precision].itemsize)
    try:
        write_lora(path, tensors, carried([facts], minimal=no_metadata), precision)
    except BrokenNetworkError as error:
        raise InputError(f"'{path}' was not written as {precision}: {error}; try --save_precision float") from error
    print(plain(f"written: {path} ({len(modules)} modules, rank {dim}, {precision})"))
