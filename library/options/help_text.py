"""What a door prints for --help: its options in groups, in lines that fit the terminal."""

import dataclasses
import shutil
import textwrap
from typing import Any

from library.options.declarations import fields_of
from library.options.docs_page import SECTIONS
from library.trainers import TRAINERS

WIDEST = 100  # columns
INDENT = " " * 6


def help_text(door: str) -> str:
    """The options of a door: a heading for each group; each option with its help, and its default if it has one."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    call = f"bash {door}.sh OUTPUT_DIR ..." if door not in TRAINERS else f"bash {door}.sh"
    lines = [f"{call} [--config_file FILE.toml] [--option value ...]", ""]
    plan = "--dry_run shows what a run would do. " if door in TRAINERS else ""
    lines += textwrap.wrap(
        "Options are keys of the TOML file or flags; a flag beats the file, and --no-NAME switches NAME off. "
        f"{plan}All options in one table: docs/options.md",
        width,
    )
    section = ""
    own = fields_of(door).items() if door in TRAINERS else sorted(fields_of(door).items(), key=_is_the_runs_own)
    for name, field in own:
        if field.metadata["section"] != section:
            section = field.metadata["section"]
            lines += ["", SECTIONS[section].removesuffix(" (not in kohya)").upper()]
        lines += _described(name, field, width)
    return "\n".join(lines)


def _is_the_runs_own(entry: tuple[str, dataclasses.Field]) -> bool:
    """False for the audit's own groups, so that they come first; the others override what the run's config says."""
    return entry[1].metadata["section"] not in ("audit", "run")


def _described(name: str, field: dataclasses.Field, width: int) -> list[str]:
    text, choices = field.metadata["help"], field.metadata["choices"]
    which = "one of" if field.default_factory is dataclasses.MISSING else "words out of"
    known = [f"{which} {', '.join(str(choice) for choice in choices)}"] if choices and len(choices) > 1 else []
    known += [f"default {shown}"] if (shown := _default(field)) else []
    value = "" if isinstance(field.default, bool) else " VALUE"
    body = textwrap.wrap(f"{text} ({'; '.join(known)})" if known else text, width, break_on_hyphens=False,
                         initial_indent=INDENT, subsequent_indent=INDENT)  # fmt: skip
    return [f"  --{name}{value}", *body]


def _default(field: dataclasses.Field) -> str:
    """The default as it is typed; empty where nothing is set, and for a switch that is off."""
    value: Any = field.default_factory() if callable(field.default_factory) else field.default
    if value in (None, "", []) or value is False:
        return ""
    return "on" if value is True else " ".join(value) if isinstance(value, list) else str(value)
