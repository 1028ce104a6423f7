"""kohya's dataset_config ([general], [[datasets]], [[datasets.subsets]]), strictly read from TOML or JSON."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library import json_lines, toml_lines
from library.data.augmentation import METHODS
from library.data.buckets import parse_resolution
from library.errors import Faults, InputError, did_you_mean, shown
from library.incoming.files import is_file, is_folder, read_text
from library.incoming.shapes import LARGEST_WHOLE, WIDEST
from library.incoming.texts import parse_json, parse_toml

logger = logging.getLogger(__name__)

# Kinds of values, as messages name them
TRUTH, WHOLE, NUMBER, TEXT, FOLDER, FILE = (
    "true or false", "a whole number", "a number", "a text", "a folder", "a file",
)  # fmt: skip
SIZE, RANGE = f"a whole number or [width, height], at most {WIDEST} pixels a side", "[least, most] or 'least,most'"

DATASET_KEYS = {
    "batch_size": WHOLE, "resolution": SIZE, "enable_bucket": TRUTH, "min_bucket_reso": WHOLE,
    "max_bucket_reso": WHOLE, "bucket_reso_steps": WHOLE, "bucket_no_upscale": TRUTH,
    "skip_image_resolution": SIZE,
}  # fmt: skip
ANYWHERE = {
    "num_repeats": WHOLE, "shuffle_caption": TRUTH, "keep_tokens": WHOLE, "keep_tokens_separator": TEXT,
    "secondary_separator": TEXT, "caption_separator": TEXT, "enable_wildcard": TRUTH, "caption_prefix": TEXT,
    "caption_suffix": TEXT, "caption_dropout_rate": NUMBER, "caption_dropout_every_n_epochs": WHOLE,
    "caption_tag_dropout_rate": NUMBER, "token_warmup_min": WHOLE, "token_warmup_step": NUMBER, "color_aug": TRUTH,
    "flip_aug": TRUTH, "face_crop_aug_range": RANGE, "random_crop": TRUTH, "resize_interpolation": TEXT,
    "caption_extension": TEXT, "class_tokens": TEXT, "alpha_mask": TRUTH,
}  # fmt: skip
SUBSET_KEYS = {"image_dir": FOLDER, "is_reg": TRUTH, "metadata_file": FILE, "conditioning_data_dir": FOLDER}
LEAST = {
    "batch_size": 1, "min_bucket_reso": 8, "max_bucket_reso": 8, "bucket_reso_steps": 8, "num_repeats": 1,
    "keep_tokens": 0, "caption_dropout_rate": 0, "caption_dropout_every_n_epochs": 0, "caption_tag_dropout_rate": 0,
    "token_warmup_min": 1, "token_warmup_step": 0,
}  # fmt: skip
MOST = {
    "min_bucket_reso": WIDEST, "max_bucket_reso": WIDEST, "bucket_reso_steps": WIDEST, "caption_dropout_rate": 1,
    "caption_tag_dropout_rate": 1,
}  # fmt: skip

_VALIDATION = (
    "the four-sided split already holds images out (nonmember_share, --split_file); aux_loss_every_n_epochs and "
    "aux_loss_every_n_steps set how often validation runs on its aux sides"
)
# Not supported, unless the value asks for nothing
REFUSED = {
    "validation_split": _VALIDATION,
    "validation_seed": _VALIDATION,
    "network_multiplier": "every dataset trains the LoRA at full strength; leave it out or set 1.0",
    "custom_attributes": "its targets (diff_output_preservation) are not supported; use regularisation images (is_reg)",
}
NOTHING: dict[str, tuple[Any, ...]] = {
    "network_multiplier": (1, 1.0),
    "validation_split": (0, 0.0),
    "custom_attributes": ({},),
}
IDLE = {"cache_info": "sizes are read with the pictures' pixels, which the split needs anyway"}
TRAINING_KEYS = ("pretrained_model_name_or_path", "network_module", "network_dim", "train_data_dir", "output_dir",
                 "max_train_steps", "max_train_epochs", "learning_rate", "unet_lr", "optimizer_type")  # fmt: skip
COMMAND_LINE = ("max_token_length", "prior_loss_weight", "masked_loss", "weighted_captions", "seed")


@dataclass(frozen=True)
class SubsetEntry:
    """One subset with all its values."""

    where: str  # e.g. "datasets[0].subsets[1]"
    dataset: int
    values: dict[str, Any]


def read_dataset_config(file: Path, fallback: Mapping[str, Any]) -> list[SubsetEntry]:
    """Every subset; values come from subset, dataset, general, and then ``fallback`` (the command line).

    Raises:
        InputError: all unknown, misplaced, refused or mistyped keys, and paths that do not exist.
    """
    content = _parsed(file)
    _require_datasets(content, file)
    faults = Faults()
    finder = json_lines if file.suffix.lower() == ".json" else toml_lines
    lines = finder.lines_of_keys(read_text(file, f"dataset_config '{file}'"))
    for name in content:
        if name not in ("general", "datasets"):
            faults.add(f"unknown table '{name}'; dataset_config has [general], [[datasets]] and [[datasets.subsets]]")
    shared = {**DATASET_KEYS, **ANYWHERE}
    general = _read_table(content.get("general", {}), "general", shared, file, faults)
    datasets = content.get("datasets", [])
    if not isinstance(datasets, list) or not datasets:
        faults.add("it has no [[datasets]]; give at least one, with [[datasets.subsets]]")
        datasets = []
    entries: list[SubsetEntry] = []
    for index, dataset in enumerate(datasets):
        here = f"datasets[{index}]"
        table = dict(dataset) if isinstance(dataset, dict) else {}
        subsets = table.pop("subsets", [])
        outer = {**fallback, **general, **_read_table(table, here, shared, file, faults)}
        own = []
        for place, subset in enumerate(subsets if isinstance(subsets, list) else []):
            spot = f"{here}.subsets[{place}]"
            own.append(
                SubsetEntry(spot, index, {**outer, **_read_table(subset, spot, ANYWHERE | SUBSET_KEYS, file, faults)})
            )
        if not own:
            faults.add(f"{here} has no [[datasets.subsets]]; give at least one, with image_dir or metadata_file")
        entries += _checked_subsets(own, here, faults)
    if faults.messages:
        raise InputError(*(f"dataset_config '{file}'{_line(message, lines)}: {message}" for message in faults.messages))
    return entries


def _require_datasets(content: Mapping[str, Any], file: Path) -> None:
    """Raises: InputError for a training config, in one sentence."""
    keys = {*content, *(key for table in content.values() if isinstance(table, dict) for key in table)}
    found = [name for name in TRAINING_KEYS if name in keys]
    if "datasets" not in content and found:
        raise InputError(
            f"dataset_config '{file}' is a training config ({', '.join(found[:3])}): give it as config_file; a "
            "dataset_config has [[datasets]] with [[datasets.subsets]]"
        )


def _line(message: str, lines: Mapping[tuple[str, str], int]) -> str:
    """`` line 7`` for a message like "datasets[0].subsets[1]: num_repeats must be ..."; empty where no key is named."""
    where, _, said = message.partition(": ")
    named = re.findall(r"\w+", said)
    return next((f" line {lines[where, name]}" for name in named if (where, name) in lines), "")


def main_resolution(dataset_config: str | None, resolution: str) -> tuple[int, int]:
    """(width, height) in pixels of the run: of the first dataset if the dataset_config states it.

    With a faulty file it is the option's value; ``read_dataset_config`` reports the faults.
    """
    try:
        content = _parsed(Path(dataset_config)) if dataset_config else {}
        tables = [content["datasets"][0], content.get("general", {})]
        return parse_resolution(next(size for table in tables if (size := _size(table.get("resolution")))))
    except (InputError, LookupError, TypeError, AttributeError, StopIteration):
        return parse_resolution(resolution)


def switched_on(dataset_config: str, name: str) -> bool:
    """Whether the file sets a key of any table to something that is on; False for a file that cannot be read."""
    try:
        content = _parsed(Path(dataset_config))
        tables = [content.get("general", {}), *content["datasets"]]
        tables += [subset for dataset in content["datasets"] for subset in dataset.get("subsets", [])]
        return any(bool(table.get(name)) for table in tables)
    except (InputError, LookupError, TypeError, AttributeError):
        return False


def _parsed(file: Path) -> dict[str, Any]:
    """The tables of the file."""
    name = f"dataset_config '{file}'"
    parse = parse_json if file.suffix.lower() == ".json" else parse_toml
    try:
        content = parse(read_text(file, name), name)
    except InputError as error:
        spoiled = "escape" in str(error) or "Unterminated" in str(error)
        way_out = "; in a Windows path write / or double every backslash" if spoiled else ""
        raise InputError(f"{error}{way_out}") from error
    if not isinstance(content, dict):
        raise InputError(f"dataset_config '{file}' must hold one object with 'datasets'")
    return content


def _read_table(table: Any, where: str, known: Mapping[str, str], file: Path, faults: Faults) -> dict[str, Any]:
    """The values of one table in their types; whatever is wrong is a fault."""
    if not isinstance(table, dict):
        faults.add(f"{where} must be a table, got {shown(table)}")
        return {}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name in REFUSED:
            if value is not None and value not in NOTHING.get(name, ()):
                faults.add(f"{where}: '{name}' is not taken: {REFUSED[name]}")
        elif name in IDLE:
            logger.info("%s: '%s' changes nothing here: %s", where, name, IDLE[name])
        elif name in known:
            read = _typed(name, value, known[name], where, file, faults)
            if read is not None:
                values[name] = read
        else:
            faults.add(f"{where}: {_misplaced(name, known)}")
    return values


def _misplaced(name: str, known: Mapping[str, str]) -> str:
    """Where a key belongs that this table does not take."""
    if name in DATASET_KEYS:
        return f"'{name}' belongs to [[datasets]] or [general], not to a subset"
    if name in SUBSET_KEYS:
        return f"'{name}' belongs to [[datasets.subsets]]"
    if name in COMMAND_LINE:
        return f"'{name}' holds for the whole run; give it in config_file or as --{name}"
    return f"unknown '{name}'{did_you_mean(name, [*known, *REFUSED])}"


def _typed(name: str, value: Any, kind: str, where: str, file: Path, faults: Faults) -> Any:
    """The value in its type, or None after a fault."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == TRUTH and isinstance(value, bool):
        return value
    if (kind == WHOLE and isinstance(value, int) and number) or (kind == NUMBER and number):
        return _bounded(name, value, where, faults)
    if kind == SIZE and (size := _size(value)):
        return size
    if kind == RANGE and (span := _span(value)):
        return span
    if kind in (FOLDER, FILE) and isinstance(value, str) and value:
        return _existing(name, value, kind, where, file, faults)
    if kind == TEXT and isinstance(value, str):
        if name == "resize_interpolation" and value not in METHODS:
            faults.add(
                f"{where}: {name} must be one of {', '.join(METHODS)}, got {value!r}{did_you_mean(value, METHODS)}"
            )
            return None
        return value
    faults.add(f"{where}: {name} must be {kind}, got {shown(value)}")
    return None


