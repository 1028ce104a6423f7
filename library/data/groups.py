"""Groups of pictures that stay on one side: by folder, by name, or from a file."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

from library.errors import InputError

logger = logging.getLogger(__name__)


def group_rule(folder: Path, group_by: str | None) -> Callable[[Path], str | None]:
    """A function from a picture's path to its group; None means a group of its own.

    Raises:
        InputError: a JSON file that is missing, or is not an object of texts.
    """
    beside = folder / "groups.json"
    if group_by == "none" or (group_by is None and not beside.is_file()):
        return lambda path: None
    if group_by == "folder":
        return lambda path: path.parent.name
    if group_by == "name":
        return lambda path: re.split(r"[_-]", path.stem)[0]
    file = beside if group_by is None else Path(group_by)
    if not file.is_file():
        raise InputError(f"group_by must be 'folder', 'name', 'none' or a JSON file {{stem: group}}, got '{group_by}'")
    try:
        groups = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"group_by '{file}' is not JSON: {error}") from error
    if not isinstance(groups, dict) or not all(isinstance(value, str) for value in groups.values()):
        raise InputError(f"group_by '{file}' must be one JSON object of texts, {{stem: group}}")
    logger.info("groups of pictures are read from '%s'", file.name)
    return lambda path: groups.get(path.stem)
