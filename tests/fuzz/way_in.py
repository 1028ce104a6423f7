"""One kind of file from outside, and the reader that it meets first."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WayIn:
    """One kind of file and the reader that it meets first."""

    name: str
    file: str  # that is damaged, in the case's folder
    form: str  # see damages
    prepare: Callable[[Path], object]  # lays the sound files down
    read: Callable[[Path], object]  # as the suite reads them
    writes: str = "written"  # a folder that the reader may write into
