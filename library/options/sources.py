"""Reads options from the command line and from a TOML file, each value with its origin."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from library.errors import Faults, InputError, shown
from library.incoming.files import read_text
from library.incoming.texts import parse_toml
from library.options.front_ends import say_the_same
from library.toml_lines import lines_of_keys, without_repeats

COMMAND_LINE = "command line"
SPOILED_PATH = re.compile(r"[A-Za-z]:[\x00-\x1f]")  # "C:\new": TOML reads a line break
BACKSLASHES = "; in a Windows path write / or double every backslash, or put it into 'single quotes'"


class Given(NamedTuple):
    """One value as it was written, and where."""

    value: Any
    origin: str


def with_origin(message: str, origins: Mapping[str, str], otherwise: str = "") -> str:
    """A message with the place of the option that it names first; unchanged where it names a line already.

    Args:
        origins: file and line, or command line, of each given option.
        otherwise: the option that a message without one is about.
    """
    if re.search(r"\bline \d+\b", message):
        return message
    unquoted = re.sub(r"'[^']*'", "''", message).partition(";")[0]
    named = [
        word
        for word in re.findall(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+", unquoted)
        + re.findall(r"^(?:--)?([a-z][a-z0-9]*)(?= (?:''|must|is|are|and|=|-?\d))", unquoted)
        if word in origins
    ]
    place = min(named, key=unquoted.index, default=otherwise)
    return message if origins.get(place, COMMAND_LINE) == COMMAND_LINE else f"{message} ({origins[place]})"


def read_flags(
    arguments: Sequence[str], *, switches: Collection[str], lists: Collection[str], faults: Faults
) -> tuple[dict[str, Given], str | None]:
    """Read ``--name value``, ``--name=value``, switches and ``--no-switch``; dashes and underscores are the same.

    Args:
        switches: options that ``--no-`` may switch off.
        lists: options that take several values.

    Returns:
        The flags, and the file that ``--config_file`` names.
    """
    given: dict[str, Given] = {}
    config_file: str | None = None
    index = 0
    while index < len(arguments):
        word = arguments[index]
        index += 1
        if not word.startswith("--"):
            faults.add(f"'{word}' on the command line is not the value of an option; write --name value")
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
        switched_off = name.startswith("no_") and name[3:] in switches
        name = name[3:] if switched_off else name
        if switched_off and values:
            faults.add(f"--no_{name} switches {name} off and takes no value, got {values}", about=name)
        elif switched_off:
            given[name] = Given(False, COMMAND_LINE)
        elif name in lists:
            given[name] = Given(values, COMMAND_LINE)
        elif len(values) > 1:
            faults.add(f"--{name} takes one value, got {values}", about=name)
        else:
            given[name] = Given(values[0] if values else True, COMMAND_LINE)
    return given, config_file


def read_file(path: str, faults: Faults, notice: Callable[[str], None]) -> dict[str, Given] | None:
    """The options of a TOML file, its sections flattened as in kohya; a key that is given twice with two values is a
    fault, and with one value it is told. None where the file cannot be read, which is a fault too.

    Raises:
        InputError: a dataset file.
    """
    path = path if path.endswith(".toml") else path + ".toml"
    try:
        text = read_text(path, f"config_file '{path}'")
        once, repeated = without_repeats(text)
        tables = parse_toml(once, path)
    except InputError as error:
        for message in error.messages:
            faults.add(f"{message}{_way_out(message)}")
        return None
    if "datasets" in tables and set(tables) <= {"datasets", "general"}:
        raise InputError(
            f"{path} is a dataset file ([[datasets]]): give that file as dataset_config, and the options of the "
            "training in another file as config_file"
        )
    for number, name in repeated:
        notice(f"{path} line {number}: '{name}' is given twice with one value")
    lines = lines_of_keys(text)
    given: dict[str, Given] = {}
    for key, value in tables.items():
        section = value if isinstance(value, dict) else {key: value}
        heading = key if isinstance(value, dict) else ""
        for name, entry in section.items():
            line = f" line {lines[heading, name]}" if (heading, name) in lines else ""
            where = f"{path}{line}, [{heading}]" if heading else f"{path}{line}"
            if isinstance(entry, str) and SPOILED_PATH.match(entry):
                faults.add(
                    f"{where}: {name} = {shown(entry)} is not a path: TOML reads its backslash as a control "
                    f"character{BACKSLASHES}",
                    about=name,
                )
            if name in given and not say_the_same(name, given[name].value, entry):
                faults.add(f"{where}: option '{name}' is given twice, also in {given[name].origin}", about=name)
            elif name in given:
                notice(f"{where}: '{name}' is given twice with one value, also in {given[name].origin}")
            given[name] = Given(entry, where)
    return given


def _way_out(error: str) -> str:
    """What to write instead, for the most common mistakes."""
    return BACKSLASHES if "Unescaped" in error or "Unterminated" in error or "Illegal character" in error else ""


def outputs_named(arguments: Sequence[str], kinds: Mapping[str, Any]) -> list[str]:
    """Words that are not the value of an option become the value of --outputs, in any place.

    Args:
        kinds: type of every option by name; a switch takes no word, a list of texts takes several.
    """
    options: list[str] = []
    outputs: list[str] = []
    index = 0
    while index < len(arguments):
        word, index = arguments[index], index + 1
        if not word.startswith("--"):
            outputs.append(word)
            continue
        options.append(word)
        kind = kinds.get(word[2:].replace("-", "_"))
        takes = (
            0 if "=" in word or kind is bool or word.startswith("--no") else len(arguments) if kind == list[str] else 1
        )
        while takes and index < len(arguments) and not arguments[index].startswith("--"):
            options.append(arguments[index])
            index, takes = index + 1, takes - 1
    return [*options, *(["--outputs", *outputs] if outputs else [])]
