"""Plain values by the handful: a room declares what it needs as a dataclass, and picks it by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

Rules = TypeVar("Rules")


def pick(values: Any, rules: type[Rules]) -> Rules:
    """Fill a dataclass of rules from options of the same names.

    Args:
        values: the resolved options of a door, or a mapping of them (an audit reads a run's config.toml).
        rules: frozen dataclass whose field names are option names; it has no defaults of its own.

    Raises:
        KeyError, AttributeError: an option that does not exist.
    """
    names = [field.name for field in dataclasses.fields(rules)]  # type: ignore[arg-type]
    if isinstance(values, Mapping):
        return rules(**{name: values[name] for name in names})
    return rules(**{name: getattr(values, name) for name in names})