def _bounded(name: str, value: float, where: str, faults: Faults) -> Any:
    if name in LEAST and not value >= LEAST[name]:
        faults.add(f"{where}: {name} must be at least {LEAST[name]}, got {value!r}")
    elif not value <= (most := MOST.get(name, LARGEST_WHOLE)):
        faults.add(f"{where}: {name} must be at most {most}, got {shown(value)}")
    else:
        return value
    return None


def _size(value: Any) -> str | None:
    """A resolution as the option writes it: '512' or 'width,height'."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*)?", value):
        value = [int(number) for number in value.split(",")]
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) not in (1, 2) or not all(type(number) is int and 0 < number <= WIDEST for number in numbers):
        return None
    return ",".join(str(number) for number in numbers)


def _span(value: Any) -> str | None:
    """face_crop_aug_range as the option writes it: 'least,most'."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or len(value) != 2:
        return None
    return ",".join(str(number) for number in value)


def _existing(name: str, value: str, kind: str, where: str, file: Path, faults: Faults) -> Path | None:
    """A path relative to the working directory, else to the folder of the config file, which is logged."""
    for path in (Path(value).expanduser(), file.parent / value):
        if is_folder(path) if kind == FOLDER else is_file(path):
            if path != Path(value).expanduser():
                logger.info("%s: %s is read relative to the dataset_config file", where, name)
            return path
    faults.add(
        f"{where}: {name} '{value}' is not {kind}, neither in the working directory nor beside the dataset_config"
    )
    return None


