"""key=value pairs of optimizer_args and lr_scheduler_args."""

import ast
from typing import Any

from library.errors import InputError
from library.key_values import split_pair


def literal_arguments(pairs: list[str], option: str) -> dict[str, Any]:
    """``["weight_decay=0.01", "betas=0.9,0.99"]`` -> keyword arguments; values are Python literals.

    Args:
        option: its name, for the message.

    Raises:
        InputError: a text that is not key=value, or a value that is not a literal.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        found = split_pair(pair)
        try:
            if found is None:
                raise ValueError
            arguments[found[0]] = ast.literal_eval(found[1])
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise InputError(
                f"{option}: '{pair}' is not key=value with a Python literal, e.g. weight_decay=0.01 betas=0.9,0.99 "
                "fused=True; put quotes around a text"
            ) from error
    return arguments
