"""Declared shapes of what files hold, and the one check that compares a value with them."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from library.errors import InputError, did_you_mean, shown
from library.incoming.texts import joined

SHOWN_FAULTS = 10
WIDEST = 8192  # pixels of a side that is asked for
LARGEST_WHOLE = 2**31 - 1  # of a setting without a bound of its own


@dataclass(frozen=True)
class Flag:
    """true or false."""


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds, both included."""

    least: int = 0
    most: int = 2**53


@dataclass(frozen=True)
class Number:
    """A finite number within bounds, both included; a whole one is one too."""

    least: float = -math.inf
    most: float = math.inf


@dataclass(frozen=True)
class Text:
    """A text without NUL; of Unicode alone, unless it is a path."""

    longest: int = 1_000_000  # letters
    pattern: str = ""  # of the whole text
    choices: tuple[str, ...] = ()
    is_path: bool = False  # names that are no UTF-8 have lone surrogates here


@dataclass(frozen=True)
class Null:
    """null."""


@dataclass(frozen=True)
class Anything:
    """What the reader does not use, or checks by itself."""


@dataclass(frozen=True)
class ListOf:
    """A list of one shape."""

    of: "Shape"
    least: int = 0
    most: int = 10_000_000


@dataclass(frozen=True)
class TableOf:
    """A table of any keys and one shape of values."""

    of: "Shape"
    key: Text = Text(longest=4096)


@dataclass(frozen=True)
class Record:
    """A table of known keys."""

    needed: Mapping[str, "Shape"]
    optional: Mapping[str, "Shape"] = field(default_factory=dict)
    others: bool = True  # further keys are passed over, as later versions may write them


@dataclass(frozen=True)
class Either:
    """One of several shapes."""

    shapes: tuple["Shape", ...]


Shape = Flag | Whole | Number | Text | Null | Anything | ListOf | TableOf | Record | Either


def check_shape(value: Any, shape: Shape, name: str) -> None:
    """Compare a value with its shape.

    Args:
        name: the file as messages call it.

    Raises:
        InputError: the first faults, each with its place in the file.
    """
    faults = list(islice(faults_of(value, shape), SHOWN_FAULTS))
    if faults:
        raise InputError(*(f"{name}: {fault}" for fault in faults))


def faults_of(value: Any, shape: Shape, place: tuple[Any, ...] = ()) -> Iterator[str]:
    """What is wrong with a value, each as "place must be this, got that"."""
    if isinstance(shape, Record) and isinstance(value, dict):
        yield from _faults_of_record(value, shape, place)
    elif isinstance(shape, TableOf) and isinstance(value, dict):
        for key, item in value.items():
            if not _fits(key, shape.key):
                yield f"{_named(place)} has the key {shown(key)}, and a key must be {expected(shape.key)}"
            yield from faults_of(item, shape.of, (*place, key))
    elif isinstance(shape, ListOf) and isinstance(value, list) and shape.least <= len(value) <= shape.most:
        for index, item in enumerate(value):
            yield from faults_of(item, shape.of, (*place, index))
    elif isinstance(shape, Either):
        yield from _faults_of_either(value, shape, place)
    elif not _fits(value, shape):
        yield f"{_named(place)} must be {expected(shape)}, got {shown(value)}"


def _faults_of_either(value: Any, shape: Either, place: tuple[Any, ...]) -> Iterator[str]:
    """Those of the one shape whose type the value has; else that it is none of them."""
    fitting = [one for one in shape.shapes if _is_of_kind(value, one)]
    if len(fitting) == 1:
        yield from faults_of(value, fitting[0], place)
    elif not any(next(faults_of(value, one, place), None) is None for one in fitting):
        yield f"{_named(place)} must be {expected(shape)}, got {shown(value)}"


def _faults_of_record(value: dict, shape: Record, place: tuple[Any, ...]) -> Iterator[str]:
    known = {**shape.needed, **shape.optional}
    for key in shape.needed:
        if key not in value:
            yield f"{_named(place)} has no '{key}'"
    for key, item in value.items():
        if key in known:
            yield from faults_of(item, known[key], (*place, key))
        elif not shape.others:
            yield f"{_named((*place, key))} is unknown{did_you_mean(str(key), known)}"


def expected(shape: Shape) -> str:
    """A shape in words, for messages."""
    match shape:
        case Flag():
            return "true or false"
        case Null():
            return "null"
        case Whole(least, most):
            return f"a whole number from {least}" + (f" to {most}" if most < 2**53 else "")
        case Number(least, most):
            bounds = [f" from {least:g}"] if least > -math.inf else []
            return "a finite number" + "".join(bounds + ([f" to {most:g}"] if most < math.inf else []))
        case Text():
            return f"one of {', '.join(shape.choices)}" if shape.choices else "a text" + _bounds_of(shape)
        case ListOf(of, least, most):
            size = f" of {least}" if least == most else f" of {least} or more" if least else ""
            return f"a list{size} ({expected(of)} each)"
        case TableOf(of):
            return f"a table ({expected(of)} each)"
        case Record(needed):
            return f"a table with {', '.join(needed)}" if needed else "a table"
        case Either(shapes):
            return " or ".join(expected(one) for one in shapes)
        case _:
            return "anything"


def _bounds_of(shape: Text) -> str:
    """The end of "a text ..."."""
    return f" like {shape.pattern}" if shape.pattern else f" of at most {shape.longest} letters, without NUL"


def _is_of_kind(value: Any, shape: Shape) -> bool:
    """Whether a value is of the type of a shape, whatever is in it."""
    kinds: dict[type, tuple[type, ...]] = {
        Flag: (bool,), Whole: (int,), Number: (int, float), Text: (str,), Null: (type(None),), Anything: (object,),
        ListOf: (list,), TableOf: (dict,), Record: (dict,), Either: (object,),
    }  # fmt: skip
    return isinstance(value, kinds[type(shape)]) and (type(shape) in (Flag, Anything) or not isinstance(value, bool))


def _fits(value: Any, shape: Shape) -> bool:
    """Whether a value without inner values fits."""
    if not _is_of_kind(value, shape):
        return False
    if isinstance(shape, Whole | Number):
        return math.isfinite(value) and shape.least <= value <= shape.most
    if isinstance(shape, Text):
        return _text_fits(value, shape)
    return isinstance(shape, Flag | Null | Anything)


def _text_fits(value: str, shape: Text) -> bool:
    if len(value) > shape.longest or "\0" in value or (shape.choices and value not in shape.choices):
        return False
    if shape.pattern and not re.fullmatch(shape.pattern, value):
        return False
    return shape.is_path or value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _named(place: tuple[Any, ...]) -> str:
    return f"'{joined(place)}'" if place else "it"
