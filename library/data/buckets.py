"""Aspect buckets: the training size of a picture of any shape."""

import logging
import math
from collections import Counter
from collections.abc import Sequence

from library.data.examples import Example
from library.data.subset_rules import BucketRules
from library.errors import Faults, InputError

HEAVY_CROP = 0.2  # cropped share of the scaled picture's area
logger = logging.getLogger(__name__)


def parse_resolution(text: str) -> tuple[int, int]:
    """``"512"`` or ``"640,512"`` -> (width, height) in pixels."""
    numbers = [int(number) for number in text.split(",")]
    return (numbers[0], numbers[-1])


def check_multiple(name: str, value: int, multiple: int) -> None:
    """Raises: InputError when the model cannot take a side of this many pixels."""
    if value % multiple or value <= 0:
        raise InputError(f"{name} must be a multiple of {multiple} pixels for this model, got {value}")


def bucket_sizes(resolution: tuple[int, int], smallest: int, largest: int, step: int) -> list[tuple[int, int]]:
    """All (width, height) whose area is at most that of the resolution; kohya's set.

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
    """The bucket of the picture's own size, else the one with the nearest aspect ratio on a log scale."""
    if (width, height) in sizes:
        return (width, height)
    aspect = math.log(width / height)
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1], size))


def shrunk_bucket(width: int, height: int, resolution: tuple[int, int], step: int) -> tuple[int, int]:
    """The bucket without enlarging: shrink only above the target area, then round both sides down to the step.

    To shrink, one side is rounded to the step and the other follows, in the way with the smaller log aspect error.
    """
    area = resolution[0] * resolution[1]
    if width * height <= area:
        return (max(step, width // step * step), max(step, height // step * step))
    aspect = width / height
    by_width = _rounded(math.sqrt(area * aspect), step)
    by_height = _rounded(math.sqrt(area / aspect), step)
    if _log_error(by_width, _rounded(by_width / aspect, step), aspect) < _log_error(
        _rounded(by_height * aspect, step), by_height, aspect
    ):
        wide, high = float(by_width), by_width / aspect
    else:
        wide, high = by_height * aspect, float(by_height)
    return (max(step, int(wide + 0.5) // step * step), max(step, int(high + 0.5) // step * step))


def _rounded(length: float, step: int) -> int:
    """A length rounded to whole steps, at least one."""
    return max(step, int(length + 0.5) // step * step)


def _log_error(width: float, height: float, aspect: float) -> float:
    return abs(math.log(width / height) - math.log(aspect))


def training_size(example: Example) -> tuple[int, int]:
    """The training size (width, height) of a picture by its own rules."""
    rules = example.subset.buckets
    resolution = parse_resolution(rules.resolution)
    if not rules.enable_bucket:
        return resolution
    if rules.bucket_no_upscale:
        return shrunk_bucket(example.width, example.height, resolution, rules.bucket_reso_steps)
    sizes = bucket_sizes(resolution, rules.min_bucket_reso, rules.max_bucket_reso, rules.bucket_reso_steps)
    return nearest_bucket(example.width, example.height, sizes)


def assign_buckets(examples: Sequence[Example], multiple: int) -> list[tuple[int, int]]:
    """The training size (width, height) of each picture.

    Args:
        multiple: resolutions and bucket sides must be multiples of this many pixels.

    Raises:
        InputError: sizes that the model cannot take, for all datasets at once.
    """
    faults = Faults()
    for rules in dict.fromkeys(example.subset.buckets for example in examples):
        faults.attempt(_check_rules, rules, multiple)
    faults.raise_if_any()
    known: dict[tuple[BucketRules, int, int], tuple[int, int]] = {}
    for example in examples:
        key = (example.subset.buckets, example.width, example.height)
        if key not in known:
            known[key] = training_size(example)
    return [known[example.subset.buckets, example.width, example.height] for example in examples]


def _check_rules(rules: BucketRules, multiple: int) -> None:
    resolution = parse_resolution(rules.resolution)
    if not rules.enable_bucket:
        check_multiple("resolution", resolution[0], multiple)
        check_multiple("resolution", resolution[1], multiple)
        return
    step = rules.bucket_reso_steps
    check_multiple("bucket_reso_steps", step, multiple)
    if rules.bucket_no_upscale:
        return
    sizes = bucket_sizes(resolution, rules.min_bucket_reso, rules.max_bucket_reso, step)
    if min(min(size) for size in sizes) <= 0:
        raise InputError(
            f"no bucket fits resolution {resolution} with sides {rules.min_bucket_reso}..{rules.max_bucket_reso} "
            f"in steps of {step}; change min_bucket_reso, max_bucket_reso or bucket_reso_steps"
        )
    for name, side in (("min_bucket_reso", rules.min_bucket_reso), ("max_bucket_reso", rules.max_bucket_reso)):
        check_multiple(name, side, multiple)


def report_buckets(examples: Sequence[Example], sizes: Sequence[tuple[int, int]], uses: Sequence[int]) -> None:
    """Log how many pictures are enlarged or heavily cropped, and which buckets never fill a batch.

    Args:
        uses: of each picture in an epoch; 0 if it is not trained on.
    """
    enlarged = sum(
        size[0] > example.width or size[1] > example.height for example, size in zip(examples, sizes, strict=True)
    )
    cropped = sum(cropped_share(example, size) > HEAVY_CROP for example, size in zip(examples, sizes, strict=True))
    if enlarged:
        logger.info("%d of %d images are smaller than their training size and are enlarged", enlarged, len(examples))
    if cropped:
        logger.info(
            "%d of %d images lose more than %.0f %% of their area to the crop", cropped, len(examples), 100 * HEAVY_CROP
        )
    counts: Counter[tuple[int, int, tuple[int, int]]] = Counter()
    for example, size, times in zip(examples, sizes, uses, strict=True):
        counts[example.subset.dataset, example.subset.batch_size, size] += times
    thin = [f"{size[0]}x{size[1]} ({count})" for (_, most, size), count in sorted(counts.items()) if 0 < count < most]
    if thin:
        logger.warning(
            "%d buckets have fewer images per epoch than a batch, so their batches are smaller: %s",
            len(thin),
            ", ".join(thin[:10]) + (" ..." if len(thin) > 10 else ""),
        )


def cropped_share(example: Example, size: tuple[int, int]) -> float:
    """Share of a picture's area that is cropped when it is scaled to cover its training size."""
    scale = max(size[0] / example.width, size[1] / example.height)
    return 1 - size[0] * size[1] / (example.width * scale * example.height * scale)
