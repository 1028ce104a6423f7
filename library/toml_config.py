"""From a TOML file and flags to one checked Config; every fault is reported at once, with its file and section."""

import dataclasses
import re
import secrets
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import toml

from library.check import Faults, InputError, did_you_mean
from library.config import TRAINERS, Config, fields_of
from library.kohya_options import REFUSED, RENAMED, STAND_FOR, WITHOUT_EFFECT
from library.option_checks import check_together

TYPES = typing.get_type_hints(Config)


class Given(NamedTuple):
    """One value as the person wrote it, and where."""

    value: Any
    origin: str


def read_config(door: str, arguments: Sequence[str], notice: Callable[[str], None] = print) -> Config:
    """Resolve the options of one door: defaults, then ``--config_file``, then flags.

    Args:
        door: name of the script without ending, e.g. "SPLoRA".
        arguments: the command line without the program's name.
        notice: told about options that are taken without effect.

    Raises:
        InputError: every unknown, refused, misplaced, mistyped or out-of-bounds option in one message.
        SystemExit: after ``--help``.
    """
    faults = Faults()
    if "--help" in arguments or "-h" in arguments:
        print(help_text(door))
        raise SystemExit(0)
    flags, config_file = read_flags(door, arguments, faults)
    given = read_file(config_file, faults) if config_file else {}
    both = _known(door, given | flags, faults, notice)
    if "max_train_steps" in flags and "max_train_epochs" not in flags:
        both.pop("max_train_epochs", None)
    values = {name: _coerced(name, entry, faults) for name, entry in both.items()}
    values = {name: value for name, value in values.items() if value is not None}
    _check_bounds(values, both, faults)
    config = dataclasses.replace(Config(), **values)
    check_together(door, config, faults)
    faults.raise_if_any()
    if config.seed >= 0 or door not in TRAINERS:
        return config
    seed = secrets.randbelow(2**31)
    notice(f"no seed was given: {seed} was drawn (config.toml keeps it)")
    return dataclasses.replace(config, seed=seed)


