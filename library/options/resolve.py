"""From a TOML file and flags to one checked Config; all faults are reported at once, with file and section."""

import dataclasses
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from library.errors import Faults, InputError, did_you_mean
from library.options.declarations import Config, fields_of
from library.options.joint_checks import check_together
from library.options.kohya import (
    REFUSED,
    REFUSED_VALUES,
    RENAMED,
    STAND_FOR,
    VALUES_WITHOUT_EFFECT,
    WITHOUT_EFFECT,
    ZERO_IS_UNSET,
)
from library.options.sources import Given, read_file, read_flags
from library.plain_text import plain, plain_lines, with_plain_streams

TYPES = typing.get_type_hints(Config)
UNSET = (False, None, "", "false", "False")  # values of a switch or a text that ask for nothing


def tell(text: str) -> None:
    """Print one line on the terminal."""
    print(plain(text))


def read_config(door: str, arguments: Sequence[str], notice: Callable[[str], None] = tell) -> Config:
    """Resolve the options of one door: defaults, then ``--config_file``, then flags.

    Args:
        door: name of the script without ending, e.g. "SPLoRA".
        arguments: the command line without the program's name.
        notice: called with a line about each option that has no effect.

    Raises:
        InputError: all unknown, refused, misplaced, mistyped and out-of-bounds options in one message.
        SystemExit: after ``--help``.
    """
    faults = Faults()
    if "--help" in arguments or "-h" in arguments:
        try:
            print(help_text(door), flush=True)
        except BrokenPipeError:  # "| head" has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
    both = collect_options(door, arguments, faults, notice)
    values = {name: _coerced(name, entry, faults) for name, entry in both.items() if not _unset(name, entry)}
    values = {name: value for name, value in values.items() if value is not None}
    _check_bounds(values, both, faults)
    config = dataclasses.replace(Config(), **values)
    check_together(door, config, {name: entry.origin for name, entry in both.items()}, faults)
    faults.raise_if_any()
    return config


def collect_options(
    door: str, arguments: Sequence[str], faults: Faults, notice: Callable[[str], None]
) -> dict[str, Given]:
    """The given options by the names of ``Config``: flags override the file, kohya's old names are resolved."""
    switches = [name for name in fields_of(door) if TYPES[name] is bool] + [*WITHOUT_EFFECT, *REFUSED]
    lists = [name for name in TYPES if TYPES[name] == list[str]]
    flags, config_file = read_flags(arguments, switches=switches, lists=lists, faults=faults)
    file = _known(door, read_file(config_file, faults), faults, notice) if config_file else {}
    known = _known(door, flags, faults, notice)
    if "max_train_steps" in known and "max_train_epochs" not in known:
        file.pop("max_train_epochs", None)
    return file | known


def given_options(door: str, arguments: Sequence[str]) -> list[str]:
    """Names of the options that the file or the flags set, after ``read_config`` found no fault in them."""
    return list(collect_options(door, arguments, Faults(), lambda notice: None))


