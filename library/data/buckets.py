"""Aspect buckets: which training size a picture of any shape gets."""

import math

from library.check import InputError
from library.data.examples import Example


def parse_resolution(text: str) -> tuple[int, int]:
    """``"512"`` or ``"640,512"`` -> (width, height) in pixels."""
    numbers = [int(number) for number in text.split(",")]
    return (numbers[0], numbers[-1])


def check_multiple(name: str, value: int, multiple: int) -> None:
    """Raises: InputError when the model cannot take a side of this many pixels."""
    if value % multiple or value <= 0:
        raise InputError(f"{name} must be a multiple of {multiple} pixels for this model, got {value}")


def bucket_sizes(resolution: tuple[int, int], smallest: int, largest: int, step: int) -> list[tuple[int, int]]:
    """All (width, height) whose area stays within that of the resolution, kohya's set.

    512 x 512 with sides of 256 .. 1024 in steps of 64 gives 17 buckets.
    """
    area = resolution[0] * resolution[1]
    square = math.isqrt(area) // step * step
    sizes = {(square, square)}
    for width in range(smallest, largest + 1, step):
        height = min(largest, area // width // step * step)
        if height >= smallest:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def nearest_bucket(width: int, height: int, sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """The bucket of the picture's own size, else the one whose aspect ratio is nearest on a log scale."""
    if (width, height) in sizes:
        return (width, height)
    aspect = math.log(width / height)
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1], size))


def shrunk_bucket(width: int, height: int, resolution: tuple[int, int], step: int) -> tuple[int, int]:
    """Bucket without enlarging: shrink only above the target area, then floor both sides to the step."""
    area = resolution[0] * resolution[1]
    scale = min(1.0, math.sqrt(area / (width * height)))
    return (max(step, int(width * scale) // step * step), max(step, int(height * scale) // step * step))


def assign_buckets(
    examples: list[Example],
    *,
    resolution: tuple[int, int],
    enable_bucket: bool,
    bucket_no_upscale: bool,
    smallest: int,
    largest: int,
    step: int,
    multiple: int,
) -> list[tuple[int, int]]:
    """The training size (width, height) of each picture.

    Args:
        multiple: the model's own step in pixels; resolution and buckets must keep to it.
    """
    if not enable_bucket:
        check_multiple("resolution", resolution[0], multiple)
        check_multiple("resolution", resolution[1], multiple)
        return [resolution] * len(examples)
    check_multiple("bucket_reso_steps", step, multiple)
    if bucket_no_upscale:
        return [shrunk_bucket(example.width, example.height, resolution, step) for example in examples]
    sizes = bucket_sizes(resolution, smallest, largest, step)
    if not sizes or min(min(size) for size in sizes) <= 0:
        raise InputError(f"no bucket fits resolution {resolution} with sides {smallest}..{largest} in steps of {step}")
    return [nearest_bucket(example.width, example.height, sizes) for example in examples]
