"""What killed runs left under temporary names, removed where nobody can still be writing it."""

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from library.file_table import Place

# The names of tensor_files.write_whole and rename_away, of states, and of the check whether a folder can be written
TEMPORARY = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}(\.part)?|\.writable[a-z0-9_]{8}")
OLD = 3600.0  # seconds since the last change; a file is written in seconds


def sweep(root: Path, place: Place, *, within: Iterable[str] | None = None, age: float = OLD) -> None:
    """Remove the temporary files and folders of this suite's writers; everything else stays, links included.

    A name counts if it is that of a file that the place's table has, with what the writer adds to it.

    Args:
        within: folders to look into; None: all below. Links are not followed.
        age: seconds since the last change; 0 only where a lock keeps every other run out.
    """
    for folder in _folders(root) if within is None else (root / name for name in within):
        if within is not None and folder.is_symlink():
            continue
        with suppress(OSError):  # another run sweeps too, or the folder is not there or not ours
            for entry in list(os.scandir(folder)):
                if _is_leftover(entry, root, place) and (not age or time.time() - entry.stat().st_mtime >= age):
                    if entry.is_dir():
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        Path(entry.path).unlink(missing_ok=True)


def _folders(root: Path) -> Iterator[Path]:
    """The folder and those below, but those that are leftovers themselves."""
    for folder, names, _ in os.walk(root):
        yield Path(folder)
        names[:] = [name for name in names if not TEMPORARY.fullmatch(name)]


def _is_leftover(entry: os.DirEntry[str], root: Path, place: Place) -> bool:
    match = TEMPORARY.fullmatch(entry.name)
    if not match or entry.is_symlink():
        return False
    if match["name"] is None:
        return entry.is_file()
    name = (Path(entry.path).parent / match["name"]).relative_to(root).as_posix()
    return any(not row.pattern.endswith("**") for row in place.rows_of(name, entry.is_dir()))
