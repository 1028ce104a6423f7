"""Prompts of the previews, in kohya's three formats: .txt (one prompt a line), .toml and .json."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from library import json_lines, toml_lines
from library.errors import Faults, InputError, did_you_mean, shown
from library.incoming.files import read_text
from library.incoming.shapes import WIDEST
from library.incoming.texts import parse_json, parse_toml

logger = logging.getLogger(__name__)
LETTERS = {
    "n": "negative_prompt", "w": "width", "h": "height", "d": "seed", "l": "scale", "s": "sample_steps",
    "ss": "sample_sampler", "g": "guidance_scale", "cn": "controlnet_image", "am": "additional_network_multiplier",
    "fs": "flow_shift", "ctr": "ctr",
}  # fmt: skip
REFUSED = {
    "guidance_scale": "distilled guidance belongs to FLUX; the scale of classifier-free guidance is --l (scale)",
    "controlnet_image": "previews are generated without a ControlNet; leave it out",
}
IGNORED = ("additional_network_multiplier", "flow_shift", "ctr")  # of other scripts and other families
FLAGS = {key: f"--{letter}" for letter, key in LETTERS.items()}
KEYS = ("prompt", *(key for key in LETTERS.values() if key not in (*REFUSED, *IGNORED)))
BOUNDS = (("sample_steps", 1, 1000), ("seed", 0, 2**63 - 1), ("width", 0, WIDEST), ("height", 0, WIDEST))
GUIDANCE, STEPS = 7.5, 30  # kohya's
OPTION = re.compile(r"\s--(?=[a-z]+(?:\s|$))")


@dataclass(frozen=True)
class Place:
    """Where a prompt stands, for messages."""

    file: str
    name: str  # of the prompt, where its lines are not known
    lines: Mapping[tuple[str, str], int]  # by heading and key, as library.toml_lines finds them
    headings: tuple[str, ...]  # of the prompt, then of what it inherits

    def of(self, key: str) -> str:
        """The line of a key, else of the prompt, else the prompt's number."""
        known = [self.lines[heading, one] for one in (key, "") for heading in self.headings
                 if (heading, one) in self.lines]  # fmt: skip
        return f"sample_prompts '{self.file}' {f'line {known[0]}' if known else self.name}"


Lines = Mapping[tuple[str, str], int]
Entries = Iterator[tuple[Place, Mapping[str, Any]]]  # place of a prompt, and its values by kohya's keys


@dataclass(frozen=True)
class Prompt:
    """One preview."""

    text: str
    negative: str
    width: int  # pixels
    height: int  # pixels
    seed: int
    guidance: float  # classifier-free guidance scale
    steps: int
    sampler: str


def read_prompts(
    file: str | None, size: tuple[int, int], seed: int, multiple: int, samplers: list[str]
) -> list[Prompt]:
    """The prompts of a file; an empty list without a file.

    Args:
        size: (width, height) in pixels where a prompt states none.
        seed: of the start noise where a prompt states none.
        multiple: sides must be multiples of this many pixels.
        samplers: known names; prompts without a sampler use the first.

    Raises:
        InputError: all unknown keys, wrong numbers and sizes that the model cannot generate; a file without prompts.
    """
    if file is None:
        return []
    faults = Faults()
    defaults = {
        "negative_prompt": "",
        "width": size[0],
        "height": size[1],
        "seed": seed,
        "scale": GUIDANCE,
        "sample_steps": STEPS,
        "sample_sampler": samplers[0],
    }
    found = [_prompt(where, defaults, given, multiple, samplers, faults) for where, given in _entries(file, faults)]
    if not found:
        faults.add(f"sample_prompts '{file}' holds no prompt")
    faults.raise_if_any()
    return [prompt for prompt in found if prompt is not None]


def _entries(file: str, faults: Faults) -> Entries:
    """The entries of a file, prompt by prompt."""
    path, name = Path(file), f"sample_prompts '{file}'"
    try:
        text = read_text(path, name)
        if path.suffix == ".txt":
            yield from _of_lines(file, text)
        elif path.suffix == ".toml":
            yield from _of_table(file, parse_toml(text, name), toml_lines.lines_of_keys(text), faults)
        elif path.suffix == ".json":
            content = parse_json(text, name)
            read = _of_list if isinstance(content, list) else _of_table
            yield from read(file, content, json_lines.lines_of_keys(text), faults)
        else:
            faults.add(f"sample_prompts '{file}' must end in .txt, .toml or .json")
    except InputError as error:
        faults.take(error)


def _of_lines(file: str, text: str) -> Entries:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield Place(file, f"line {number}", {}, ()), _of_line(line)


def _of_line(line: str) -> dict[str, Any]:
    """The text of a line and the options behind it, under kohya's keys; an unknown letter stays as ``--letter``."""
    text, *options = OPTION.split(line)
    given: dict[str, Any] = {"prompt": text.strip()}
    for option in options:
        letter, _, value = option.partition(" ")
        given[LETTERS.get(letter, f"--{letter}")] = value.strip()
    return given


