"""Ctrl-C, a closed terminal and losses that are not finite: how a run stops without losing its work."""

import math
import signal
from types import FrameType, TracebackType
from typing import Any

import torch


class StopSignal:
    """Ctrl-C, SIGTERM or a closed terminal (SIGHUP) asks the run to finish its step; a further Ctrl-C ends it at once.

    Only a Ctrl-C does: the end of a session sends SIGHUP and SIGTERM several times. ``nohup`` keeps its meaning.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def asked(self, accelerator: Any) -> bool:
        """Whether any process was asked to stop; every process must call this after the same steps."""
        if accelerator.num_processes == 1:
            return self.received
        flag = torch.tensor([float(self.received)], device=accelerator.device)
        return bool(accelerator.reduce(flag, "sum").item() > 0)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


class FiniteGuard:
    """Counts steps without a finite loss and gradient norm; they are skipped, and several in a row end the run."""

    def __init__(self, most_in_a_row: int = 5) -> None:
        self.most_in_a_row = most_in_a_row
        self.skipped = 0
        self.in_a_row = 0

    def accepts(self, loss: float, gradient_norm: float) -> bool:
        """Whether the step may be taken."""
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            self.in_a_row = 0
            return True
        self.skipped += 1
        self.in_a_row += 1
        return False

    def is_lost(self) -> bool:
        """Whether ``most_in_a_row`` bad steps followed each other."""
        return self.in_a_row >= self.most_in_a_row

    def report(self, done: int, figures: dict[str, float]) -> str:
        """The message of a run that stops because of bad steps or a signal."""
        if not self.is_lost():
            return f"stopped after step {done}, as asked"
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        return (
            f"STOPPED after step {done}: {self.in_a_row} steps in a row had a loss or gradient that is not finite "
            f"({shown}; {self.skipped} steps skipped in all). None of them changed the LoRA, and files saved "
            "before are unchanged. Lower the learning rate, or use mixed_precision bf16 or no"
        )
