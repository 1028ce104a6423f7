"""The records of a run: log.jsonl, trackers, the progress bar."""

import json
import logging
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from library.errors import InputError
from library.incoming.files import MOST_LIST, read_text
from library.incoming.shapes import Either, ListOf, Number, Record, Shape, Text, Whole, check_shape
from library.incoming.texts import parse_json_lines
from library.plain_text import plain_lines
from library.progress import Smoothed, clock, course, interval
from library.tensor_files import owners_file, write_whole
from library.training.output_folder import OutputFolder
from library.training.speed import Speed
from library.training.trackers import LogRules, TensorBoard, Tracker, open_trackers

logger = logging.getLogger(__name__)
SHOWN = {"adaptation_loss": "L", "attack_loss": "CE", "proxy_loss": "proxy"}  # in the bar, under short names


class LogFile:
    """A file that grows by whole lines, its owner's alone; a link is not followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = owners_file(str(path), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW)

    def append(self, line: str) -> None:
        """Write one line. Raises: OSError, and then nothing of the line is in the file."""
        before, rest = os.fstat(self._handle).st_size, memoryview(f"{line}\n".encode())
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
        except OSError as error:
            os.ftruncate(self._handle, before)
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def restore(self) -> None:
        """Write the file again where it was removed: the kernel keeps its content while it is open."""
        if self.path.exists():
            return
        content = os.pread(self._handle, os.fstat(self._handle).st_size, 0)
        write_whole(self.path, content)
        os.close(self._handle)
        self._handle = owners_file(str(self.path), os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)

    def close(self) -> None:
        """Close it."""
        os.close(self._handle)


FIGURE = Either((Number(), Text(pattern="nan|-?inf")))
GAP = (
    "learnt", "learnt_low", "learnt_high", "learnt_by_heart", "calibrated_auc", "calibrated_auc_low",
    "calibrated_auc_high",
)  # fmt: skip
LOSSES = ("adaptation_loss_members_aux", "adaptation_loss_non_members_aux", "proxy_balanced_accuracy", *GAP)
COUNTS = ("images_members_aux", "images_non_members_aux")
RECORDS: Shape = ListOf(Record({"step": Whole()}, dict.fromkeys((*LOSSES, *COUNTS), FIGURE)))


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
        if self.log.exists():
            self._forget_after(done)
        self.file = LogFile(self.log)
        self._trackers = open_trackers(rules, folder, done)
        self.tensorboard = next((one.place for one in self._trackers if isinstance(one, TensorBoard)), None)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self.active:
            self.file.close()
        for tracker in self._trackers:
            with suppress(OSError):  # its last figures are in log.jsonl
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
        if "epsilon" in figures:
            shown.append(f"epsilon {figures['epsilon']:.3g}")
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

    def ends_after(self, steps: int) -> None:
        """Tell when the end of the run has moved, and count up to it from now on."""
        if self.active and steps != self._bar.total:
            self._bar.total = steps
            self._bar.write(
                f"target_auc: the learning rate falls to zero from here on; the run ends after step {steps}"
            )

    def teacher(self, number: int, count: int, figures: dict[str, float]) -> None:
        """Record what became of one teacher of a distillation."""
        if not self.active:
            return
        self._write({"step": 0, "epoch": 0, "teacher": number, **figures})
        text = f"teacher {number} of {count}: {figures['teacher_steps']:.0f} steps, loss {figures['teacher_loss']:.4g}"
        if "teacher_learnt" in figures:
            text += f"; kept after step {figures['teacher_kept_step']:.0f}, learnt {figures['teacher_learnt']:.1%} "
            text += f"(pictures it never saw), AUC {figures['teacher_auc']:.3f}"
        self._bar.write(text)

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
        self._tell(lambda tracker: tracker.pictures(done, images))

    def summary(self, *, validated: bool) -> str:
        """What the run learned, where there were validation passes, and its speed."""
        learnt = learning_summary(self.log) if validated else ""
        return "\n".join(line for line in (learnt, self.speed.summary()) if line)

    def _track(self, done: int, kind: str, figures: dict[str, Any]) -> None:
        """Send finite numbers to every tracker."""
        plain = {
            f"{kind}/{name}": value
            for name, value in figures.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        self._tell(lambda tracker: tracker.figures(done, plain))

    def _tell(self, figures: Callable[[Tracker], None]) -> None:
        """Give every tracker something; one that cannot write any more is left out from then on, with one line."""
        for tracker in list(self._trackers):
            try:
                figures(tracker)
            except OSError as error:
                self._trackers.remove(tracker)
                with suppress(OSError):
                    tracker.close()
                name, reason = type(tracker).__name__, error.strerror or error
                logger.warning("%s cannot be written (%s) and ends here; log.jsonl has all figures", name, reason)

    def _write(self, record: dict[str, Any]) -> None:
        plain = {
            name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
            for name, value in record.items()
        }
        self.file.append(json.dumps(plain))

    def _forget_after(self, done: int) -> None:
        """Remove records that a resumed run will write again."""
        kept = [record for record in read_records(self.log) if record["step"] <= done] if done else []
        write_whole(self.log, "".join(f"{json.dumps(record)}\n" for record in kept))


def read_records(log: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; a last one that a killed run has left without its end is left out.

    Raises:
        InputError: a line that this suite does not write.
    """
    name = f"'{log}'"
    text = read_text(log, name, MOST_LIST)
    records = [record for _, record in parse_json_lines(text[: text.rfind("\n") + 1], name)]
    check_shape(records, RECORDS, name)
    return records


