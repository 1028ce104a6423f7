"""Output folders on the command line without an option's name."""

from collections.abc import Mapping, Sequence
from typing import Any


def outputs_named(arguments: Sequence[str], kinds: Mapping[str, Any]) -> list[str]:
    """Words that belong to no option become the value of --outputs, wherever they stand.

    Args:
        kinds: type of every option, by name; a switch takes no word, a list of texts takes many.
    """
    options: list[str] = []
    outputs: list[str] = []
    index = 0
    while index < len(arguments):
        word, index = arguments[index], index + 1
        if not word.startswith("--"):
            outputs.append(word)
            continue
        options.append(word)
        kind = kinds.get(word[2:].replace("-", "_"))
        takes = (
            0 if "=" in word or kind is bool or word.startswith("--no") else len(arguments) if kind == list[str] else 1
        )
        while takes and index < len(arguments) and not arguments[index].startswith("--"):
            options.append(arguments[index])
            index, takes = index + 1, takes - 1
    return [*options, *(["--outputs", *outputs] if outputs else [])]
