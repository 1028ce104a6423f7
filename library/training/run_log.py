"""The records of a run: log.jsonl, trackers, the progress bar."""

import json
import math
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from library.plain_text import plain_lines
from library.progress import Smoothed, clock, course, interval
from library.tensor_files import owners_file, write_whole
from library.training.output_folder import OutputFolder
from library.training.speed import Speed
from library.training.trackers import LogRules, TensorBoard, Tracker, open_trackers

SHOWN = {"adaptation_loss": "L", "attack_loss": "CE", "proxy_loss": "proxy"}  # in the bar, under short names


class Recorder:
    """Writes figures to log.jsonl (one object per line), the trackers and the progress bar. Never a caption."""

    def __init__(
        self,
        folder: OutputFolder,
        rules: LogRules,
        *,
        total: int,
        done: int,
        images_per_step: float,
        mfu_of_one: float,
        active: bool,
    ) -> None:
        """
        Args:
            done: steps of the run that this one continues.
            images_per_step, mfu_of_one: see Speed.
            active: False writes nothing (processes other than the main one).
        """

        self.active = active
        self.log = folder.log()
        self.speed = Speed(images_per_step, mfu_of_one)
        self._bar = course(total, "step", done=done, silent=not active)
        self._means = Smoothed()
        self._announced = 0.0  # time.monotonic
        self._trackers: list[Tracker] = []
        self.tensorboard: str | None = None  # its folder, where it is written
        if not active:
            return
        if done:
            self._forget_after(done)
        handle = owners_file(str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._file = os.fdopen(handle, "a", encoding="utf-8")
        self._trackers = open_trackers(rules, folder, done)
        self.tensorboard = next((one.place for one in self._trackers if isinstance(one, TensorBoard)), None)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self.active:
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def step(self, done: int, epoch: int, figures: dict[str, float]) -> None:
        """Record one optimizer step; the rate counts from the end of the first one."""
        if not self.active:
            return
        self._write({"step": done, "epoch": epoch, **figures})
        self._track(done, "step", figures)
        speed = self.speed.after_step()
        self._track(done, "speed", speed)
        shown = [f"{short} {self._means.add(name, figures[name]):.3f}" for name, short in SHOWN.items()
                 if name in figures]  # fmt: skip
        if "images_per_second" in speed:
            rate, left = speed["images_per_second"], self._bar.total - done
            seconds = left * self.speed.images_per_step / rate
            shown.insert(0, f"{rate:.3g} images/s, {clock(seconds)} left")
        self._bar.set_postfix_str(", ".join(shown), refresh=False)
        self._bar.update(1)

    def epoch(self, done: int, epoch: int, figures: dict[str, Any]) -> None:
        """Record a validation pass over the aux sides."""
        if not self.active:
            return
        self._write({"step": done, "epoch": epoch, **figures})
        self._track(done, "epoch", figures)
        self._bar.write(f"epoch {epoch}, step {done}: {validation_summary(figures)}")

    def announce(self, what: str, place: int, count: int) -> None:
        """Show in the bar what the run does between two steps, and how far it is: ``previews 3 of 8``."""
        now = time.monotonic()
        if now - self._announced > interval():
            self._announced = now
            self._bar.set_postfix_str(f"{what} {place} of {count}")

    def tell(self, *lines: str) -> None:
        """Print why the run ends here, below the closed bar."""
        self._bar.close()
        if self.active:
            self._bar.write(plain_lines("\n".join(lines)))

    def pictures(self, done: int, images: list[Image.Image]) -> None:
        """Send previews to TensorBoard only, with their number instead of the prompt."""
        for tracker in self._trackers:
            tracker.pictures(done, images)

    def summary(self) -> str:
        """What the run learned, and its speed."""
        return "\n".join(line for line in (learning_summary(self.log), self.speed.summary()) if line)

    def _track(self, done: int, kind: str, figures: dict[str, Any]) -> None:
        """Send finite numbers to every tracker."""
        plain = {
            f"{kind}/{name}": value
            for name, value in figures.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        for tracker in self._trackers:
            tracker.figures(done, plain)

    def _write(self, record: dict[str, Any]) -> None:
        plain = {
            name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
            for name, value in record.items()
        }
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()

    def _forget_after(self, done: int) -> None:
        """Remove records that a resumed run will write again."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        kept = [line for line in lines if line.strip() and json.loads(line)["step"] <= done]
        write_whole(self.log, "".join(f"{line}\n" for line in kept))


def validation_summary(figures: dict[str, Any]) -> str:
    """A validation pass over the aux sides: the proxy's accuracy, then the losses with the numbers of images."""
    parts = []
    for side, name in (("members_aux", "members-aux"), ("non_members_aux", "non-members-aux")):
        parts.append(f"{name} {figures[f'adaptation_loss_{side}']:.4f} (n={figures[f'images_{side}']:.0f})")
    text = f"loss at fixed noise\n  {' vs '.join(parts)}"
    if "proxy_balanced_accuracy" in figures:
        return f"proxy's balanced accuracy {figures['proxy_balanced_accuracy']:.3f}, {text}"
    return text


def learning_summary(log: Path) -> str:
    """The first and the last validation pass of a whole run, a resumed one too, from its log."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    passes = [record for record in records if "adaptation_loss_members_aux" in record]
    return f"before: {validation_summary(passes[0])}\nafter:  {validation_summary(passes[-1])}"