def recipe_of(door: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that another training needs to repeat a run's recipe: no output, preview, audit or seed.

    Args:
        settings: options of the run by name; unknown names are ignored.
    """
    apart = ("saving", "previews", "audit", "run")
    return {
        name: settings[name]
        for name, field in fields_of(door).items()
        if name in settings
        and (field.metadata["section"] not in apart or name == "save_precision")
        and name not in ("seed", "split_file", "split_secret_file")
    }


def _known(door: str, given: dict[str, Given], faults: Faults, notice: Callable[[str], None]) -> dict[str, Given]:
    """Keep the options that this door uses; say of each other one why it is not taken."""
    known = fields_of(door)
    kept: dict[str, Given] = {}

    def keep(name: str, entry: Given) -> None:
        if name in kept and kept[name].value != entry.value:
            faults.add(f"{entry.origin}: {name} = {entry.value!r} contradicts {kept[name].origin}; leave one out")
        kept[name] = entry

    for written, entry in given.items():
        name = RENAMED.get(written, written)
        if name != written:
            notice(f"{entry.origin}: '{written}' is taken as {name}")
        if name in STAND_FOR:
            if entry.value not in UNSET:
                name, value = STAND_FOR[name]
                notice(f"{entry.origin}: '{written}' is taken as {name} = \"{value}\"")
                keep(name, Given(value, f"{entry.origin}, as {written}"))
        elif name == "optimizer_type" and entry.value == "":
            continue  # kohya's own default, a word for AdamW
        elif name in known and str(entry.value) not in VALUES_WITHOUT_EFFECT.get(name, {}):
            keep(name, entry)
        else:
            _explain_left_out(door, written, entry, faults, notice)
    return kept


def _explain_left_out(door: str, written: str, entry: Given, faults: Faults, notice: Callable[[str], None]) -> None:
    """Say of one option why it is not taken: a notice where that changes nothing, else a fault."""
    name = RENAMED.get(written, written)
    if str(entry.value) in VALUES_WITHOUT_EFFECT.get(name, {}):
        reason = VALUES_WITHOUT_EFFECT[name][str(entry.value)]
        notice(f"{entry.origin}: {name} = {entry.value!r} changes nothing here: {reason}")
    elif name in TYPES:
        used_by = ", ".join(Config.__dataclass_fields__[name].metadata["doors"])
        faults.add(f"{entry.origin}: option '{name}' has no meaning for {door}; it belongs to {used_by}")
    elif name in WITHOUT_EFFECT:
        notice(f"{entry.origin}: '{name}' changes nothing here: {WITHOUT_EFFECT[name]}")
    elif name in REFUSED:
        if entry.value not in UNSET:
            faults.add(f"{entry.origin}: option '{name}' is not taken: {REFUSED[name]}")
    else:
        faults.add(f"{entry.origin}: unknown option '{written}'{did_you_mean(written, fields_of(door))}")


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
            return os.path.expanduser(str(value)) if names_a_place(name) else str(value)
        if wanted == list[str] and isinstance(value, list):
            return [str(item) for item in value]
    except (ValueError, TypeError, KeyError):
        pass
    kind = (
        "a list of texts"
        if wanted == list[str]
        else {bool: "true or false", int: "a whole number"}.get(wanted, "a number" if wanted is float else "a text")
    )
    rates = name == "text_encoder_lr" and isinstance(value, list)
    way_out = "; SD 1.x and 2.x have one text encoder, give one rate" if rates else ""
    faults.add(f"{name} must be {kind}, got {value!r} ({entry.origin}){way_out}")
    return None


def _unset(name: str, entry: Given) -> bool:
    """Whether the value leaves the option unset: an empty text or list, or a 0 that means "off" in kohya."""
    if entry.value in ("", [""]) and (TYPES[name] == list[str] or _may_be_unset_text(TYPES[name])):
        return True
    return name in ZERO_IS_UNSET and entry.value in (0, "0", "0.0") and entry.value is not False


def _may_be_unset_text(hint: Any) -> bool:
    return _optional(hint) and str in typing.get_args(hint)


def _optional(hint: Any) -> bool:
    return isinstance(hint, types.UnionType)


def _check_bounds(values: dict[str, Any], given: dict[str, Given], faults: Faults) -> None:
    """Check numbers against their bounds and texts against their choices."""
    for name, value in values.items():
        facts = Config.__dataclass_fields__[name].metadata
        where = f"got {value!r} ({given[name].origin})"
        reasons = REFUSED_VALUES.get(name, {})
        if str(value) in reasons:
            faults.add(f"{given[name].origin}: {name} = {value!r} is not supported: {reasons[value]}")
        elif facts["choices"] is not None and value not in facts["choices"]:
            options = ", ".join(str(choice) for choice in facts["choices"])
            hint = did_you_mean(str(value), [str(choice) for choice in facts["choices"]])
            faults.add(f"{name} must be one of {options}, {where}{hint}")
        elif value == "" and (default := Config.__dataclass_fields__[name].default):
            faults.add(f"{name} must not be empty, {where}; leave it out to use {default!r}")
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


def names_a_place(name: str) -> bool:
    """Whether the option's value is a path."""
    return name.endswith(("_dir", "_path", "_file", "_config", "_weights", "_json", "_prompts")) or name in (
        "vae",
        "resume",
        "publishable",
    )


def weight_options(door: str, config: Config) -> dict[str, Any]:
    """The options that shape the weights; ``--resume`` compares them."""
    return {name: getattr(config, name) for name, field in fields_of(door).items() if field.metadata["shapes_weights"]}


def help_text(door: str) -> str:
    """All options of a door, each with its default and one line of help."""
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
    """Run a door from the command line; an input error is printed and gives exit status 2."""

    def door() -> int:
        try:
            return main(sys.argv[1:])
        except InputError as error:
            print(plain_lines(error), file=sys.stderr)
            return 2

    return with_plain_streams(door)
