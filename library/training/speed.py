"""The speed of a run, and its share of time that waits for data."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Speed:
    """Measures from the end of the first step, which includes all warm-up."""

    def __init__(
        self, images_per_step: float, mfu_of_one: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """
        Args:
            images_per_step: of one optimizer step, all processes together, on average over an epoch.
            mfu_of_one: share of the GPUs' peak that one image a second uses; 0 if the peak is not known.
        """
        self.images_per_step = images_per_step
        self.mfu_of_one = mfu_of_one
        self._clock = clock
        self._started: float | None = None
        self._steps = 0  # timed so far
        self._waited = 0.0  # seconds since the first step
        self._elapsed = 0.0  # seconds since the first step

    def waiting(self, fetch: Callable[..., Result], *arguments: object) -> Result:
        """The result of ``fetch``; its time counts as waiting for data (each step ends in a wait for the GPU)."""
        before = self._clock()
        result = fetch(*arguments)
        if self._started is not None:
            self._waited += self._clock() - before
        return result

    def after_step(self) -> dict[str, float]:
        """Images per second of all processes together, share of the time spent waiting (0..1), and MFU if known."""
        if self._started is None:
            self._started = self._clock()
            return {}
        self._steps += 1
        self._elapsed = self._clock() - self._started
        rate = self._steps * self.images_per_step / max(self._elapsed, 1e-9)
        figures = {"images_per_second": rate, "data_wait_share": self._waited / max(self._elapsed, 1e-9)}
        return figures | ({"mfu": rate * self.mfu_of_one} if self.mfu_of_one else {})

    def summary(self) -> str:
        """One line for the end of a run; empty for a run of one step."""
        if not self._steps:
            return ""
        rate, share = self._steps * self.images_per_step / self._elapsed, self._waited / self._elapsed
        text = f"speed: {rate:.3g} images/s of all processes, with validation and files; {share:.1%} waits for data"
        if self.mfu_of_one:
            text += f"\n  MFU {rate * self.mfu_of_one:.1%} (UNet forward counted, backward estimated)"
        return text + (
            "\nWARNING: more than 10 % of the time waits for data; set cache_latents = true" if share > 0.1 else ""
        )
