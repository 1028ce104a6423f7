"""From a TOML file and flags to one checked Config; all faults are reported at once, with file and section."""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from library.errors import Faults, InputError
from library.options.declarations import Config, fields_of
from library.options.further_faults import add_further_faults
from library.options.joint_checks import check_together
from library.options.known_keys import known_keys, refuse_sdxl
from library.options.kohya import REFUSED, WITHOUT_EFFECT
from library.options.notices import Notices
from library.options.settled import settled
from library.options.sources import Given, read_file, read_flags
from library.options.values import TYPES, leaves_unset, typed_values
from library.plain_text import plain, plain_lines, with_plain_streams


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
    notices = Notices(notice)
    both = collect_options(door, arguments, faults, notices)
    values = typed_values(both, faults)
    config = settled(door, dataclasses.replace(Config(), **values), both, notices)
    notices.finish()
    check_together(door, config, {name: entry.origin for name, entry in both.items()}, faults)
    if faults.messages:
        add_further_faults(door, config, faults)
    faults.raise_if_any()
    return config


def collect_options(door: str, arguments: Sequence[str], faults: Faults, notices: Notices) -> dict[str, Given]:
    """The given options by the names of ``Config``: flags override the file, kohya's old names are resolved.

    Raises:
        InputError: a config of another kind, in one sentence: a dataset file, a config of SDXL.
    """
    switches = [name for name in fields_of(door) if TYPES[name] is bool] + [*WITHOUT_EFFECT, *REFUSED]
    lists = [name for name in TYPES if TYPES[name] == list[str]] + ["text_encoder_lr"]
    flags, config_file = read_flags(arguments, switches=switches, lists=lists, faults=faults)
    written = read_file(config_file, faults, notices.tell) if config_file else {}
    refuse_sdxl(door, written | flags)
    file = known_keys(door, written, faults, notices)
    known = known_keys(door, flags, faults, notices)
    steps = known.get("max_train_steps")
    if steps is not None and not leaves_unset("max_train_steps", steps) and "max_train_epochs" not in known:
        file.pop("max_train_epochs", None)
    return file | known


def given_options(door: str, arguments: Sequence[str]) -> list[str]:
    """Names of the options that the file or the flags set, after ``read_config`` found no fault in them."""
    return list(collect_options(door, arguments, Faults(), Notices(lambda text: None)))


def typed_settings(settings: Mapping[str, Any], file: str) -> dict[str, Any]:
    """What a run's config.toml says, in the declared types and bounds; keys that are no options are left out.

    Raises:
        InputError: every value that its option does not take.
    """
    faults = Faults()
    given = {name: Given(value, file) for name, value in settings.items() if name in TYPES}
    typed = typed_values(given, faults)
    faults.raise_if_any()
    return typed


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
