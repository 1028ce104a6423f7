"""Captions from a metadata file: kohya's fine-tune JSON, JSON lines, or an imagefolder's metadata.jsonl."""

import glob
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from library.data.folders import ENDINGS, caption_lines
from library.errors import Faults, InputError, shortened
from library.incoming.files import MOST_LIST, is_file, is_folder, read_text
from library.incoming.shapes import Anything, Either, ListOf, Null, Record, Shape, TableOf, Text, check_shape
from library.incoming.texts import parse_json, parse_json_lines

NAME = Text(4096, is_path=True)
WORDS = Either((Text(), Null()))
ENTRY = Record({}, {"caption": WORDS, "text": WORDS, "tags": Either((Text(), ListOf(Text()), Null())),
                    "group": Anything()})  # fmt: skip
OBJECT: Shape = TableOf(ENTRY, key=NAME)
LINES = tuple(Record({key: NAME}, dict(ENTRY.optional)) for key in ("image_path", "file_name"))

CONTROL = re.compile("[\x00-\x1f]")
BACKSLASHES = "in a Windows path double every backslash, or write /"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captioned:
    """A picture file, its caption (None without one), and its group if the file names one."""

    path: Path
    caption: str | None
    group: str | None


class PictureIndex:
    """Picture files below a folder, found by path, relative path, name or stem."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        self.files = sorted(path for path in found if not _is_hidden(path.relative_to(folder)))
        self._by_name: dict[str, list[Path]] = {}
        for path in self.files:
            relative = path.relative_to(folder)
            for name in {relative.as_posix(), relative.with_suffix("").as_posix(), path.name, path.stem}:
                self._by_name.setdefault(name, []).append(path)

    def find_by_end(self, name: str) -> list[Path]:
        """The files that an absolute path of another machine may refer to: those with the longest end of it."""
        kind = PureWindowsPath if PureWindowsPath(name).drive else PurePosixPath
        parts = kind(name).parts if kind(name).is_absolute() else ()
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
        return next((self._by_name[end] for end in ends if end in self._by_name), [])

    def find(self, name: str) -> list[Path]:
        """The files that a name may refer to: none, one, or several if it is ambiguous."""
        exact = [Path(name)] if Path(name).is_absolute() else [self.folder / name, Path(name)]
        for path in exact:
            if path.suffix.lower() in ENDINGS and is_file(path):
                return [path]
        relative = [path for path in self._by_name.get(name, []) if path.relative_to(self.folder).as_posix() == name]
        if relative:
            return relative
        if Path(name).is_absolute():
            parent, pattern = Path(name).parent, f"{glob.escape(Path(name).name)}.*"
            return sorted(path for path in parent.glob(pattern) if path.suffix in ENDINGS) if is_folder(parent) else []
        return self._by_name.get(name, [])


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_metadata(file: Path, folder: Path, separator: str, every_line: bool, faults: Faults) -> list[Captioned]:
    """The pictures that a metadata file names, with their captions: caption, separator, tags.

    Args:
        folder: names are relative to it.
        separator: caption_separator.
        every_line: keep every line of a caption, for wildcards.
        faults: collects missing or ambiguous pictures and entries without a caption.
    """
    index = PictureIndex(folder)
    found: list[Captioned] = []
    lost: list[str] = []
    unclear: list[str] = []
    silent: list[str] = []
    moved = 0
    for name, entry in _entries(file):
        paths = index.find(name) or index.find(name.replace("\\", "/"))
        if not paths and (paths := index.find_by_end(name)):
            moved += 1
        if len(paths) != 1:
            (unclear if paths else lost).append(name)
            continue
        caption = _caption(entry, separator, every_line)
        if not caption:
            silent.append(name)
        group = entry.get("group")
        found.append(Captioned(paths[0], caption, group if isinstance(group, str) else None))
    if moved:
        logger.warning(
            "'%s': %d pictures are named by paths of another machine, and found by the end of these paths", file, moved
        )
    if lost:
        spoiled = any(CONTROL.search(name) for name in lost)
        why = "JSON reads a single backslash as part of a letter: double it, or write /" if spoiled else ""
        faults.add(
            f"'{file}': {len(lost)} pictures are not in '{folder}': {shortened(lost)}; {why or 'correct the names'}"
        )
    if unclear:
        faults.add(
            f"'{file}': {len(unclear)} names match several pictures below '{folder}': {shortened(unclear)}; write the "
            "relative path with its ending"
        )
    if silent:
        faults.add(
            f"'{file}': {len(silent)} pictures have neither caption (or text) nor tags: {shortened(silent)}; add one"
        )
    return found


def _entries(file: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, entry) of every picture; the content shows which of the three forms the file has.

    Raises:
        InputError: a file that is not JSON, or has another form.
    """
    name = f"metadata file '{file}'"
    text = read_text(file, name, MOST_LIST)
    if file.suffix.lower() == ".jsonl":
        try:
            return [_line_entry(f"{name}, line {number}", entry) for number, entry in parse_json_lines(text, name)]
        except InputError as error:
            raise InputError(f"{error}{f'; {BACKSLASHES}' if 'escape' in str(error) else ''}") from error
    try:
        content = parse_json(text, name)
    except InputError as error:
        way_out = BACKSLASHES if "escape" in str(error) else "a file of JSON lines must end in .jsonl"
        raise InputError(f"{error}; {way_out}") from error
    bare = [name for name, entry in content.items() if not isinstance(entry, dict)] if isinstance(content, dict) else []
    if not isinstance(content, dict) or bare:
        which = f"; the value of {shortened(bare)} is not an object" if bare else ""
        raise InputError(f"metadata file '{file}' must be one JSON object {{picture: {{caption, tags}}}}{which}")
    check_shape(content, OBJECT, name)
    return list(content.items())


def _line_entry(name: str, entry: Any) -> tuple[str, Mapping[str, Any]]:
    keys = [key for key in ("image_path", "file_name") if key in entry] if isinstance(entry, dict) else []
    if not keys or not isinstance(entry[keys[0]], str):
        raise InputError(f"{name} needs image_path (or file_name), a text")
    check_shape(entry, LINES[("image_path", "file_name").index(keys[0])], name)
    return entry[keys[0]], entry


def _caption(entry: Mapping[str, Any], separator: str, every_line: bool) -> str:
    """Join caption (or text) and tags with the separator; tags follow each of several lines."""
    text = entry.get("caption") or entry.get("text") or ""
    tags = entry.get("tags") or ""
    if isinstance(tags, list):
        tags = f"{separator} ".join(str(tag) for tag in tags)
    lines = caption_lines(text, every_line) if isinstance(text, str) else ""
    tags = caption_lines(tags, False) if isinstance(tags, str) else ""
    return "\n".join(f"{separator} ".join(part for part in (line, tags) if part) for line in lines.split("\n"))
