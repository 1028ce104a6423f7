"""Where figures go besides log.jsonl: TensorBoard on this machine, Weights & Biases over the network."""

import importlib.util
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from library.errors import Faults, InputError, did_you_mean, shown
from library.incoming.texts import read_toml
from library.tensor_files import private_folder
from library.training.output_folder import OutputFolder

# Arguments that log_tracker_config may give to wandb.init; others could send options, code, pictures or paths.
FOR_WANDB = ("entity", "group", "job_type", "tags", "notes", "mode", "id", "resume")
EVENTS = "events.out.tfevents.*"  # TensorBoard's file names


@dataclass(frozen=True)
class LogRules:
    """Trackers, their folders and names; the fields are options."""

    log_with: str
    logging_dir: str | None
    log_prefix: str | None
    log_tracker_name: str | None
    log_tracker_config: str | None
    wandb_run_name: str | None


class Tracker(Protocol):
    """Receives figures; a tracker outside this machine receives nothing else."""

    def figures(self, done: int, figures: dict[str, float]) -> None:
        """Numbers after ``done`` optimizer steps, by names like ``step/loss``."""

    def pictures(self, done: int, images: list[Image.Image]) -> None:
        """Previews, by number."""

    def close(self) -> None:
        """Write what is still in memory."""


class TensorBoard:
    """Scalars and previews in event files that only the owner can read: their names contain the machine's name."""

    def __init__(self, place: str, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.place = place
        before = set(Path(place).glob(EVENTS))
        self._writer: Any = SummaryWriter(place, purge_step=done + 1 if done else None)
        for file in set(Path(place).glob(EVENTS)) - before:
            file.chmod(0o600)
        self._hook = threading.excepthook
        threading.excepthook = self._in_thread

    def figures(self, done: int, figures: dict[str, float]) -> None:
        """See Tracker."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, done)

    def pictures(self, done: int, images: list[Image.Image]) -> None:
        """See Tracker."""
        for index, image in enumerate(images):
            self._writer.add_image(f"preview/{index:02d}", np.asarray(image), done, dataformats="HWC")

    def close(self) -> None:
        """See Tracker."""
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _in_thread(self, fault: threading.ExceptHookArgs) -> None:
        """A full disk in the writer's own thread: it is raised again at the next figure, so no traceback is shown."""
        if not isinstance(fault.exc_value, OSError):
            self._hook(fault)


class WandB:
    """Sends only figures: no pictures, captions, paths, options, command line, code or facts about the machine."""

    def __init__(self, folder: Path, project: str, run_name: str | None, further: dict[str, Any]) -> None:
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            disable_job_creation=True,
            host="private",
            program="private",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._place = private_folder(folder / "wandb")
        self._run: Any = wandb.init(
            project=project, name=run_name, dir=str(folder), config={}, settings=settings, **further
        )

    def figures(self, done: int, figures: dict[str, float]) -> None:
        """See Tracker."""
        self._run.log({name: float(value) for name, value in figures.items()}, step=done)

    def pictures(self, done: int, images: list[Image.Image]) -> None:
        """Sends nothing: a preview may show a private picture."""

    def close(self) -> None:
        """See Tracker."""
        self._run.finish()
        for place in self._place.rglob("*"):
            if not place.is_symlink():
                place.chmod(0o700 if place.is_dir() else 0o600)


def open_trackers(rules: LogRules, folder: OutputFolder, done: int) -> list[Tracker]:
    """The trackers of the options.

    Args:
        done: steps of the run that this one continues.
    """
    trackers: list[Tracker] = []
    if rules.log_with in ("tensorboard", "all"):
        place = tensorboard_folder(rules, folder)
        if not (rules.logging_dir and Path(place).is_dir()):  # a folder of the person's own keeps its mode
            private_folder(Path(place))
        trackers.append(TensorBoard(place, done))
    if rules.log_with in ("wandb", "all"):
        further = read_tracker_config(rules.log_tracker_config)
        trackers.append(WandB(folder.path, rules.log_tracker_name or "private-lora", rules.wandb_run_name, further))
    return trackers


def tensorboard_folder(rules: LogRules, folder: OutputFolder) -> str:
    """``output_dir/tensorboard``; with a prefix a dated folder below it or below logging_dir, as in kohya."""
    place = Path(rules.logging_dir) if rules.logging_dir else folder.tensorboard()
    return str(place / f"{rules.log_prefix}{time.strftime('%Y%m%d%H%M%S')}" if rules.log_prefix else place)


def check_trackers(rules: LogRules) -> None:
    """Check before the run that wandb is installed and its file is harmless.

    Raises:
        InputError: every fault.
    """
    faults = Faults()
    if rules.log_with in ("wandb", "all"):
        if importlib.util.find_spec("wandb") is None:
            faults.add(f"log_with {rules.log_with} needs the package wandb: pip install wandb, or log_with tensorboard")
        faults.attempt(read_tracker_config, rules.log_tracker_config)
    else:
        for name in ("log_tracker_name", "log_tracker_config", "wandb_run_name"):
            if getattr(rules, name):
                faults.add(f'{name} is for wandb, but log_with is "{rules.log_with}"; set log_with = "wandb" or "all"')
    faults.raise_if_any()


def read_tracker_config(path: str | None) -> dict[str, Any]:
    """The [wandb] table of a TOML file: further arguments of wandb.init that send only names.

    Raises:
        InputError: a file that is not TOML, another table, or an unsupported argument.
    """
    if path is None:
        return {}
    tables = read_toml(path, f"log_tracker_config '{path}'")
    faults = Faults()
    for table in tables:
        if table != "wandb":
            faults.add(f"log_tracker_config '{path}': [{table}] is not supported; use [wandb]")
    further = tables.get("wandb", {})
    if not isinstance(further, dict):
        raise InputError(f"log_tracker_config '{path}': wandb must be a table ([wandb]), got {shown(further)}")
    for name in further:
        if name not in FOR_WANDB:
            faults.add(
                f"log_tracker_config '{path}': wandb.init's '{name}' is not supported, since only figures leave this "
                f"machine; use one of {', '.join(FOR_WANDB)}{did_you_mean(name, FOR_WANDB)}"
            )
    faults.raise_if_any()
    return further
