"""Masks: the weight of each pixel of a picture in the adaptation loss."""

from pathlib import Path

from PIL import Image, ImageOps

from library.data.examples import Example, alpha_channel, as_rgb
from library.data.folders import ENDINGS
from library.errors import InputError
from library.incoming.pictures import open_image


class MaskFinder:
    """Finds and checks the mask of each picture of one source."""

    def __init__(self, folder: Path | None, alpha: bool) -> None:
        """
        Args:
            folder: masks with the file stems of the pictures; None: no mask files.
            alpha: the picture's own alpha channel is its mask.
        """
        self.folder = folder
        self.alpha = alpha
        self.by_stem: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()) if folder else []:
            if path.suffix.lower() in ENDINGS:
                self.by_stem.setdefault(path.stem, []).append(path)

    def of(self, example: Example) -> Path | None:
        """The mask file of a picture; None where it has no mask file.

        Raises:
            InputError: a mask that is missing, ambiguous, unreadable, or of another size than its picture.
        """
        if self.folder is None:
            if self.alpha and alpha_channel(example.path) is None:
                raise InputError(
                    f"alpha_mask: '{example.path}' has no alpha channel; save it with one, or move it to a subset "
                    "without alpha_mask"
                )
            return None
        files = self.by_stem.get(example.path.stem, [])
        if len(files) != 1:
            what = "has no mask" if not files else f"has {len(files)} masks"
            raise InputError(
                f"conditioning_data_dir: '{example.path}' {what} in '{self.folder}'; give one file of the same stem"
            )
        try:
            size = red_channel(files[0]).size
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"the mask '{files[0]}' cannot be decoded ({type(error).__name__})") from error
        if size != (example.width, example.height):
            raise InputError(
                f"the mask '{files[0]}' is {size[0]}x{size[1]} pixels, but its picture "
                f"{example.width}x{example.height}; "
                "save it at the picture's size"
            )
        return files[0]


def red_channel(path: Path) -> Image.Image:
    """The red channel of a mask file (mode L), 255 = full weight."""
    with open_image(path) as file:
        return as_rgb(ImageOps.exif_transpose(file)).getchannel("R")


def mask_of(example: Example) -> Image.Image | None:
    """The mask of a picture (mode L, the picture's size), or None if every pixel has full weight."""
    if example.mask is not None:
        return red_channel(example.mask)
    return alpha_channel(example.path) if example.subset.alpha_mask else None
