"""Rules, the dataclasses that a room fills from options by name, against the options' declarations."""

import ast
import dataclasses
import importlib
import typing
from pathlib import Path

import pytest

from library.options.declarations import Config

ROOT = Path(__file__).parent.parent.parent


def rules_classes() -> list[tuple[str, str]]:
    """Module and name of every class whose name ends in Rules."""
    found = []
    for file in sorted(path for room in ("library", "networks") for path in (ROOT / room).rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found += [
            (module, node.name) for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Rules")
        ]
    return found


@pytest.mark.parametrize(("module", "name"), rules_classes(), ids=lambda part: part.rpartition(".")[2])
def test_every_field_of_rules_is_an_option_of_the_same_type(module: str, name: str) -> None:
    rules = getattr(importlib.import_module(module), name)
    options, fields = typing.get_type_hints(Config), typing.get_type_hints(rules)
    assert dataclasses.is_dataclass(rules) and rules.__dataclass_params__.frozen, "rules are frozen dataclasses"
    assert {field: kind for field, kind in fields.items() if options.get(field) != kind} == {}


@pytest.mark.parametrize(("module", "name"), rules_classes(), ids=lambda part: part.rpartition(".")[2])
def test_rules_have_no_defaults_of_their_own(module: str, name: str) -> None:
    fields = dataclasses.fields(getattr(importlib.import_module(module), name))
    assert [
        field.name
        for field in fields
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    ] == []


def test_there_are_rules_to_compare() -> None:
    assert len(rules_classes()) >= 20
