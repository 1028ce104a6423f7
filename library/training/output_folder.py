"""The folder of one run: the path of each file, and whether the folder may be used."""

import logging
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from library.errors import InputError
from library.training.output_lock import OutputLock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutputFolder:
    """Paths inside an output folder."""

    path: Path
    output_name: str

    def lora(self, number: str = "") -> Path:
        """``last.safetensors`` at the end, ``last-000010.safetensors`` or ``last-step00000050.safetensors`` before."""
        return self.path / f"{self.output_name}{number}.safetensors"

    def config(self) -> Path:
        """Resolved options; private, since they name folders, prefixes and suffixes of captions."""
        return self.path / "config.toml"

    def split(self) -> Path:
        """The sides of the split, that is who is a member; private."""
        return self.path / "split.json"

    def log(self) -> Path:
        """The log: one JSON object per line."""
        return self.path / "log.jsonl"

    def curve(self) -> Path:
        """Loss and attacker over the run, drawn."""
        return self.path / "training.png"

    def proxy(self) -> Path:
        """The proxy attacker that belongs to the LoRA."""
        return self.path / "proxy.safetensors"

    def samples(self) -> Path:
        """Previews."""
        return self.path / "sample"

    def state(self, number: str) -> Path:
        """A resumable state."""
        return self.path / "state" / f"{self.output_name}{number}-state"

    def tensorboard(self) -> Path:
        """TensorBoard records."""
        return self.path / "tensorboard"


def epoch_number(epoch: int) -> str:
    """kohya's number of an epoch's file."""
    return f"-{epoch:06d}"


def step_number(step: int) -> str:
    """kohya's number of a step's file."""
    return f"-step{step:08d}"


def choose_folder(output_dir: str | None, output_name: str, door: str, resume: str | None) -> OutputFolder:
    """The given folder, else that of the state to resume, else a fresh dated one under output/."""
    if output_dir is not None:
        return OutputFolder(Path(output_dir), output_name)
    if resume is not None:
        return OutputFolder(Path(resume).resolve().parent.parent, output_name)
    return OutputFolder(Path("output") / f"{door.lower()}-{time.strftime('%Y%m%d-%H%M%S')}", output_name)


def check_folder(folder: OutputFolder, lock: OutputLock | None, *, overwrite: bool, resume: bool) -> None:
    """Take the folder's lock, then look what is in it; without a lock (``--dry_run``) nothing is written.

    Raises:
        InputError: the folder cannot be written, another run writes into it, or it holds a run that would be lost.
    """
    check_writable(folder)
    if lock is not None:
        lock.acquire()
    holds_run = folder.split().exists() or folder.lora().exists()
    if holds_run and not (overwrite or resume):
        raise InputError(
            f"output_dir '{folder.path}' already holds a run, and without its split.json its LoRA could not be "
            "audited; continue it with --resume STATE, replace it with --overwrite, or give another --output_dir"
        )


def check_writable(folder: OutputFolder) -> None:
    """Raises: InputError when the folder cannot be made or written."""
    existing = folder.path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        if not existing.is_dir():
            raise NotADirectoryError(f"'{existing}' is a file")
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".writable"):
            pass
    except OSError as error:
        raise InputError(f"output_dir '{folder.path}' cannot be written: {error.strerror or error}") from error


def make_folder(folder: OutputFolder, *, clear: bool) -> None:
    """Make the folder and rename earlier audits; ``clear`` removes an earlier run first."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if clear:
        clear_run(folder)
    set_audits_aside(folder)


def set_audits_aside(folder: OutputFolder) -> None:
    """Rename the audits of a LoRA that this run will replace: their answers do not apply to the new file."""
    for audit in (folder.path / "audit", folder.path / f"{folder.output_name}-audit"):
        if not audit.is_dir():
            continue
        number = 1
        while (aside := audit.with_name(f"{audit.name}.old-{number}")).exists():
            number += 1
        audit.rename(aside)
        logger.warning("'%s' belongs to the LoRA before this run; it is now '%s'", audit, aside)


def clear_run(folder: OutputFolder) -> None:
    """Remove the files of an earlier run, so that none is mistaken for the new run's. Other files stay."""
    for file in (folder.split(), folder.log(), folder.curve(), folder.proxy(), folder.config(), folder.lora()):
        file.unlink(missing_ok=True)
    numbered = [
        *folder.path.glob(f"{folder.output_name}-[0-9]*.safetensors"),
        *folder.path.glob(f"{folder.output_name}-step*.safetensors"),
    ]
    for file in numbered:
        file.unlink()
    others = [folder.path / name for name in ("state", "audit", "wandb")]
    others += [place for place in folder.path.glob("audit.old-*")]
    for place in (folder.samples(), folder.tensorboard(), *others):
        if place.is_dir():
            shutil.rmtree(place)
