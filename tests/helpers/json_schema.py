"""The part of JSON schema (draft 2020-12) that the suite's own schemas use; any other keyword is an error."""

from typing import Any

KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
NOTES = ("description", "title", "$schema")


def complaints(value: Any, schema: dict[str, Any], place: str = "file") -> list[str]:
    """What a value has against its schema, each with its place."""
    found: list[str] = []
    for word, wanted in schema.items():
        if word in NOTES or word in ("required", "additionalProperties"):  # read with "properties"
            continue
        found += CHECKS[word](value, wanted, schema, place)
    if "properties" not in schema and isinstance(schema.get("additionalProperties"), dict):
        found += _objects(value, {}, schema, place)
    return found


def _is_of(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else (int, float)) and not isinstance(value, bool)
    return isinstance(value, KINDS[kind])


def _types(value: Any, wanted: Any, schema: dict[str, Any], place: str) -> list[str]:
    kinds = wanted if isinstance(wanted, list) else [wanted]
    return [] if any(_is_of(value, kind) for kind in kinds) else [f"{place}: {value!r} is no {' or '.join(kinds)}"]


def _objects(value: Any, wanted: dict[str, Any], schema: dict[str, Any], place: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    found = [f"{place}: {name} is missing" for name in schema.get("required", []) if name not in value]
    for name, inner in value.items():
        part = wanted.get(name, schema.get("additionalProperties", {}))
        found += [f"{place}: {name} is unknown"] if part is False else complaints(inner, part, f"{place}.{name}")
    return found


def _items(value: Any, wanted: dict[str, Any], schema: dict[str, Any], place: str) -> list[str]:
    rows = value if isinstance(value, list) else []
    return [said for number, row in enumerate(rows) for said in complaints(row, wanted, f"{place}[{number}]")]


def _any(value: Any, wanted: list[dict[str, Any]], schema: dict[str, Any], place: str) -> list[str]:
    tried = [complaints(value, one, place) for one in wanted]
    return [] if any(not one for one in tried) else [f"{place}: fits none of {len(tried)}", *tried[0]]


def _length(value: Any, otherwise: int) -> int:
    """Of a list; what is none is told by its type."""
    return len(value) if isinstance(value, list) else otherwise


def _said(fits: bool, value: Any, place: str) -> list[str]:
    return [] if fits else [f"{place}: {value!r}"]


CHECKS: dict[str, Any] = {
    "type": _types,
    "properties": _objects,
    "items": _items,
    "anyOf": _any,
    "const": lambda value, wanted, schema, place: _said(value == wanted, value, place),
    "enum": lambda value, wanted, schema, place: _said(value in wanted, value, place),
    "minItems": lambda value, wanted, schema, place: _said(_length(value, wanted) >= wanted, value, place),
    "maxItems": lambda value, wanted, schema, place: _said(_length(value, wanted) <= wanted, value, place),
}
