"""Progress on the terminal: counted bars that fit 80 columns, speed and time left first."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

QUIET_SECONDS = 30.0  # between two lines where the bar goes into a file and not to a terminal
ALIVE_SECONDS = 0.2


def counted(
    total: int, name: str, unit: str = "images", *, silent: bool = False, over: Iterable[Any] | None = None
) -> Any:
    """A bar like ``encoding latents: 96 of 305 images, 25.7 images/s, 00:08 left |###   |``; nothing for ``total`` 0.

    Args:
        silent: show nothing at all.
        over: what the bar goes through, where it is an iterable's and not updated by hand.
    """
    layout = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left |{bar}|"
    return tqdm(over, leave=False, **_bar(total, name, unit, layout, silent=silent or total == 0))


def course(total: int, name: str, *, done: int, silent: bool = False) -> Any:
    """The bar of a whole run: ``step 48/490, ... |###   |``; the caller gives what stands in the middle.

    Args:
        done: counted before this bar began.
    """
    return tqdm(initial=done, **_bar(total, name, "step", "{desc} {n_fmt}/{total_fmt}{postfix} |{bar}|", silent=silent))


def _bar(total: int, name: str, unit: str, layout: str, *, silent: bool) -> dict[str, Any]:
    """A bar that follows the width of the terminal; into a file it writes two lines a minute."""
    return {
        "total": total,
        "desc": name,
        "unit": f" {unit}",
        "bar_format": layout,
        "dynamic_ncols": True,
        "ascii": " -#",
        "mininterval": interval(),
        "disable": silent,
    }


def interval() -> float:
    """Seconds between two states of a bar."""
    return ALIVE_SECONDS if sys.stderr.isatty() else QUIET_SECONDS


def clock(seconds: float) -> str:
    """``0:08``, ``12:34`` or ``1:02:03``; ``?`` where it is not known."""
    if seconds != seconds or seconds in (float("inf"), float("-inf")):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def spoken(seconds: float) -> str:
    """A forecast in words: ``about 40 seconds``, ``about 12 minutes``, ``about 3.5 hours``."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} seconds"
    return f"about {round(seconds / 60)} minutes" if seconds < 5400 else f"about {seconds / 3600:.1f} hours"


class Smoothed:
    """Exponential means of figures by name, without the bias of the start (as Adam's); figures that are not finite
    are left out."""

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = decay
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: float) -> float:
        """Take one figure in; returns the mean so far, NaN before the first finite one."""
        if value - value == 0:
            self._sums[name] = self.decay * self._sums.get(name, 0.0) + (1 - self.decay) * value
            self._weights[name] = self.decay * self._weights.get(name, 0.0) + 1 - self.decay
        return self._sums[name] / self._weights[name] if name in self._sums else float("nan")
