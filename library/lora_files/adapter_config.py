"""What peft states beside its tensors: alpha, rank and their exceptions, from a config file or a header."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from library.errors import InputError
from library.incoming.files import MOST_SETTINGS, is_file
from library.incoming.texts import parse_json, read_json

TYPES = ("LORA", "LOHA", "LOKR")  # of peft; others have no kind that kohya's clients know
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")  # ways to start that subtract something from the base model
PARTS = {  # folders that diffusers' scripts write with peft
    "unet": "lora_unet_",
    "text_encoder": "lora_te_",
    "text_encoder_2": "lora_te2_",
}


@dataclass(frozen=True)
class AdapterConfig:
    """Alpha and rank of one adapted model."""

    alpha: float | None = None  # None: every alpha is the rank
    rank: float | None = None  # needed only where no tensor shows it
    alphas: Mapping[str, float] = field(default_factory=dict)  # exceptions: pattern of module paths -> value
    ranks: Mapping[str, float] = field(default_factory=dict)
    by_square_root: bool = False  # rank-stabilised: the scale is alpha / sqrt(rank)

    def alpha_of(self, path: str, rank: float) -> float | None:
        """The alpha that gives the stated scale when it is divided by the rank; None where none is stated."""
        alpha = matching(self.alphas, path, self.alpha)
        return alpha if alpha is None or not self.by_square_root else alpha * rank**0.5

    def rank_of(self, path: str) -> float | None:
        """The stated rank."""
        return matching(self.ranks, path, self.rank)


def matching(patterns: Mapping[str, float], path: str, otherwise: float | None) -> float | None:
    """The value of the first pattern that fits the end of a module path from a dot on, as peft chooses."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return otherwise


def config_of(stated: Any, where: str) -> AdapterConfig:
    """Read peft's own table of settings.

    Raises:
        InputError: an adapter of another type, one that changes the base model too, values of a wrong type.
    """
    if not isinstance(stated, Mapping):
        raise InputError(f"{where} is not a table of settings")
    kind = stated.get("peft_type", "LORA")
    if kind not in TYPES:
        raise InputError(f"{where}: peft_type {kind!r} is not read; {', '.join(TYPES)} are")
    start = stated.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        raise InputError(
            f"{where}: init_lora_weights = {start!r} changes the base model too; let peft convert it to an ordinary "
            "LoRA (path_initial_model_for_weight_conversion)"
        )
    alpha, rank = (_figure(stated.get(name), f"{where}: {name}") for name in _names_of(stated))
    alphas, ranks = (_figures(stated.get(name), f"{where}: {name}") for name in ("alpha_pattern", "rank_pattern"))
    return AdapterConfig(alpha, rank, alphas, ranks, by_square_root=stated.get("use_rslora") is True)


def _names_of(stated: Mapping[str, Any]) -> tuple[str, str]:
    return "lora_alpha" if "lora_alpha" in stated else "alpha", "r"


def _figure(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise InputError(f"{what} must be a number above 0, got {str(value)[:40]!r}")
    return float(value)


def _figures(value: Any, what: str) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{what} must be a table of numbers")
    found: dict[str, float] = {}
    for pattern, number in value.items():
        if not re.fullmatch(r"\^?[\w.]+", str(pattern)):  # a stranger's regular expression could run for hours
            raise InputError(f"{what}: {str(pattern)[:60]!r} is not the plain end of a module path")
        found[str(pattern)] = _figure(number, f"{what}[{str(pattern)[:60]!r}]") or 0.0
    return found


def is_peft_folder(path: Path) -> bool:
    """Whether a folder is an adapter of peft, or holds one for each part of the model."""
    return any(is_file(place / "adapter_config.json") for place in (path, *(path / part for part in PARTS)))


def config_in_folder(folder: Path) -> AdapterConfig:
    """The settings in a peft folder. Raises: InputError when the file is missing or wrong."""
    file = folder / "adapter_config.json"
    return config_of(read_json(file, f"'{file}'", MOST_SETTINGS), f"'{file}'")


def configs_in_header(metadata: Mapping[str, str]) -> dict[str, AdapterConfig]:
    """What diffusers writes into a file's header, by part: "unet", "text_encoder".

    Raises:
        InputError: a header that is not as diffusers writes it.
    """
    where = "lora_adapter_metadata"
    stated = parse_json(metadata.get(where, "{}"), where)
    if not isinstance(stated, Mapping):
        raise InputError(f"{where} is not a table of settings")
    by_part: dict[str, dict[str, Any]] = {}
    for name, value in stated.items():
        part, _, setting = str(name).partition(".")
        by_part.setdefault(part, {})[setting] = value
    return {part: config_of(settings, f"{where} of {part}") for part, settings in by_part.items()}
