"""The folder of one run: the path of each file, and whether the folder may be used."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from library.errors import InputError
from library.training.output_lock import OutputLock


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

    def teachers(self) -> Path:
        """The teachers of a distillation, while the run needs them; private."""
        return self.path / "state" / f"{self.output_name}-teachers"

    def tensorboard(self) -> Path:
        """TensorBoard records."""
        return self.path / "tensorboard"


def newest_state(folder: OutputFolder) -> Path | None:
    """The state that was written last; a state has its name only once it is whole."""
    states = [file.parent for file in (folder.path / "state").glob("[!.]*-state/state.json")]
    return max(states, key=lambda state: (state / "state.json").stat().st_mtime_ns, default=None)


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
