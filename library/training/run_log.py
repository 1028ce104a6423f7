"""The records of a run: log.jsonl, trackers, the progress bar."""

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image
from tqdm import tqdm

from library.errors import InputError
from library.incoming.files import MOST_LIST, read_text
from library.incoming.shapes import Either, ListOf, Number, Record, Shape, Text, Whole, check_shape
from library.incoming.texts import parse_json_lines
from library.plain_text import plain_lines
from library.tensor_files import owners_file, write_whole
from library.training.output_folder import OutputFolder
from library.training.speed import Speed
from library.training.trackers import LogRules, Tracker, open_trackers

SHOWN = ("adaptation_loss", "attack_loss", "proxy_loss")  # in the bar


FIGURE = Either((Number(), Text(pattern="nan|-?inf")))
LOSSES = ("adaptation_loss_members_aux", "adaptation_loss_non_members_aux", "proxy_balanced_accuracy")
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
        self._bar = tqdm(
            total=total, initial=done, desc="training", unit="step", dynamic_ncols=True, disable=not active
        )
        self._trackers: list[Tracker] = []
        if not active:
            return
        if done:
            self._forget_after(done)
        handle = owners_file(str(self.log), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._file = os.fdopen(handle, "a", encoding="utf-8")
        self._trackers = open_trackers(rules, folder, done)

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
        shown = {name: f"{value:.4g}" for name, value in figures.items() if name in SHOWN}
        if "images_per_second" in speed:
            shown["images/s"] = f"{speed['images_per_second']:.1f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(1)

    def epoch(self, done: int, epoch: int, figures: dict[str, Any]) -> None:
        """Record a validation pass over the aux sides."""
        if not self.active:
            return
        self._write({"step": done, "epoch": epoch, **figures})
        self._track(done, "epoch", figures)
        self._bar.write(f"epoch {epoch}, step {done}: {validation_summary(figures)}")

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
        kept = [record for record in read_records(self.log) if record["step"] <= done] if self.log.exists() else []
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
    """A validation pass over the aux sides in one line: members and non-members, with the numbers of images."""
    parts = []
    for side, name in (("members_aux", "members-aux"), ("non_members_aux", "non-members-aux")):
        parts.append(f"{name} {figures[f'adaptation_loss_{side}']:.4f} (n={figures[f'images_{side}']:.0f})")
    text = f"adaptation loss at fixed noise: {' vs '.join(parts)}"
    if "proxy_balanced_accuracy" in figures:
        text += f"; proxy's balanced accuracy {figures['proxy_balanced_accuracy']:.3f}"
    return text


def learning_summary(log: Path) -> str:
    """The first and the last validation pass of a whole run, a resumed one too, from its log."""
    passes = [record for record in read_records(log) if "adaptation_loss_members_aux" in record]
    if not passes:
        raise InputError(f"'{log}' has lost its validation passes; somebody changed it while the run wrote it")
    passes = [{name: float(record[name]) for name in (*LOSSES, *COUNTS) if name in record} for record in passes]
    return f"before: {validation_summary(passes[0])}\nafter:  {validation_summary(passes[-1])}"