def validation_summary(figures: dict[str, Any]) -> str:
    """A validation pass over the aux sides: the proxy's accuracy, then what was learnt, with the numbers of images."""
    members, others = figures["images_members_aux"], figures["images_non_members_aux"]
    if "learnt" in figures:
        low, high = figures["calibrated_auc_low"], figures["calibrated_auc_high"]
        text = (
            f"learnt {figures['learnt']:.1%}{_learnt_interval(figures)} (held-out, n={others:.0f}),\n"
            f"  by heart {figures['learnt_by_heart']:.1%} "
            f"(members, n={members:.0f}), AUC {figures['calibrated_auc']:.3f} [{low:.3f}, {high:.3f}]"
        )
    else:  # a network that cannot be switched off
        text = f"loss at fixed noise\n  {_fit(figures)}"
    if "proxy_balanced_accuracy" in figures:
        return f"proxy's balanced accuracy {figures['proxy_balanced_accuracy']:.3f}, {text}"
    return text


def _learnt_interval(figures: dict[str, Any]) -> str:
    """The 95 % interval of what was learnt; empty for a pass that an earlier version logged without one."""
    if "learnt_low" not in figures:
        return ""
    return f" [{100 * figures['learnt_low']:.1f}, {100 * figures['learnt_high']:.1f}]"


def learning_summary(log: Path) -> str:
    """The first and the last validation pass of a whole run, a resumed one too, from its log."""
    passes = [record for record in read_records(log) if "adaptation_loss_members_aux" in record]
    if not passes:
        raise InputError(f"'{log}' has lost its validation passes; somebody changed it while the run wrote it")
    passes = [{name: float(record[name]) for name in (*LOSSES, *COUNTS) if name in record} for record in passes]
    fits = [f"\n  fit, loss at fixed noise: {_fit(one)}" if "learnt" in one else "" for one in passes]
    return f"before: {validation_summary(passes[0])}{fits[0]}\nafter:  {validation_summary(passes[-1])}{fits[-1]}"


def _fit(figures: dict[str, Any]) -> str:
    """How well the pictures fit; the members' loss holds what is learnt by heart, so it is no utility."""
    parts = [
        f"{side.replace('_', '-')} {figures[f'adaptation_loss_{side}']:.4f} (n={figures[f'images_{side}']:.0f})"
        for side in ("members_aux", "non_members_aux")
    ]
    return " vs ".join(parts)
