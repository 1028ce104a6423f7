"""Folders that the suite writes, held against the table of files."""

import os
from pathlib import Path

from library.file_table import Place


def check_place(root: Path, place: Place) -> int:
    """Every file and folder below stands in exactly one row and has its mode; returns how many there are."""
    umask = os.umask(0)
    os.umask(umask)
    paths = list(root.rglob("*"))
    for path in paths:
        name, is_folder = path.relative_to(root).as_posix(), path.is_dir()
        rows = place.rows_of(name, is_folder)
        assert len(rows) == 1, f"{name} stands in {len(rows)} rows of {place.title}"
        assert path.stat().st_mode & 0o777 == rows[0].mode(is_folder, umask), f"{name}: {path.stat().st_mode & 0o777:o}"
    return len(paths)
