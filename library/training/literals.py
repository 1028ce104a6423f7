"""key=value pairs of optimizer_args and lr_scheduler_args."""

import ast
from typing import Any

from library.errors import InputError


def literal_arguments(pairs: list[str], option: str) -> dict[str, Any]:
    """``["weight_decay=0.01", "betas=0.9,0.99"]`` -> keyword arguments; values are Python literals.

    Args:
        option: its name, for the message.

    Raises:
        InputError: a pair that is no key=value, or a value that is no literal.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            if not equals:
                raise ValueError
            arguments[name.strip()] = ast.literal_eval(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise InputError(
                f"{option}: '{pair}' is no key=value with a Python literal, e.g. weight_decay=0.01 betas=0.9,0.99 "
                "fused=True; a text needs quotes of its own"
            ) from error
    return arguments
