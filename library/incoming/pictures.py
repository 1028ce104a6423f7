"""Opens pictures from outside, with one kind of error for whatever Pillow raises."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from library.errors import InputError, shortest
from library.incoming.files import check_regular

LARGE = 50_000_000  # pixels from which on the memory is looked at
BYTES_PER_PIXEL = 10  # as decoded (with alpha), in RGB, and turned


class UnreadablePictureError(OSError):
    """A picture that cannot be opened or decoded."""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """A picture file; it is decoded inside the block.

    It may be of any size that fits into memory (Pillow alone stops at 179 megapixels).

    Raises:
        InputError: a picture that does not fit into memory.
        UnreadablePictureError: no regular file; what Pillow raises beside the next three.
        OSError, SyntaxError, ValueError: Pillow's errors for a corrupt file.
    """
    try:
        check_regular(path, f"'{path}'")
    except InputError as error:
        raise UnreadablePictureError(str(error)) from error
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as file:
            _check_size(path, file.width, file.height)
            yield file
    except (InputError, OSError, SyntaxError, ValueError):
        raise
    except Exception as error:  # of Pillow: damaged chunks end in many of them
        raise UnreadablePictureError(f"{type(error).__name__}: {shortest(error)}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _check_size(path: Path, width: int, height: int) -> None:
    pixels = width * height
    if pixels > LARGE and (needed := pixels * BYTES_PER_PIXEL) > (free := free_memory()):
        raise InputError(
            f"'{path}' has {width} x {height} = {pixels / 1e6:.0f} megapixels, which take about "
            f"{needed / 1e9:.1f} GB of memory ({free / 1e9:.1f} GB are free); scale it down"
        )


def free_memory() -> int:
    """Bytes that can be allocated without swapping; without limit where the system does not say."""
    try:
        stated = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return sys.maxsize
    found = re.search(r"MemAvailable:\s*(\d+) kB", stated)
    return int(found[1]) * 1024 if found else sys.maxsize
