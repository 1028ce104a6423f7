"""Writes docs/options.md from the declarations: python -m library.options.docs_page. A test keeps it up to date."""

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.options import front_ends, kohya
from library.options.declarations import AUDIT, EVERYWHERE, TRAINERS, Config

PAGE = Path(__file__).parent.parent.parent / "docs" / "options.md"
HINTS = typing.get_type_hints(Config)
KINDS = {int: "whole number", float: "number", str: "text", bool: "switch", list[str]: "list of texts"}
DOORS = {TRAINERS: "trainers", AUDIT: "audit", EVERYWHERE: "all"}
SECTIONS = {
    "model": "The base model",
    "data": "Pictures and captions",
    "split": "Members and non-members (not in kohya)",
    "network": "The LoRA",
    "privacy": "The proxy attacker and the objective (not in kohya)",
    "dp": "Differential privacy (not in kohya)",
    "optimizer": "Learning rates and optimizer",
    "loss": "Noise and loss",
    "schedule": "Length, precision, memory",
    "saving": "Output files",
    "previews": "Previews and logs",
    "audit": "The audit (not in kohya)",
    "run": "The run itself (not in kohya)",
}
INTRODUCTION = """# Options

Generated from `library/options/declarations.py` and `library/options/kohya.py` by
`python -m library.options.docs_page`; do not edit.

Every option is a key of the TOML file that `--config_file` names (section headings are only for the reader) and a
flag (`--name value`, with dashes or underscores; `--no-<switch>` undoes a switch of the file). A flag overrides the
file. Names, units and defaults are those of kohya's `train_network.py` if it has the option; the column *kohya*
states which defaults differ and why, and which options it does not have. **trainers** are `PLoRA.py`, `SPLoRA.py` and
`DPLoRA.py`.
An unknown key, a wrong type, a value out of bounds or an option that would change the LoRA or its privacy and is not
supported stops the run. All faults come in one round, with file and line, whatever finds them: options, dataset file,
pictures, captions, split, state, output folder, base model, network, prompts, optimizer. What cannot be looked at
because of a fault (or would have to be fetched) is named in the last line. A key that changes
nothing here is taken with one line that says so; an unknown key that is off counts as such, unless it could be a
misspelt option of the defence or the split. `--dry_run` prints every resolved value with its origin."""


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for section, title in SECTIONS.items():
        rows = [_row(field) for field in dataclasses.fields(Config) if field.metadata["section"] == section]
        parts.append(f"## {title}\n\n" + _table(("option", "value", "default", "meaning", "used by", "kohya"), rows))
    return "\n\n".join([*parts, *_not_taken()]) + "\n"


def _row(field: dataclasses.Field) -> tuple[str, ...]:
    facts = field.metadata
    default = field.default_factory() if callable(field.default_factory) else field.default
    return (
        f"`{field.name}`",
        _value(field.name, facts),
        _default(default),
        facts["help"].replace("<", "\\<"),
        DOORS.get(facts["doors"], ", ".join(facts["doors"])),
        facts["kohya"],
    )


def _value(name: str, facts: typing.Mapping[str, Any]) -> str:
    """The possible values: the choices, or the type with its bounds."""
    hint = HINTS[name]
    if facts["choices"]:
        words = ", ".join(f"`{choice}`" for choice in facts["choices"])
        return f"words out of {words}" if hint == list[str] else words
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    bounds = [
        f"{words} {facts[bound]:g}"
        for bound, words in (("least", "at least"), ("above", "above"), ("most", "at most"))
        if facts[bound] is not None
    ]
    off = ["0 = unset"] if name in kohya.ZERO_IS_UNSET else []
    return ", ".join([KINDS[hint], *bounds, *off])


def _default(value: Any) -> str:
    if value in (None, "", []):
        return "unset"
    if isinstance(value, list):
        return f"`{' '.join(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _not_taken() -> list[str]:
    """kohya's options that are refused, accepted without effect, or accepted under another name."""
    together: dict[str, list[str]] = {}
    for name, reason in kohya.REFUSED.items():
        together.setdefault(reason, []).append(f"`{name}`")
    values = [
        (f"`{name} = {value}`", reason)
        for name, reasons in kohya.REFUSED_VALUES.items()
        for value, reason in reasons.items()
    ]
    idle = [(f"`{name}`", reason) for name, reason in kohya.WITHOUT_EFFECT.items()]
    idle += [(f"`{name}`", f"it is read only beside `{leader}`") for name, leader in kohya.READ_ONLY_WITH.items()]
    shared: dict[str, list[str]] = {}
    for name, reason in front_ends.WITHOUT_EFFECT.items():
        shared.setdefault(reason, []).append(f"`{name}`")
    idle += [(", ".join(names), reason) for reason, names in shared.items()]
    idle.append(('an unknown key of a file that is `false`, `0`, `""`, `[]` or `"None"`', "unknown, and off"))
    idle += [
        (f"`{name} = {value}`", reason)
        for name, reasons in kohya.VALUES_WITHOUT_EFFECT.items()
        for value, reason in reasons.items()
    ]
    renamed = [(f"`{old}`", f"`{new}`") for old, new in kohya.RENAMED.items()]
    renamed += [(f"`{old}`", f"`{name} = {value}`") for old, (name, value) in kohya.STAND_FOR.items()]
    refused = [(", ".join(names), reason) for reason, names in together.items()]
    return [
        "## Refused\n\nThe run stops with this message. A switch that is `false` and an empty text ask for nothing and "
        "are ignored.\n\n" + _table(("option", "reason and alternative"), refused),
        "## Refused values\n\n" + _table(("value", "reason and alternative"), values),
        "## Accepted without effect\n\nThe run reports it once and continues.\n\n" + _table(("option", "why"), idle),
        "## Old spellings\n\n" + _table(("written", "read as"), renamed),
    ]


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
