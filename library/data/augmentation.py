"""Augmentation: one use of a picture, scaled, cropped, mirrored and recoloured, with its mask."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from library.data.examples import Example, picture_of
from library.data.masks import mask_of
from library.errors import InputError

METHODS = {
    "lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "cubic": Image.Resampling.BICUBIC,
    "area": Image.Resampling.BOX, "box": Image.Resampling.BOX,
}  # fmt: skip
HUE_SHIFT = 8 / 180  # of the whole circle, either way, as in kohya
GAMMA = 0.05  # gamma between 1 - this and 1 + this, as in kohya


@dataclass(frozen=True)
class Crop:
    """Scale a picture to ``covered`` (width, height), then cut ``size`` out of it at (left, top), in pixels."""

    covered: tuple[int, int]
    left: int
    top: int
    size: tuple[int, int]

    def of(self, picture: Image.Image, interpolation: str | None) -> Image.Image:
        """The picture with this crop; the default methods are area to shrink and lanczos to enlarge."""
        if self.covered != picture.size:
            shrinks = self.covered[0] * self.covered[1] < picture.width * picture.height
            method = Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS
            picture = picture.resize(self.covered, METHODS[interpolation] if interpolation else method)
        return picture.crop((self.left, self.top, self.left + self.size[0], self.top + self.size[1]))

    def framing(self, width: int, height: int, *, mirrored: bool = False) -> Tensor:
        """[6] what SDXL is told of a picture (arXiv 2307.01952, 2.2): its own height and width, top and left of the
        crop in the scaled picture, height and width of the crop.

        Args:
            width, height: of the picture before scaling.
            mirrored: the picture was mirrored, so its right edge is the left one.
        """
        left = self.covered[0] - self.size[0] - self.left if mirrored else self.left
        return torch.tensor([height, width, self.top, left, self.size[1], self.size[0]])


def centre_crop(width: int, height: int, size: tuple[int, int]) -> Crop:
    """Scale to cover ``size`` and cut both edges equally."""
    covered = _covered(width, height, size, _least_scale(width, height, size))
    return Crop(covered, (covered[0] - size[0]) // 2, (covered[1] - size[1]) // 2, size)


def random_crop(width: int, height: int, size: tuple[int, int], generator: torch.Generator) -> Crop:
    """Scale to cover ``size`` and crop at a random place."""
    covered = _covered(width, height, size, _least_scale(width, height, size))
    left, top = (_whole(0, covered[axis] - size[axis], generator) for axis in (0, 1))
    return Crop(covered, left, top, size)


def face_crop(
    example: Example, size: tuple[int, int], span: tuple[float, float], wander: bool, generator: torch.Generator
) -> Crop:
    """A crop at a random scale around the face whose centre and size are in the file name.

    The short training side is between ``span[0]`` and ``span[1]`` times the face, but the picture is not enlarged more
    than needed to cover ``size``.

    Args:
        wander: the option random_crop; the face need not be in the centre.
    """
    x, y, wide, high = face_of(example) or (0, 0, 0, 0)
    least = _least_scale(example.width, example.height, size)
    face = max(wide, high, 1)
    far, near = (max(least, min(1.0, min(size) / (face * times))) for times in (span[1], span[0]))
    scale = far + (near - far) * float(torch.rand((), generator=generator))
    covered = _covered(example.width, example.height, size, scale)
    corner = []
    for length, side, centre in zip(covered, size, (x * scale, y * scale), strict=True):
        start = round(centre) - side // 2
        if wander:
            reach = math.ceil(max(length - centre, centre))
            start += _whole(0, reach, generator) + _whole(0, reach, generator) - reach
        corner.append(max(0, min(start, length - side)))
    return Crop(covered, corner[0], corner[1], size)


def face_of(example: Example) -> tuple[int, int, int, int] | None:
    """Centre x, y and size w, h in pixels from a file stem NAME_x_y_w_h (kohya's rule), or None."""
    words = example.path.stem.split("_")
    if len(words) < 5 or not all(word.isdecimal() for word in words[-4:]):
        return None
    x, y, width, height = (int(word) for word in words[-4:])
    return (x, y, width, height) if width and height else None


def face_range(text: str) -> tuple[float, float]:
    """``"1.5,4"`` -> (1.5, 4.0): least and largest ratio of the short training side to the face.

    Raises:
        InputError: other texts than two increasing positive numbers.
    """
    try:
        least, most = (float(word) for word in text.split(","))
    except ValueError:
        least, most = 0.0, 0.0
    if not 0 < least <= most < math.inf:
        raise InputError(f"face_crop_aug_range must be 'least,most', two increasing numbers above 0, got '{text}'")
    return least, most


def recoloured(picture: Image.Image, generator: torch.Generator) -> Image.Image:
    """In a third of all uses, shift the hue by up to 16 degrees or change gamma by up to 5 %, as in kohya."""
    changed, kind, amount = torch.rand(3, generator=generator).tolist()
    if changed >= 1 / 3:
        return picture
    if kind < 0.5:
        hue, saturation, value = picture.convert("HSV").split()
        turn = round((2 * amount - 1) * HUE_SHIFT * 255)
        turned = Image.fromarray((np.asarray(hue, dtype=np.int16) + turn).astype(np.uint8))  # wraps, as hue does
        return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
    gamma = 1 + (2 * amount - 1) * GAMMA
    return picture.point([round(255 * (level / 255) ** gamma) for level in range(256)] * 3)


def chosen_crop(example: Example, size: tuple[int, int], generator: torch.Generator | None) -> Crop:
    """The crop of one use; without a generator the centre crop."""
    rules = example.subset.looks
    if generator is not None and rules.face_crop_aug_range is not None:
        return face_crop(example, size, face_range(rules.face_crop_aug_range), rules.random_crop, generator)
    if generator is not None and rules.random_crop:
        return random_crop(example.width, example.height, size, generator)
    return centre_crop(example.width, example.height, size)


@dataclass(frozen=True)
class Use:
    """One use of a picture."""

    pixels: Tensor  # [3, H, W] in -1 .. 1
    mask: Tensor | None  # [1, H, W] in 0 .. 1
    framing: Tensor  # [6], see ``Crop.framing``


def use_of(example: Example, size: tuple[int, int], generator: torch.Generator | None) -> Use:
    """One use of a picture.

    Args:
        generator: draws crop, mirror and colour; None = no augmentation.
    """
    rules = example.subset.looks
    crop = chosen_crop(example, size, generator)
    mirrored = generator is not None and rules.flip_aug and bool(torch.rand((), generator=generator) < 0.5)
    picture = crop.of(picture_of(example), rules.resize_interpolation)
    if generator is not None and rules.color_aug:
        picture = recoloured(picture, generator)
    mask = mask_of(example)
    weights = None if mask is None else as_tensor(crop.of(mask, rules.resize_interpolation)) / 255
    pixels = as_tensor(picture) / 127.5 - 1.0
    framing = crop.framing(example.width, example.height, mirrored=mirrored)
    if mirrored:
        return Use(pixels.flip(-1), None if weights is None else weights.flip(-1), framing)
    return Use(pixels, weights, framing)


def plain_framing(example: Example, size: tuple[int, int], *, mirrored: bool = False) -> Tensor:
    """[6] the framing of a picture without augmentation, see ``Crop.framing``."""
    width, height = example.width, example.height
    return centre_crop(width, height, size).framing(width, height, mirrored=mirrored)


def plain_pixels(example: Example, size: tuple[int, int]) -> Tensor:
    """A picture without augmentation, scaled by its own rules and cropped in the centre: [3, H, W] in -1 .. 1."""
    return fitted_pixels(picture_of(example), size, example.subset.looks.resize_interpolation)


def fitted_pixels(picture: Image.Image, size: tuple[int, int], interpolation: str | None = None) -> Tensor:
    """A picture scaled to cover (width, height) and cropped in the centre: [3, H, W] in -1 .. 1."""
    crop = centre_crop(picture.width, picture.height, size)
    return as_tensor(crop.of(picture, interpolation)) / 127.5 - 1.0


def as_tensor(picture: Image.Image) -> Tensor:
    """Levels 0 .. 255 of a picture, [channels, H, W] fp32."""
    levels = torch.from_numpy(np.asarray(picture, dtype=np.float32))
    return levels[None] if levels.ndim == 2 else levels.permute(2, 0, 1)


def _least_scale(width: int, height: int, size: tuple[int, int]) -> float:
    return max(size[0] / width, size[1] / height)


def _covered(width: int, height: int, size: tuple[int, int], scale: float) -> tuple[int, int]:
    return (max(size[0], round(width * scale)), max(size[1], round(height * scale)))


def _whole(least: int, most: int, generator: torch.Generator) -> int:
    """A whole number from ``least`` to ``most``, both included."""
    return int(torch.randint(least, most + 1, (), generator=generator))
