"""Points of a frontier that was never trained: plain LoRA's curve and a defence, on the same pictures of a split."""

import numpy as np

from library.audit.report.comparison.frontier import Figure, Point
from library.audit.statistics.metrics import Scores


def scores(distance: float, split: int, count: int = 160) -> tuple[Scores, Scores]:
    """Both sides; on one split the pictures are the same, so that only the distance differs."""
    draws = np.random.default_rng(100 + split)
    return draws.normal(size=count) + distance, draws.normal(size=count)


def point(title: str, gain: float, distance: float, split: int = 1, *, is_plain: bool = False, exposures: float = 8.0):
    groups = [str(n // 4) for n in range(160)], [str(100 + n // 4) for n in range(160)]
    sides = {"fusion": scores(distance, split), "loss": scores(distance / 2, split)}
    return Point(title, split, is_plain, exposures, Figure(gain, 0.01), "fusion", "fusion", sides, groups)


def plain_curve(split: int = 1) -> list[Point]:
    return [
        point("plain 6", 0.40, 0.1, split, is_plain=True, exposures=6),
        point("plain 12", 0.50, 0.5, split, is_plain=True, exposures=12),
        point("plain 24", 0.49, 1.0, split, is_plain=True, exposures=24),
    ]
