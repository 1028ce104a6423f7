"""The resolved options of a door as TOML, with or without the origin of every value."""

import json
from collections.abc import Sequence
from typing import Any

from library.errors import Faults
from library.file_table import CONFIG_HEADER
from library.options.declarations import Config, fields_of
from library.options.notices import Notices
from library.options.resolve import collect_options
from library.options.values import names_a_place
from library.plain_text import STEERING, plain


def resolved_toml(door: str, config: Config) -> str:
    """The resolved options of a door as TOML, in the sections of their declaration, without unset options."""
    return _as_toml(door, config, {})


def explained_toml(door: str, config: Config, arguments: Sequence[str]) -> str:
    """``resolved_toml`` with the origin of every value: default, file and line, or command line.

    Args:
        arguments: the command line of the config.
    """
    given = collect_options(door, arguments, Faults(), Notices(lambda text: None))
    origins = {name: "default" for name in fields_of(door)} | {name: entry.origin for name, entry in given.items()}
    return _as_toml(door, config, origins)


def _as_toml(door: str, config: Config, origins: dict[str, str]) -> str:
    sections: dict[str, list[str]] = {}
    for name, field in fields_of(door).items():
        value = getattr(config, name)
        if value not in (None, "") and name not in ("audit", "dry_run", "overwrite", "resume"):
            if isinstance(value, str) and names_a_place(name):
                value = value.replace("\\", "/")
            line = f"{name} = {_toml_value(value)}"
            line += f"  # {plain(origins[name])}" if name in origins else ""
            sections.setdefault(field.metadata["section"], []).append(line)
    parts = ["\n".join([f"[{heading}]", *lines, ""]) for heading, lines in sections.items()]
    return "\n".join([f"{CONFIG_HEADER}{door}.py", *parts])


def _toml_value(value: Any) -> str:
    """A value as TOML. Texts are written as JSON, which TOML reads; ``toml.dumps`` breaks a backslash before an x.

    Characters that could control a terminal are written as TOML escapes, so that they read back unchanged.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    if not isinstance(value, str):
        return repr(value)
    return STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))
