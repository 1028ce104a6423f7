"""Reads TOML, JSON and JSON lines with bounds on nesting and numbers, which the parsers do not have."""

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from library.errors import InputError
from library.incoming.files import MOST_LIST, MOST_SETTINGS, read_text

DEEPEST = 64  # tables and lists inside each other
LARGEST = 2**63 - 1
# A key of so many parts takes tomllib's time, which grows with their square
ENDLESS_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){100}""")
SHOWN_FAULTS = 5


def read_toml(path: str | Path, name: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises: InputError, see ``read_text`` and ``parse_toml``."""
    return parse_toml(read_text(path, name, MOST_SETTINGS), name)


def read_json(path: str | Path, name: str, most: int = MOST_LIST, *, finite: bool = True, huge: bool = False) -> Any:
    """The value in a JSON file. Raises: InputError, see ``read_text`` and ``parse_json``."""
    return parse_json(read_text(path, name, most), name, finite=finite, huge=huge)


def read_json_lines(path: str | Path, name: str) -> list[tuple[int, Any]]:
    """(line, value) of every line that is not empty. Raises: InputError, with the line."""
    return parse_json_lines(read_text(path, name, MOST_LIST), name)


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        InputError: the parser's reason with line and column; nesting or numbers beyond the bounds.
    """
    if ENDLESS_KEY.search(text):
        raise InputError(f"{name} is not valid TOML here: it has a key of more than 100 parts")
    try:
        tables = tomllib.loads(text)
    except RecursionError as error:
        raise InputError(f"{name} is not valid TOML here: {_too_deep()}") from error
    except ValueError as error:
        raise InputError(f"{name} is not valid TOML: {_reason(error)}") from error
    check_bounds(tables, name)
    return tables


def parse_json(text: str, name: str, *, finite: bool = True, huge: bool = False) -> Any:
    """The value of a JSON text.

    Args:
        finite: refuse NaN and infinity, which JSON does not have and Python writes.
        huge: take whole numbers beyond 64 bits, by which transformers says "no limit".

    Raises:
        InputError: the parser's reason with line and column; nesting or numbers beyond the bounds.
    """
    try:
        value = json.loads(text, parse_constant=_finite if finite else None, parse_float=_finite if finite else None)
    except RecursionError as error:
        raise InputError(f"{name} is not valid JSON here: {_too_deep()}") from error
    except ValueError as error:
        raise InputError(f"{name} is not valid JSON: {_reason(error)}") from error
    check_bounds(value, name, huge=huge)
    return value


def parse_json_lines(text: str, name: str) -> list[tuple[int, Any]]:
    """(line, value) of every line that is not empty. Raises: InputError, with the line."""
    lines = enumerate(text.split("\n"), 1)
    return [(number, parse_json(line, f"{name}, line {number}")) for number, line in lines if line.strip()]


def check_bounds(value: Any, name: str, *, huge: bool = False) -> None:
    """Raises: InputError for nesting deeper than DEEPEST, and for whole numbers beyond 64 bits, with their places."""
    faults: list[str] = []
    waiting: list[tuple[Any, tuple, int]] = [(value, (), 0)]
    while waiting:
        one, path, depth = waiting.pop()
        if isinstance(one, int) and abs(one) > LARGEST and not huge:
            faults.append(f"{name}: {place_of(path) or 'it'} is a whole number beyond 64 bits")
        elif isinstance(one, (dict, list)):
            if depth >= DEEPEST:
                raise InputError(f"{name}: {_too_deep()}")
            inner = one.items() if isinstance(one, dict) else enumerate(one)
            waiting += [(item, (path, key), depth + 1) for key, item in inner if isinstance(item, (dict, list, int))]
        if len(faults) >= SHOWN_FAULTS:
            break
    if faults:
        raise InputError(*faults)


def place_of(path: tuple) -> str:
    """A place inside a value, e.g. "images[3].side", from (((), "images"), 3), "side")."""
    return joined(reversed(list(_upwards(path))))


def joined(keys: Iterable[Any]) -> str:
    """Keys and numbers of a place as one text."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{str(key)[:80]}" if text else str(key)[:80]
    return text


def _upwards(path: tuple) -> Iterator[Any]:
    while path:
        path, key = path
        yield key


def _reason(error: ValueError) -> str:
    """The parser's reason; of a number that is too long, one without Python's own settings."""
    return "a whole number has thousands of digits" if "set_int_max_str_digits" in str(error) else str(error)


def _too_deep() -> str:
    return f"tables or lists are nested more than {DEEPEST} deep"


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word[:40]} is no number that can be used")
    return number
