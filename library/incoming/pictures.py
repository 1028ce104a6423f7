"""Opens pictures from outside, with one kind of error for whatever Pillow raises."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from library.errors import InputError, shortest
from library.incoming.files import check_regular


class UnreadablePictureError(OSError):
    """A picture that cannot be opened or decoded."""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """A picture file; it is decoded inside the block.

    Raises:
        UnreadablePictureError: no regular file; what Pillow raises beside the next three.
        OSError, SyntaxError, ValueError: Pillow's errors for a corrupt file.
    """
    try:
        check_regular(path, f"'{path}'")
    except InputError as error:
        raise UnreadablePictureError(str(error)) from error
    try:
        with Image.open(path) as file:
            yield file
    except (InputError, OSError, SyntaxError, ValueError):
        raise
    except Exception as error:  # of Pillow: damaged chunks end in many of them
        raise UnreadablePictureError(f"{type(error).__name__}: {shortest(error)}") from error
