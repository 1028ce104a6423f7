"""Reading kohya folders (<repeats>_<class>) and flat folders of captioned pictures."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from library.check import Faults, InputError, shortened
from library.data.examples import Example, difference_hash, open_picture, pixel_hash

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
REPEATS_CLASS = re.compile(r"(\d+)_(.*)")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureFolder:
    """A folder whose pictures share repeats and class words."""

    path: Path
    repeats: int
    class_words: str


def read_folder(
    folder: str,
    *,
    flat: bool,
    caption_extension: str | None,
    strict_captions: bool,
    group_by: str | None,
    option_name: str = "train_data_dir",
) -> list[Example]:
    """Read every picture below a kohya parent folder (or in a flat one) with its caption and group.

    Raises:
        InputError: no pictures, the wrong level given, corrupt pictures, missing or empty captions: all at once.
    """
    faults = Faults()
    group_of = group_rule(Path(folder), group_by)
    examples: list[Example] = []
    for part in picture_folders(Path(folder), flat, option_name):
        examples += _read_part(part, caption_extension, strict_captions, group_of, faults)
    faults.raise_if_any()
    return examples


def pictures_in(folder: Path) -> list[Path]:
    """The picture files directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())


def picture_folders(folder: Path, flat: bool, option_name: str = "train_data_dir") -> list[PictureFolder]:
    """The folders to read, or an error that says which folder the person probably meant."""
    if not folder.is_dir():
        raise InputError(f"{option_name} '{folder}' is not a folder")
    direct = len(pictures_in(folder))
    children = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    named = [child for child in children if REPEATS_CLASS.fullmatch(child.name) and pictures_in(child)]
    if flat:
        if not direct:
            raise InputError(
                f"{option_name} '{folder}' has no pictures directly in it; without --flat_data_dir its "
                "<repeats>_<class> folders are read"
            )
        return [PictureFolder(folder, 1, "")]
    if named:
        passed_over = [child.name for child in children if child not in named and pictures_in(child)]
        if passed_over:
            raise InputError(
                f"{option_name} '{folder}': no repeats in front of {shortened(passed_over)}; rename to "
                "<repeats>_<class>, e.g. '10_" + passed_over[0] + "', or move them away"
            )
        return [_named_folder(child) for child in named]
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
        raise InputError(f"folder '{path}' has 0 repeats; write at least 1_ in front, or move it away")
    return PictureFolder(path, int(match[1]), match[2].strip())


def _read_part(
    part: PictureFolder,
    caption_extension: str | None,
    strict_captions: bool,
    group_of: Callable[[Path], str | None],
    faults: Faults,
) -> list[Example]:
    """Decode the pictures of one folder; faults are collected, not raised."""
    examples: list[Example] = []
    without_caption: list[str] = []
    files = pictures_in(part.path)
    for path in tqdm(files, desc="reading pictures", unit="image", leave=False, disable=len(files) < 200):
        caption = _caption_of(path, caption_extension, faults)
        if caption is None:
            without_caption.append(path.name)
        try:
            picture = open_picture(path)
        except (OSError, SyntaxError, ValueError) as error:
            faults.add(f"'{path}' cannot be decoded ({type(error).__name__}); replace or remove it")
            continue
        identity = pixel_hash(picture)
        examples.append(
            Example(
                path=path,
                caption=part.class_words if caption is None else caption,
                repeats=part.repeats,
                group=group_of(path) or identity,
                width=picture.width,
                height=picture.height,
                pixels=identity,
                brightness_signs=difference_hash(picture),
            )
        )
    _report_captions(part, len(files), without_caption, strict_captions, faults)
    return examples


def _caption_of(path: Path, caption_extension: str | None, faults: Faults) -> str | None:
    """First line of the caption file, None without a file; an empty or unreadable file is a fault."""
    for ending in [caption_extension] if caption_extension else [".txt", ".caption"]:
        file = path.with_suffix(ending if ending.startswith(".") else f".{ending}")
        if file.is_file():
            try:
                lines = file.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError:
                faults.add(f"caption file '{file}' is not UTF-8; save it as UTF-8")
                return ""
            caption = lines[0].strip() if lines else ""
            if not caption:
                faults.add(f"caption file '{file}' is empty; write a caption or remove the file")
            return caption
    return None


def _report_captions(part: PictureFolder, count: int, missing: list[str], strict: bool, faults: Faults) -> None:
    """Say how many captions a folder has; missing ones are a fault where nothing may stand in."""
    logger.info(
        "%s: %d images, %d captions, %d without, %d repeats",
        part.path.name,
        count,
        count - len(missing),
        len(missing),
        part.repeats,
    )
    if not missing:
        return
    names = shortened(missing)
    if strict or not part.class_words:
        faults.add(
            f"'{part.path}': {len(missing)} images have no caption file (.txt or .caption, or set "
            f"caption_extension): {names}"
        )
    else:
        level = logging.WARNING if len(missing) > 0.05 * count else logging.INFO
        logger.log(
            level,
            "%d images of '%s' have no caption file; the folder's class words stand in: %s",
            len(missing),
            part.path.name,
            names,
        )


def group_rule(folder: Path, group_by: str | None) -> Callable[[Path], str | None]:
    """How the group of a picture is found; None means a group of its own.

    Raises:
        InputError: when the named JSON file is missing or no object of texts.
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
        raise InputError(f"group_by '{file}' is no JSON: {error}") from error
    if not isinstance(groups, dict) or not all(isinstance(value, str) for value in groups.values()):
        raise InputError(f"group_by '{file}' must be one JSON object of texts, {{stem: group}}")
    logger.info("groups of pictures from '%s'", file.name)
    return lambda path: groups.get(path.stem)