def _of_table(file: str, content: Any, lines: Lines, faults: Faults) -> Entries:
    """kohya's [prompt] with [[prompt.subset]]: a subset inherits the values of the table."""
    table = content.get("prompt") if isinstance(content, Mapping) else None
    if not isinstance(table, Mapping):
        faults.add(f"sample_prompts '{file}' must hold a table [prompt], with [[prompt.subset]] for several prompts")
        return
    strange = [key for key in content if key != "prompt"]
    if strange:
        faults.add(f"sample_prompts '{file}': {', '.join(strange)} is outside [prompt]; move it into that table")
    shared = {key: value for key, value in table.items() if key != "subset"}
    subsets = table.get("subset", [{}])
    if not isinstance(subsets, list) or not all(isinstance(subset, Mapping) for subset in subsets):
        faults.add(f"sample_prompts '{file}': prompt.subset must be tables ([[prompt.subset]]), got {shown(subsets)}")
        return
    for number, subset in enumerate(subsets, 1):
        yield Place(file, f"prompt {number}", lines, (f"prompt.subset[{number - 1}]", "prompt")), {**shared, **subset}


def _of_list(file: str, entries: Any, lines: Lines, faults: Faults) -> Entries:
    """A JSON list: each entry a line as in a .txt file, or an object with kohya's keys."""
    for number, entry in enumerate(entries, 1):
        where = Place(file, f"prompt {number}", lines, (f"[{number - 1}]",))
        if isinstance(entry, str):
            yield where, _of_line(entry)
        elif isinstance(entry, Mapping):
            yield where, entry
        else:
            faults.add(f"{where.of('')} must be a text or an object, got {shown(entry)}")


def _prompt(  # noqa: PLR0913  one prompt with all that it is read by
    where: Place,
    defaults: Mapping[str, Any],
    stated: Mapping[str, Any],
    multiple: int,
    samplers: list[str],
    faults: Faults,
) -> Prompt | None:
    """One checked prompt, or None after a fault."""
    before, given = len(faults.messages), {**defaults, **stated}
    _check_keys(where, given, faults)
    if not isinstance(given.get("prompt"), str) or not isinstance(given["negative_prompt"], str):
        faults.add(f"{where.of('prompt')}: prompt is needed, and it and negative_prompt are texts")
    numbers = _numbers(where, given, stated, multiple, faults)
    if given["sample_sampler"] not in samplers:
        known, sampler = ", ".join(sorted(samplers)), shown(given["sample_sampler"])
        faults.add(f"{where.of('sample_sampler')}: sampler {sampler} is unknown; known are {known}")
    if len(faults.messages) > before:
        return None
    return Prompt(
        text=given["prompt"],
        negative=given["negative_prompt"],
        width=int(numbers["width"]),
        height=int(numbers["height"]),
        seed=int(numbers["seed"]),
        guidance=numbers["scale"],
        steps=int(numbers["sample_steps"]),
        sampler=given["sample_sampler"],
    )


def _check_keys(where: Place, given: Mapping[str, Any], faults: Faults) -> None:
    """Collect a fault for every key that is refused or unknown."""
    for key in given:
        if key in REFUSED:
            faults.add(f"{where.of(key)}: {FLAGS[key]} ({key}) is not taken: {REFUSED[key]}")
        elif key in IGNORED:
            logger.info(
                "%s: %s changes nothing here: the previews of this suite do not have it", where.of(key), FLAGS[key]
            )
        elif key not in KEYS:
            known = ", ".join(FLAGS[name] for name in KEYS[1:]) if key.startswith("--") else ", ".join(KEYS)
            faults.add(f"{where.of(key)}: unknown {key}{did_you_mean(key, KEYS)}; known are {known}")


def _numbers(
    where: Place, given: Mapping[str, Any], stated: Mapping[str, Any], multiple: int, faults: Faults
) -> dict[str, float]:
    """The numbers of a prompt by key; one that cannot be read is a fault and left out. Sides are rounded down.

    Args:
        stated: what the prompt itself states; other values are defaults.
    """
    numbers: dict[str, float] = {}
    for key, kind in (("width", int), ("height", int), ("seed", int), ("sample_steps", int), ("scale", float)):
        try:
            numbers[key] = _number(given[key], kind)
        except (ValueError, TypeError, OverflowError):
            wanted = "a whole number" if kind is int else "a number"
            faults.add(f"{where.of(key)}: {FLAGS[key]} ({key}) takes {wanted}, got {shown(given[key])}")
    for key in ("width", "height"):
        side = numbers.get(key, multiple)
        if side < multiple:
            faults.add(f"{where.of(key)}: {FLAGS[key]} ({key}) must be at least {multiple} pixels, got {side:g}")
        elif side % multiple:
            numbers[key] = side // multiple * multiple
            logger.warning(
                "%s: %s %g is painted as %g: sides are multiples of %d pixels",
                where.of(key), FLAGS[key] if key in stated else "resolution", side, numbers[key], multiple,
            )  # fmt: skip
    for key, least, most in (
        ("sample_steps", 1, 1000),
        ("seed", 0, 2**63 - 1),
        ("width", 0, WIDEST),
        ("height", 0, WIDEST),
    ):
        if numbers.get(key, least) < least:
            faults.add(f"{where.of(key)}: {FLAGS[key]} ({key}) must be at least {least}, got {numbers[key]:g}")
        elif numbers.get(key, most) > most:
            faults.add(f"{where.of(key)}: {FLAGS[key]} ({key}) must be at most {most}, got {numbers[key]:g}")
    return numbers


def _number(value: Any, kind: type) -> float:
    """A number from a text or a number. Raises: ValueError for booleans, fractions of a whole number, infinities."""
    number = kind(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)) or number - number != 0:
        raise ValueError(value)
    if kind is int and number != int(number):
        raise ValueError(value)
    return number