def recipe_of(door: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that another training must repeat to be its twin: no output, preview, audit or seed.

    Args:
        settings: options of the run by name; others are left out.
    """
    apart = ("saving", "previews", "audit", "run")
    return {
        name: settings[name]
        for name, field in fields_of(door).items()
        if name in settings
        and (field.metadata["section"] not in apart or name == "save_precision")
        and name not in ("seed", "split_file")
    }


def read_flags(door: str, arguments: Sequence[str], faults: Faults) -> tuple[dict[str, Given], str | None]:
    """Flags as written: ``--name value``, ``--name=value``, switches, ``--no-switch``; dashes and underscores alike."""
    given: dict[str, Given] = {}
    config_file: str | None = None
    index = 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if not word.startswith("--"):
            faults.add(f"'{word}' on the command line belongs to no option")
            continue
        text, has_value, value = word[2:].partition("=")
        name = text.replace("-", "_")
        values = [value] if has_value else []
        while not has_value and index < len(arguments) and not re.match(r"--[a-zA-Z]", arguments[index]):
            values.append(arguments[index])
            index += 1
        if name == "config_file":
            config_file = values[0] if values else None
            if config_file is None:
                faults.add("--config_file needs a TOML file")
            continue
        switched_off = name.startswith("no_") and name[3:] in fields_of(door) and TYPES[name[3:]] is bool
        name = name[3:] if switched_off else name
        is_list = TYPES.get(name) == list[str]
        if switched_off and not values:
            given[name] = Given(False, "command line")
        elif is_list:
            given[name] = Given(values, "command line")
        elif len(values) > 1:
            faults.add(f"--{name} takes one value, got {values}")
        else:
            given[name] = Given(values[0] if values else True, "command line")
    return given, config_file


def read_file(path: str, faults: Faults) -> dict[str, Given]:
    """The options of a TOML file, sections flattened; a key that stands twice is a fault."""
    file = Path(path) if path.endswith(".toml") else Path(path + ".toml")
    if not file.is_file():
        faults.add(f"config_file '{path}' is not a file")
        return {}
    try:
        tables = toml.loads(file.read_text(encoding="utf-8-sig"))
    except (toml.TomlDecodeError, UnicodeDecodeError, IndexError) as error:
        faults.add(f"{path}: no valid TOML: {error}")
        return {}
    given: dict[str, Given] = {}
    for key, value in tables.items():
        section = value if isinstance(value, dict) else {key: value}
        where = f"{path}, [{key}]" if isinstance(value, dict) else path
        for name, entry in section.items():
            if name in given:
                faults.add(f"{where}: option '{name}' stands twice, also in {given[name].origin}")
            given[name] = Given(entry, where)
    return given


def _known(door: str, given: dict[str, Given], faults: Faults, notice: Callable[[str], None]) -> dict[str, Given]:
    """Keep the options that this door uses; say of each other one why it is not taken."""
    known = fields_of(door)
    kept: dict[str, Given] = {}
    for written, entry in given.items():
        name = RENAMED.get(written, written)
        if name in STAND_FOR:
            if entry.value not in (False, None, ""):
                name, value = STAND_FOR[name]
                notice(f"{entry.origin}: '{written}' is taken as {name} = \"{value}\"")
                kept.setdefault(name, Given(value, entry.origin))
        elif name in known:
            kept[name] = entry
        elif name in TYPES:
            used_by = ", ".join(Config.__dataclass_fields__[name].metadata["doors"])
            faults.add(f"{entry.origin}: option '{name}' has no meaning for {door}; it belongs to {used_by}")
        elif name in WITHOUT_EFFECT:
            notice(f"{entry.origin}: '{name}' changes nothing here: {WITHOUT_EFFECT[name]}")
        elif name in REFUSED:
            if entry.value not in (False, None, ""):
                faults.add(f"{entry.origin}: option '{name}' is not taken: {REFUSED[name]}")
        else:
            faults.add(f"{entry.origin}: unknown option '{written}'{did_you_mean(written, known)}")
    return kept


def _coerced(name: str, entry: Given, faults: Faults) -> Any:
    """The value in the declared type, or None after a fault."""
    hint = TYPES[name]
    wanted = next(kind for kind in typing.get_args(hint) if kind is not type(None)) if _optional(hint) else hint
    value = entry.value
    try:
        if wanted is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if wanted is int and not isinstance(value, bool):
            return int(value) if isinstance(value, (int, str)) or float(value).is_integer() else int("not whole")
        if wanted is float and not isinstance(value, bool):
            if isinstance(value, list) and len(value) == 1:  # kohya's text_encoder_lr is a list, one rate an encoder
                value = value[0]
            return float(value)
        if wanted is str and not isinstance(value, bool) and (isinstance(value, str) or name == "resolution"):
            return str(value)
        if wanted == list[str] and isinstance(value, list):
            return [str(item) for item in value]
    except (ValueError, TypeError, KeyError):
        pass
    kind = (
        "a list of texts"
        if wanted == list[str]
        else {bool: "true or false", int: "a whole number"}.get(wanted, "a number" if wanted is float else "a text")
    )
    faults.add(f"{name} must be {kind}, got {value!r} ({entry.origin})")
    return None


def _optional(hint: Any) -> bool:
    return isinstance(hint, types.UnionType)


def _check_bounds(values: dict[str, Any], given: dict[str, Given], faults: Faults) -> None:
    """Compare numbers with their bounds and texts with their choices."""
    for name, value in values.items():
        facts = Config.__dataclass_fields__[name].metadata
        where = f"got {value!r} ({given[name].origin})"
        if facts["choices"] is not None and value not in facts["choices"]:
            options = ", ".join(str(choice) for choice in facts["choices"])
            hint = did_you_mean(str(value), [str(choice) for choice in facts["choices"]])
            faults.add(f"{name} must be one of {options}, {where}{hint}")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if value != value or value in (float("inf"), float("-inf")):
            faults.add(f"{name} must be a finite number, {where}")
        elif facts["least"] is not None and value < facts["least"]:
            faults.add(f"{name} must be at least {facts['least']}, {where}")
        elif facts["above"] is not None and value <= facts["above"]:
            faults.add(f"{name} must be above {facts['above']}, {where}")
        elif facts["most"] is not None and value > facts["most"]:
            faults.add(f"{name} must be at most {facts['most']}, {where}")


def resolved_toml(door: str, config: Config) -> str:
    """The resolved options of a door as TOML, in the sections of their declaration; unset ones are left out."""
    sections: dict[str, dict[str, Any]] = {}
    for name, field in fields_of(door).items():
        value = getattr(config, name)
        if value not in (None, "") and name not in ("dry_run", "overwrite", "resume"):
            text = value.replace("\\", "/") if isinstance(value, str) and name.endswith(("_dir", "_path")) else value
            sections.setdefault(field.metadata["section"], {})[name] = text
    return f"# resolved options of {door}.py\n" + toml.dumps(sections)


def weight_options(door: str, config: Config) -> dict[str, Any]:
    """The options that shape the weights, for the comparison that ``--resume`` makes."""
    return {name: getattr(config, name) for name, field in fields_of(door).items() if field.metadata["shapes_weights"]}


def help_text(door: str) -> str:
    """All options of a door with default and one line of help each."""
    lines = [f"python {door}.py --config_file configs/NAME.toml [--option value ...]", ""]
    section = ""
    for name, field in fields_of(door).items():
        if field.metadata["section"] != section:
            section = field.metadata["section"]
            lines.append(f"[{section}]")
        default = [] if field.default is dataclasses.MISSING else field.default
        lines.append(f"  --{name:<34} {field.metadata['help']} (default {default})")
    return "\n".join(lines)


def run(main: Callable[[list[str]], int]) -> int:
    """Run a door on the command line; an input error goes to the terminal with exit status 2."""
    try:
        return main(sys.argv[1:])
    except InputError as error:
        print(str(error), file=sys.stderr)
        return 2