def _checked_subsets(subsets: list[SubsetEntry], where: str, faults: Faults) -> list[SubsetEntry]:
    """The subsets of one dataset without repeated folders, after checks of each and of all together."""
    kept: list[SubsetEntry] = []
    seen: set[Path] = set()
    fine_tune = [entry for entry in subsets if entry.values.get("metadata_file")]
    if fine_tune and len(fine_tune) < len(subsets):
        faults.add(
            f"{where}: one dataset cannot have subsets with and without metadata_file, as in kohya; "
            "make two [[datasets]]"
        )
    for entry in subsets:
        values = entry.values
        place = values.get("metadata_file") or values.get("image_dir")
        if place is None and not any(message.startswith(f"{entry.where}:") for message in faults.messages):
            faults.add(f"{entry.where}: image_dir is needed (or metadata_file)")
        if values.get("metadata_file") and values.get("is_reg"):
            faults.add(f"{entry.where}: is_reg needs image_dir instead of metadata_file")
        if values.get("enable_bucket") and values.get("min_bucket_reso", 0) > values.get("max_bucket_reso", 0):
            faults.add(f"{entry.where}: min_bucket_reso is above max_bucket_reso")
        if place is not None and place.resolve() in seen:
            logger.warning("%s: '%s' is given twice in one dataset; the second is ignored", entry.where, place)
            continue
        if place is not None:
            seen.add(place.resolve())
        kept.append(entry)
    if kept and all(entry.values.get("is_reg") for entry in kept):
        faults.add(f"{where} has only regularisation images; a dataset needs a subset to train on")
    return kept
