"""Kohya folders (<repeats>_<class>), flat folders, the caption files beside their pictures, and groups of pictures."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from library.errors import Faults, InputError, shortened
from library.incoming.files import is_file, is_folder, read_text
from library.incoming.shapes import Shape, TableOf, Text, check_shape
from library.incoming.texts import read_json

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
GROUPS: Shape = TableOf(Text(1000), key=Text(4096, is_path=True))
REPEATS_CLASS = re.compile(r"(\d+)_(.*)")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureFolder:
    """A folder whose pictures share repeats and class words."""

    path: Path
    repeats: int
    class_words: str


def pictures_in(folder: Path) -> list[Path]:
    """The picture files directly in a folder, by name, without hidden ones (other systems leave ._001.png behind)."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    )


def no_pictures(folder: Path) -> str:
    """What is said of a folder without pictures directly in it: where they may be, and what it holds instead."""
    deeper = [child for child in sorted(folder.iterdir()) if child.is_dir() and pictures_in(child)]
    if deeper:
        names = shortened([child.name for child in deeper], 3)
        return f"'{folder}' has no pictures directly in it; they are one level deeper, in {names}"
    return f"'{folder}' has no pictures directly in it"


def picture_folders(folder: Path, flat: bool, option_name: str) -> list[PictureFolder]:
    """The folders to read, or an error that says which folder the person probably meant."""
    if not is_folder(folder):
        raise InputError(f"{option_name} '{folder}' is not a folder")
    if flat:
        if not pictures_in(folder):
            raise InputError(
                f"{option_name} '{folder}' has no pictures directly in it; without --flat_data_dir its "
                "<repeats>_<class> folders are read"
            )
        return [PictureFolder(folder, 1, "")]
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    named = [child for child in children if REPEATS_CLASS.fullmatch(child.name) and pictures_in(child)]
    if not named:
        _explain_folder(folder, children, option_name)
    empty = [child.name for child in children if REPEATS_CLASS.fullmatch(child.name) and child not in named]
    if empty:
        logger.warning("%s: no pictures directly in %s", option_name, shortened(empty))
    passed_over = [child.name for child in children if child not in named and pictures_in(child)]
    if passed_over:
        raise InputError(
            f"{option_name} '{folder}': no repeats in front of {shortened(passed_over)}; rename to "
            "<repeats>_<class>, e.g. '10_" + passed_over[0] + "', or move them away"
        )
    return [_named_folder(child) for child in named]


def _explain_folder(folder: Path, children: list[Path], option_name: str) -> NoReturn:
    """Raises: InputError with the reason why a folder without <repeats>_<class> children cannot be read."""
    direct = len(pictures_in(folder))
    if direct and REPEATS_CLASS.fullmatch(folder.resolve().name):
        raise InputError(
            f"{option_name} '{folder}' is itself a <repeats>_<class> folder; give its parent "
            f"'{folder.resolve().parent}'"
        )
    if direct:
        raise InputError(
            f"{option_name} '{folder}' has {direct} images and no folder named <repeats>_<class>; use "
            "--flat_data_dir to take the folder as it is"
        )
    for child in children:
        if any(REPEATS_CLASS.fullmatch(inner.name) and inner.is_dir() for inner in child.iterdir()):
            raise InputError(f"{option_name} '{folder}' is one level too high; give '{child}'")
        if pictures_in(child):
            raise InputError(
                f"{option_name} '{folder}': its folder '{child.name}' has pictures but no repeats in its "
                f"name; rename it to '1_{child.name}', or give '{child}' with --flat_data_dir"
            )
    raise InputError(f"{option_name} '{folder}' holds no pictures ({', '.join(sorted(ENDINGS))})")


def _named_folder(path: Path) -> PictureFolder:
    match = REPEATS_CLASS.fullmatch(path.name)
    assert match is not None
    if int(match[1]) < 1:
        raise InputError(f"folder '{path}' has 0 repeats; begin its name with at least 1_, or move it away")
    return PictureFolder(path, int(match[1]), match[2].strip())


def caption_file(path: Path, caption_extension: str | None) -> Path | None:
    """The caption file beside a picture: with the given ending, else .txt, else .caption.

    Raises:
        InputError: an ending that is not one of a file name, since it could lead into another folder.
    """
    if caption_extension and not re.fullmatch(r"\.?[\w.-]+", caption_extension):
        raise InputError(
            f"caption_extension must be the ending of a file's name, such as .txt, got {caption_extension!r}"
        )
    for ending in [caption_extension] if caption_extension else [".txt", ".caption"]:
        file = path.with_suffix(ending if ending.startswith(".") else f".{ending}")
        if is_file(file):
            return file
    return None


def caption_in(file: Path, every_line: bool, faults: Faults) -> str:
    """The caption in a file; an empty or unreadable file is a fault and gives ''.

    Args:
        every_line: keep all lines that are not empty, for wildcards; else only the first line.
    """
    text = faults.attempt(read_text, file, f"caption file '{file}'")
    if text is None:
        return ""
    caption = caption_lines(text, every_line)
    if not caption:
        faults.add(f"caption file '{file}' is empty; write a caption or remove the file")
    return caption


def caption_lines(text: str, every_line: bool) -> str:
    """The first line of a text that is not empty, or all of them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines if every_line else lines[:1])


def group_rule(folder: Path, group_by: str | None) -> Callable[[Path], str | None]:
    """A function from a picture's path to its group; None means a group of its own.

    Raises:
        InputError: a JSON file that is missing, or is not an object of texts.
    """
    beside = folder / "groups.json"
    if group_by == "none" or (group_by is None and not is_file(beside)):
        return lambda path: None
    if group_by == "folder":
        return lambda path: path.parent.name
    if group_by == "name":
        return lambda path: re.split(r"[_-]", path.stem)[0]
    file = beside if group_by is None else Path(group_by)
    if not is_file(file):
        raise InputError(f"group_by must be 'folder', 'name', 'none' or a JSON file {{stem: group}}, got '{group_by}'")
    groups = read_json(file, f"group_by '{file}'")
    if not isinstance(groups, dict) or not all(isinstance(value, str) for value in groups.values()):
        raise InputError(f"group_by '{file}' must be one JSON object of texts, {{stem: group}}")
    check_shape(groups, GROUPS, f"group_by '{file}'")
    logger.info("groups of pictures are read from '%s'", file.name)
    return lambda path: groups.get(path.stem)
