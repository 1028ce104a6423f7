"""What a run writes down as it goes: log.jsonl, TensorBoard, the progress bar."""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image
from tqdm import tqdm

from library.tensor_files import write_whole
from library.training.output_folder import OutputFolder

SHOWN = ("adaptation_loss", "attack_loss", "proxy_loss")  # in the bar


class Recorder:
    """One object a line in log.jsonl, the same figures in TensorBoard, the latest in the bar. Never a caption."""

    def __init__(
        self,
        folder: OutputFolder,
        logging_dir: str | None,
        *,
        total: int,
        done: int,
        images_per_step: float,
        active: bool,
    ) -> None:
        """
        Args:
            logging_dir: for TensorBoard; unset: beside the log.
            done: steps of an earlier run that this one goes on from.
            images_per_step: member images of one optimizer step, all processes together.
            active: False writes nothing (processes beside the main one).
        """

        self.active = active
        self.log = folder.log()
        self.images_per_step = images_per_step
        self._started: float | None = None
        self._first = done
        self._bar = tqdm(
            total=total, initial=done, desc="training", unit="step", dynamic_ncols=True, disable=not active
        )
        if not active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        if done:
            self._forget_after(done)
        self._file = self.log.open("a", encoding="utf-8")
        self._writer: Any = SummaryWriter(
            logging_dir or str(folder.tensorboard()), purge_step=done + 1 if done else None
        )

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()
        if self.active:
            self._file.close()
            self._writer.close()

    def step(self, done: int, epoch: int, figures: dict[str, float]) -> None:
        """Record one optimizer step; the rate counts from the end of the first one."""
        if not self.active:
            return
        self._write({"step": done, "epoch": epoch, **figures})
        now = time.perf_counter()
        if self._started is None:
            self._started, self._first = now, done
        elapsed = now - self._started
        shown = {name: f"{value:.4g}" for name, value in figures.items() if name in SHOWN}
        if elapsed > 0:
            rate = (done - self._first) * self.images_per_step / elapsed
            shown["images/s"] = f"{rate:.1f}"
            self._writer.add_scalar("speed/images_per_second", rate, done)
        for name, value in figures.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"step/{name}", value, done)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(1)

    def epoch(self, done: int, epoch: int, figures: dict[str, float]) -> None:
        """Record an epoch's look at the aux sides."""
        if not self.active:
            return
        self._write({"step": done, "epoch": epoch, **figures})
        for name, value in figures.items():
            self._writer.add_scalar(f"epoch/{name}", value, done)
        self._bar.write(f"epoch {epoch}: {look_in_words(figures)}")

    def pictures(self, done: int, images: list[Image.Image]) -> None:
        """Show previews in TensorBoard, by number, never by prompt."""
        import numpy as np

        for index, image in enumerate(images):
            self._writer.add_image(f"preview/{index:02d}", np.asarray(image), done, dataformats="HWC")

    def _write(self, record: dict[str, Any]) -> None:
        plain = {
            name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
            for name, value in record.items()
        }
        self._file.write(json.dumps(plain) + "\n")
        self._file.flush()

    def _forget_after(self, done: int) -> None:
        """Drop records that a resumed run will write again."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        kept = [line for line in lines if line.strip() and json.loads(line)["step"] <= done]
        write_whole(self.log, "".join(f"{line}\n" for line in kept))


def look_in_words(figures: dict[str, float]) -> str:
    """An epoch's look at the aux sides in one line, with the images it rests on."""
    parts = []
    for side, name in (("members_aux", "members-aux"), ("non_members_aux", "non-members-aux")):
        parts.append(f"{name} {figures[f'adaptation_loss_{side}']:.4f} (n={figures[f'images_{side}']:.0f})")
    text = f"adaptation loss at fixed noise: {', '.join(parts)}"
    if "proxy_balanced_accuracy" in figures:
        text += f"; proxy's balanced accuracy {figures['proxy_balanced_accuracy']:.3f}"
    return text


def learning_in_words(log: Path) -> str:
    """The first and the last look of a whole run, a resumed one too, from its log."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    looks = [record for record in records if "adaptation_loss_members_aux" in record]
    return f"before: {look_in_words(looks[0])}\nafter:  {look_in_words(looks[-1])}"
