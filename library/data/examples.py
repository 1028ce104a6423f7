"""One captioned picture, identified by the hash of its decoded pixels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from library.data.subset_rules import Subset
from library.errors import InputError
from library.incoming.pictures import open_image


@dataclass(frozen=True)
class Example:
    """A picture as the split sees it. ``pixels`` identifies it; the path is only where it was found."""

    path: Path
    caption: str  # as written, without prefix and suffix; several lines where wildcards are on
    repeats: int
    group: str  # pictures of one group stay on one side
    width: int  # pixels
    height: int  # pixels
    pixels: str  # SHA-256 (hex) of the decoded RGB pixels and their size
    brightness_signs: int  # 64-bit difference hash, for near duplicates
    subset: Subset  # its rules
    mask: Path | None  # picture whose red channel weights the loss; None: no mask, or the picture's own alpha


def open_picture(path: Path) -> Image.Image:
    """Decode a picture to RGB, turned by its EXIF orientation.

    Raises:
        InputError: a picture that does not fit into memory.
        OSError, SyntaxError, ValueError: Pillow's errors for a corrupt file.
    """
    with open_image(path) as file:
        return as_rgb(ImageOps.exif_transpose(file))


def picture_of(example: Example) -> Image.Image:
    """Decode the picture of an example again. Raises: InputError where it is another one by now."""
    try:
        picture = open_picture(example.path)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"'{example.path}' was there when the split was drawn and cannot be decoded now "
            f"({type(error).__name__}); restore it, or start again"
        ) from error
    if pixel_hash(picture) != example.pixels:
        raise InputError(
            f"'{example.path}' has changed since it was read for the split, which names the picture that it was; "
            "restore it, or start again"
        )
    return picture


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture in RGB; 16-bit grey is divided by 257, since Pillow's own conversion makes all above 255 white.

    Raises:
        ValueError: grey levels outside 0 .. 65535.
    """
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture.convert("RGB")
    levels = np.asarray(picture)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError(f"grey levels from {levels.min()} to {levels.max()}; at most 16 bits are read")
    return Image.fromarray((levels // 257).astype(np.uint8)).convert("RGB")


def alpha_channel(path: Path) -> Image.Image | None:
    """The alpha channel of a picture (mode L), turned by its EXIF orientation; None if it has none."""
    with open_image(path) as file:
        if not file.has_transparency_data:
            return None
        return ImageOps.exif_transpose(file).convert("RGBA").getchannel("A")


def pixel_hash(picture: Image.Image) -> str:
    """SHA-256 (hex) over width, height and RGB bytes: the same for a PNG and a lossless copy of it."""
    digest = hashlib.sha256(f"{picture.width}x{picture.height}".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


def difference_hash(picture: Image.Image) -> int:
    """64 signs of horizontal brightness steps on a 9 x 8 thumbnail; near duplicates differ in few bits."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
