"""Values of options as they are written, read in their declared types and checked against their bounds."""

import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from library.errors import Faults, did_you_mean, shown
from library.incoming.files import unusable_name
from library.incoming.shapes import LARGEST_WHOLE, WIDEST
from library.options.declarations import Config
from library.options.front_ends import PAIRS, is_our_own
from library.options.kohya import REFUSED_VALUES, ZERO_IS_UNSET
from library.options.sources import COMMAND_LINE, SPOILED_PATH, Given

TYPES = typing.get_type_hints(Config)
SHARES = ("lr_warmup_steps", "lr_decay_steps", "token_warmup_step")  # steps, or a share of the run: 0.1 or "10%"
SIZES = ("resolution", "skip_image_resolution")


def typed_values(given: Mapping[str, Given], faults: Faults) -> dict[str, Any]:
    """The values that set an option, in the declared types and within their bounds; each other one is a fault."""
    values = {name: _coerced(name, entry, faults) for name, entry in given.items() if not leaves_unset(name, entry)}
    values = {name: value for name, value in values.items() if value is not None}
    _check_bounds(values, given, faults)
    _check_names(values, given, faults)
    return {name: value for name, value in values.items() if name not in faults.about}


def _coerced(name: str, entry: Given, faults: Faults) -> Any:
    """The value in the declared type, or None after a fault."""
    hint = TYPES[name]
    wanted = next(kind for kind in typing.get_args(hint) if kind is not type(None)) if _optional(hint) else hint
    try:
        value = _plainer(name, entry.value)
        if wanted is bool:
            return {"true": True, "false": False, "1": True, "0": False}[str(value).lower()]
        if wanted is int and not isinstance(value, bool):
            return int(value) if isinstance(value, (int, str)) or float(value).is_integer() else int("not whole")
        if name == "text_encoder_lr" and isinstance(value, list) and value:
            return [float(rate) for rate in value]
        if wanted is float and not isinstance(value, bool):
            return float(value)
        if wanted is str and not isinstance(value, bool) and (isinstance(value, str) or name in PAIRS):
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
    share = ', or a share of the run such as 0.1 or "10%" (below 100%)' if name in SHARES else ""
    faults.add(f"{name} must be {kind}{share}, got {shown(entry.value)} ({entry.origin})", about=name)
    return None


def _plainer(name: str, value: Any) -> Any:
    """The value without the forms in which kohya and its front-ends also write it."""
    if name == "text_encoder_lr" and isinstance(value, list) and len({str(rate) for rate in value}) == 1:
        return value[0]  # one for each text encoder
    if name in PAIRS and isinstance(value, list) and all(type(item) in (int, float, str) for item in value):
        return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    if name in PAIRS and isinstance(value, float) and value.is_integer():
        return int(value)
    if name in SHARES and isinstance(value, str) and value.strip().endswith("%"):
        share = float(value.strip()[:-1]) / 100
        return share if share < 1 else value
    return value


def leaves_unset(name: str, entry: Given) -> bool:
    """Whether the value leaves the option unset: an empty text or list, or a 0 that means "off" in kohya.

    An option that kohya has is also unset by the word None, by an empty text in place of a number, a switch or one of
    several words, and by false in place of anything but a switch.
    """
    value, hint = entry.value, TYPES[name]
    if value in ("", [""]) and (hint == list[str] or (_optional(hint) and str in typing.get_args(hint))):
        return True
    if name in ZERO_IS_UNSET and value in (0, "0", "0.0") and value is not False:
        return True
    if is_our_own(name):
        return False
    needs_text = hint is str and Config.__dataclass_fields__[name].metadata["choices"] is None
    if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
        return (
            not needs_text
            and not _is_a_choice(name, value)
            and not (names_a_place(name) and os.path.exists(str(value)))
        )
    if value == []:
        return entry.origin != COMMAND_LINE
    return not needs_text and (value == "" or (value is False and hint is not bool))


def _is_a_choice(name: str, value: Any) -> bool:
    return value in (Config.__dataclass_fields__[name].metadata["choices"] or ())


def _optional(hint: Any) -> bool:
    return isinstance(hint, types.UnionType)


def _check_bounds(values: dict[str, Any], given: Mapping[str, Given], faults: Faults) -> None:
    """Check numbers against their bounds and texts against their choices and forms."""
    for name, value in values.items():
        reason = _out_of_bounds(name, value, given[name])
        if reason:
            faults.add(reason, about=name)


def _out_of_bounds(name: str, value: Any, entry: Given) -> str:
    """Why an option cannot have a value of its type; empty where it can."""
    facts = Config.__dataclass_fields__[name].metadata
    where = f"got {shown(value)} ({entry.origin})"
    reasons = REFUSED_VALUES.get(name, {})
    if str(value) in reasons:
        return f"{entry.origin}: {name} = {value!r} is not supported: {reasons[value]}"
    if facts["choices"] is not None and (wrong := _not_among(value, facts["choices"])):
        options = ", ".join(str(choice) for choice in facts["choices"])
        hint = did_you_mean(str(wrong[0]), [str(choice) for choice in facts["choices"]])
        return f"{name} must be {'words out of' if isinstance(value, list) else 'one of'} {options}, {where}{hint}"
    if value == "" and (default := Config.__dataclass_fields__[name].default):
        return f"{name} must not be empty, {where}; leave it out to use {default!r}"
    if name in SIZES and not re.fullmatch(r"\d+(\s*,\s*\d+)?", value.strip()):
        return f"{name} must be '512' or 'width,height' in pixels, {where}"
    if name in SIZES and any(len(side.strip()) > 9 or int(side) > WIDEST for side in value.split(",")):
        return f"{name} must be at most {WIDEST} pixels a side, {where}"
    numbers = value if isinstance(value, list) else [value]
    numbers = [one for one in numbers if isinstance(one, (int, float)) and not isinstance(one, bool)]
    return next((why for one in numbers if (why := _out_of_range(name, one, where))), "")


def _not_among(value: Any, choices: Sequence[Any]) -> list[Any]:
    """What of a value, or of the words of a list, is no choice."""
    return [one for one in (value if isinstance(value, list) else [value]) if one not in choices]


def _out_of_range(name: str, value: float, where: str) -> str:
    """Why a number is not within the option's bounds; empty where it is."""
    facts = Config.__dataclass_fields__[name].metadata
    if value != value or value in (float("inf"), float("-inf")):
        return f"{name} must be a finite number, {where}"
    if facts["least"] is not None and value < facts["least"]:
        return f"{name} must be at least {facts['least']}, {where}"
    if facts["above"] is not None and value <= facts["above"]:
        return f"{name} must be above {facts['above']}, {where}"
    most = LARGEST_WHOLE if facts["most"] is None and isinstance(value, int) else facts["most"]
    if most is not None and value > most:
        return f"{name} must be at most {most}, {where}"
    return ""


def _check_names(values: Mapping[str, Any], given: Mapping[str, Given], faults: Faults) -> None:
    """Check that what names a place is a name that a file can have."""
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, str) or not names_a_place(name) or SPOILED_PATH.match(one):  # told where it is read
                continue
            if why := unusable_name(one):
                faults.add(f"{name} {why}, got {shown(one)} ({given[name].origin})", about=name)


def names_a_place(name: str) -> bool:
    """Whether the option's value is a path."""
    return name.endswith(("_dir", "_path", "_file", "_config", "_weights", "_json", "_prompts")) or name in (
        "vae",
        "outputs",
        "resume",
        "publishable",
    )
