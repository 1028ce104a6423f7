"""What is audited: LoRA files of output folders (or bare ones), each with its settings, split and audit folder."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from library.errors import Faults
from library.incoming.files import is_file, is_folder
from library.incoming.texts import read_toml
from library.lora_files.adapter_config import is_peft_folder

SOURCES = ("train_data_dir", "dataset_config", "dataset_name")  # where pictures may come from
WRITTEN_TO = ("cache_dir", "tokenizer_cache_dir", "output_dir", "logging_dir")  # a run's folders, not the audit's
SPREAD = 3  # earlier files, enough for the shape of a curve
NUMBER = re.compile(r"-(?:step)?\d{6,8}$")

Typed = Callable[[Mapping[str, Any], str], dict[str, Any]]


def as_written(settings: Mapping[str, Any], file: str) -> dict[str, Any]:
    """The values of a config.toml as they are."""
    return dict(settings)


@dataclass(frozen=True)
class Run:
    """One LoRA file under audit."""

    label: str  # for tables and figures
    lora: Path
    split: Path
    audit: Path  # where the report goes
    settings: Mapping[str, Any]  # options of the training, defaults filled in
    is_last: bool  # False for earlier checkpoints
    alias: str = "LoRA"  # in place of the label in whatever others may read

    def answer_index(self, profile: str) -> Path:
        """The file that says where this LoRA's answers lie."""
        return self.audit / f"sweep-{self.lora.stem}-{profile}.json"


def find_runs(
    outputs: Sequence[str],
    checkpoints: str,
    *,
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any],
    split_file: str | None,
    typed: Typed = as_written,
) -> list[Run]:
    """Every LoRA file to audit, in the order given.

    Args:
        outputs: output folders with config.toml, split.json and a LoRA; or LoRA files.
        checkpoints: "last", "all", or "spread" (the last and up to three earlier ones) of a folder's saved files.
        defaults: settings for bare files, and what a config.toml leaves open.
        overrides: what beats every config.toml.
        split_file: used in place of each folder's own.
        typed: checks what a config.toml says; called with its values and the file for messages.

    Raises:
        InputError: everything that is missing, at once.
    """
    faults = Faults()
    runs: list[Run] = []
    if not outputs:
        faults.add("nothing to audit; give one or more output folders, e.g. bash audit.sh output/my-run")
    for output in outputs:
        path = Path(output)
        if is_folder(path) and not is_peft_folder(path):
            runs += _of_folder(path, checkpoints, defaults, split_file, faults, typed)
        elif is_folder(path) or (path.suffix == ".safetensors" and is_file(path)):
            runs += _of_file(path, {**defaults, **overrides}, split_file, faults, typed)
        else:
            faults.add(f"'{output}' is neither an output folder nor a .safetensors file")
    faults.raise_if_any()
    if "train_data_dir" in overrides:  # a folder that was named beats whatever the training read from
        overrides = {"dataset_config": None, "dataset_name": None, **overrides}
    return _labelled([replace(run, settings={**run.settings, **overrides}) for run in runs])


def _of_folder(
    folder: Path, checkpoints: str, defaults: Mapping[str, Any], split_file: str | None, faults: Faults, typed: Typed
) -> list[Run]:
    config, split = folder / "config.toml", Path(split_file) if split_file else folder / "split.json"
    files = sorted(file for file in folder.glob("*.safetensors") if file.stem != "proxy")
    for needed, what in ((config, "the options of the training"), (split, "who is a member")):
        if not is_file(needed):
            faults.add(f"'{folder}' has no {needed.name} ({what}); a LoRA without it cannot be audited")
    if not files:
        faults.add(f"'{folder}' holds no LoRA file (*.safetensors)")
    if not files or not is_file(config) or not is_file(split):
        return []
    settings = {**defaults, **(faults.attempt(read_settings, config, typed) or {})}
    named = folder / f"{settings['output_name']}.safetensors"
    whole = [file for file in files if not NUMBER.search(file.stem)]
    last = named if named in files else (whole or files)[-1]
    earlier = [file for file in files if file != last and NUMBER.search(file.stem)]
    chosen = [*of_checkpoints(earlier, checkpoints), last]
    return [Run(folder.name, file, split, folder / "audit", settings, file == last) for file in chosen]


def of_checkpoints(earlier: Sequence[Path], checkpoints: str) -> list[Path]:
    """The earlier files that are audited beside the last one.

    Args:
        earlier: in the order of the training, at even distances.
        checkpoints: see ``find_runs``.
    """
    if checkpoints == "all" or (checkpoints == "spread" and len(earlier) <= SPREAD):
        return list(earlier)
    if checkpoints == "last":
        return []
    return [earlier[round((place + 1) * (len(earlier) + 1) / (SPREAD + 1)) - 1] for place in range(SPREAD)]


def _of_file(
    file: Path, defaults: Mapping[str, Any], split_file: str | None, faults: Faults, typed: Typed
) -> list[Run]:
    beside = file.parent / "config.toml"
    stated = faults.attempt(read_settings, beside, typed) if is_file(beside) else None
    settings = {**defaults, **(stated or {})}
    split = Path(split_file) if split_file else file.parent / "split.json"
    if not is_file(split):
        faults.add(f"'{file}' has no split.json beside it; say who was a member with --split_file")
    if not settings.get("pretrained_model_name_or_path"):
        faults.add(f"'{file}' has no config.toml beside it; give --pretrained_model_name_or_path")
    if not any(settings.get(name) for name in SOURCES):
        faults.add(
            f"'{file}' has no config.toml beside it; give --train_data_dir (or --dataset_config, --dataset_name)"
        )
    return [Run(file.stem, file, split, file.parent / f"{file.stem}-audit", settings, True)]


def read_settings(config: Path, typed: Typed = as_written) -> dict[str, Any]:
    """The options of a config.toml, sections flattened.

    The file may be a stranger's: where something is written is this audit's own business, and left out.
    """
    tables = read_toml(config, f"'{config}'")
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return typed({name: value for name, value in flat.items() if name not in WRITTEN_TO}, f"'{config}'")


def _labelled(runs: list[Run]) -> list[Run]:
    """Labels that differ: the folder's name, its parent's too where two are alike, and the checkpoint's number.

    Aliases number the folders and files in the order given, and name none.
    """
    folders = {run.lora.resolve().parent for run in runs}
    alike = {name for name in (folder.name for folder in folders) if sum(folder.name == name for folder in folders) > 1}
    named: list[Run] = []
    several, number = sum(run.is_last for run in runs) > 1, 1
    for run in runs:
        folder = run.lora.resolve().parent
        label = f"{folder.parent.name}/{run.label}" if folder.name in alike else run.label
        alias = f"LoRA {number}" if several else "LoRA"
        if not run.is_last:
            stop = NUMBER.search(run.lora.stem)[0].strip("-")  # type: ignore[index]
            label, alias = f"{label} {stop}", f"{alias} {stop}"
        number += run.is_last  # the earlier ones of a folder stand before its last one
        named.append(replace(run, label=label, alias=alias))
    return named
