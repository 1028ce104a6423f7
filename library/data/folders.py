"""Kohya folders (<repeats>_<class>), flat folders, the caption files beside their pictures, and groups of pictures."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from PIL import features

from library.errors import Faults, InputError, shortened
from library.incoming.files import exists, is_file, is_folder, read_text
from library.incoming.shapes import Shape, TableOf, Text, check_shape
from library.incoming.texts import read_json

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", *((".avif",) if features.check("avif") else ())}
NOT_READ = {".avif", ".gif", ".heic", ".heif", ".ico", ".jfif", ".jp2", ".jxl", ".mov", ".mp4", ".psd", ".svg", ".tga",
            ".tif", ".tiff", ".webm"} - ENDINGS  # fmt: skip
FACE = re.compile(r"(.+)_\d+_\d+_\d+_\d+")  # NAME_x_y_w_h, as kohya's face cropping names its files
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
    deeper = [child.name for child in _folders_in(folder) if pictures_in(child)]
    there = f"; they are one level deeper, in {shortened(deeper, 3)}" if deeper else ""
    return f"'{folder}' has no pictures directly in it{there}{''.join(f'; it has {one}' for one in _unread(folder))}"


def left_aside(folder: Path) -> list[str]:
    """What lies beside the pictures of a folder and is not used, one line a kind; hidden files are not worth a line."""
    inner = [child.name for child in _folders_in(folder) if pictures_in(child)]
    lost = [path.name for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()]
    lines = [f"folders with pictures in them are passed over: {shortened(inner, 5)}"] if inner else []
    lines += [f"{len(lost)} links that lead nowhere are passed over: {shortened(lost, 5)}"] if lost else []
    return lines + [f"{one} are passed over" for one in _unread(folder)]


def _unread(folder: Path) -> list[str]:
    """How many pictures there are that cannot be read, and of which kinds."""
    kinds = [path.suffix.lower() for path in folder.iterdir() if not path.name.startswith(".")]
    unread = [kind for kind in kinds if kind in NOT_READ]
    return [f"{len(unread)} files of kinds that are not read: {', '.join(sorted(set(unread)))}"] if unread else []


def _folders_in(folder: Path) -> list[Path]:
    return [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]


def picture_folders(folder: Path, flat: bool, option_name: str) -> list[PictureFolder]:
    """The folders to read, or an error that says which folder the person probably meant."""
    if not is_folder(folder):
        moved = "" if exists(folder) else f"; if the pictures were moved, give their folder with --{option_name}"
        raise InputError(f"{option_name} '{folder}' is not a folder{moved}")
    if flat:
        if not pictures_in(folder):
            raise InputError(
                f"{option_name} {no_pictures(folder)}; without --flat_data_dir its <repeats>_<class> folders are read"
            )
        return [PictureFolder(folder, 1, "")]
    children = _folders_in(folder)
    named = [child for child in children if REPEATS_CLASS.fullmatch(child.name) and pictures_in(child)]
    if not named:
        _explain_folder(folder, children, option_name)
    for child in children:
        if REPEATS_CLASS.fullmatch(child.name) and child not in named:
            logger.warning("%s: %s", option_name, no_pictures(child))
    passed_over = [child.name for child in children if child not in named and pictures_in(child)]
    if passed_over:
        logger.warning(
            "%s: folders without repeats in front of their names are passed over: %s; a name such as '10_%s' is read",
            option_name,
            shortened(passed_over, 5),
            passed_over[0],
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
    for child in children:
        if any(pictures_in(inner) for inner in _folders_in(child)):
            raise InputError(f"{option_name} '{folder}': {no_pictures(child)}; move them up")
    unread = [one for place in (folder, *children) for one in _unread(place)]
    raise InputError(
        f"{option_name} '{folder}' holds no pictures ({', '.join(sorted(ENDINGS))})"
        + (f"; {', '.join(unread)}" if unread else "")
    )


def _named_folder(path: Path) -> PictureFolder:
    match = REPEATS_CLASS.fullmatch(path.name)
    assert match is not None
    if int(match[1]) < 1:
        raise InputError(f"folder '{path}' has 0 repeats; begin its name with at least 1_, or move it away")
    return PictureFolder(path, int(match[1]), match[2].strip())


def caption_file(path: Path, caption_extension: str | None) -> Path | None:
    """The caption file beside a picture: with the given ending, else .txt, else .caption.

    A picture whose name states a face (NAME_x_y_w_h) may have the caption of NAME.

    Raises:
        InputError: an ending that is not one of a file name, since it could lead into another folder.
    """
    if caption_extension and not re.fullmatch(r"\.?[\w.-]+", caption_extension):
        raise InputError(
            f"caption_extension must be the ending of a file's name, such as .txt, got {caption_extension!r}"
        )
    for ending in [caption_extension] if caption_extension else [".txt", ".caption"]:
        for stem in (path.stem, *(found.groups() if (found := FACE.fullmatch(path.stem)) else ())):
            file = path.with_name(f"{stem}{ending if ending.startswith('.') else f'.{ending}'}")
            if is_file(file):
                return file
    return None


def captions_in(folder: Path, files: Sequence[Path | None], every_line: bool, faults: Faults) -> list[str | None]:
    """The captions in files of one folder, None where there is no file; empty and unreadable ones are faults.

    Args:
        every_line: keep all lines that are not empty, for wildcards; else only the first line.
    """
    captions: list[str | None] = []
    wrong: dict[str, list[Path]] = {"empty; write a caption or remove the file": [], "not UTF-8; save it as UTF-8": []}
    empty, strange = wrong.values()
    for file in files:
        try:
            text = None if file is None else read_text(file, f"caption file '{file}'")
        except InputError as error:
            captions.append("")
            if "UTF-8" in str(error) and file:
                strange.append(file)
            else:
                faults.take(error, kind="caption files that cannot be read")
        else:
            captions.append(None if text is None else caption_lines(text, every_line))
            empty += [file] if file and not captions[-1] else []
    for what, found in wrong.items():
        if len(found) == 1:
            faults.add(f"caption file '{found[0]}' is {what}")
        elif found:
            state, _, way_out = what.partition("; ")
            names = shortened([file.name for file in found], 5)
            faults.add(f"'{folder}': {len(found)} caption files are {state}: {names}; {way_out}")
    return captions


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
