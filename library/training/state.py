"""A resumable state: LoRA, its average and proxy in fp32, both optimizers, the learning-rate schedule, the options."""

import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from library import __version__
from library.errors import Faults, InputError, shortened, shown
from library.incoming.pickles import read_pickle
from library.tensor_files import not_finite, private_folder, read_tensors, rename_away, write_tensors, write_whole
from library.training.optimization.average import Average, has_two_faces, shown_weights
from library.training.optimization.optimizers import trained_parameters
from library.training.saved_moments import check_alike, check_moments, check_schedule
from library.training.saved_state import FORMAT, content_hash, file_hash, whole_states

logger = logging.getLogger(__name__)
# What a resumed run must find as it was
INPUTS = {
    "split": "the pictures, their sides, the split's secret or the dataset_config have",
    "captions": "captions have",
    "model": "the weights of the base model (UNet, text encoder or VAE) have",
}


@dataclass(frozen=True)
class TrainingState:
    """Everything that changes during a run."""

    network: nn.Module
    optimizer: Any
    schedule: Any
    proxy: nn.Module
    attacker: Any  # the proxy's optimizer
    scaler: Any  # of fp16; None otherwise
    average: Average | None  # of the trained weights
    kept: dict[str, Tensor] = field(default_factory=dict)  # the network as one of its checks saw it; empty: none kept
    first_falls: dict[str, Tensor] = field(default_factory=dict)  # by side [pictures]: of the first validation pass

    def keep(self) -> None:
        """Keep the network as it is shown now, in place of what was kept before."""
        with self.shown():
            self.kept.update(copied_tensors(self.network))

    @contextmanager
    def shown_as_kept(self) -> Iterator[None]:
        """The network with the kept weights; without any, as it is shown."""
        with self.shown():
            if not self.kept:
                yield
                return
            with restored(self.network):
                fill_raw(self.network, self.kept)
                yield

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The network as files, previews and validation see it: its average if there is one, without dropout."""
        if self.average is None and not self._schedule_free():
            was_training = self.network.training
            self.network.eval()
            try:
                yield
            finally:
                self.network.train(was_training)
            return
        with shown_weights(self.network, trained_parameters(self.optimizer), self.optimizer, self.average):
            yield

    def shown_weights(self) -> str:
        """Which weights ``shown`` shows, for the log."""
        return "ema" if self.average is not None else "schedule-free" if self._schedule_free() else "trained"

    def _schedule_free(self) -> bool:
        return has_two_faces(getattr(self.optimizer, "optimizer", self.optimizer))  # accelerate wraps it


def save_state(
    path: Path,
    training_state: TrainingState,
    *,
    done: int,
    options: Mapping[str, Any],
    inputs: Mapping[str, str],
    checks: list[dict],
    gaps: Sequence[dict] = (),
    spending: Mapping[str, float] | None = None,
) -> None:
    """Write a state folder under a temporary name, then rename it, so that it is never incomplete.

    Every random draw is a function of the key and the step, so the step replaces the state of all random streams.

    Args:
        done: optimizer steps that have run.
        options: the options that shape the weights.
        inputs: by the names of INPUTS; they reveal no picture, no caption and no key.
        checks, gaps: those of the proxy and of the gap so far.
        spending: noise, sampling rate and delta of a differentially private run; with ``done`` they give its epsilon.
    """
    private_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        write_tensors(temporary / "lora.safetensors", raw_tensors(training_state.network), {})
        write_tensors(temporary / "proxy.safetensors", training_state.proxy.state_dict(), {})
        if training_state.average is not None:
            write_tensors(temporary / "average.safetensors", training_state.average.state(), {})
        if training_state.kept:
            write_tensors(temporary / "kept.safetensors", training_state.kept, {})
        if training_state.first_falls:
            write_tensors(temporary / "first_falls.safetensors", training_state.first_falls, {})
        moving = {
            "optimizer": training_state.optimizer.state_dict(),
            "schedule": training_state.schedule.state_dict(),
            "attacker": training_state.attacker.state_dict(),
            "scaler": training_state.scaler.state_dict() if training_state.scaler is not None else {},
        }
        buffer = io.BytesIO()
        torch.save(moving, buffer)
        write_whole(temporary / "optimizers.pt", buffer.getvalue())
        hashes = {file.name: file_hash(file) for file in sorted(temporary.iterdir())}
        content = {"format": FORMAT, "version": __version__, "done": done, "options": options, **inputs}
        content |= {"checks": checks, "gaps": list(gaps), "files": hashes, "threads": torch.get_num_threads()}
        content |= {} if spending is None else {"spending": dict(spending)}
        content["checksum"] = content_hash(content)
        write_whole(temporary / "state.json", json.dumps(content, indent=1) + "\n")
        before = rename_away(path) if path.exists() else None
        os.replace(temporary, path)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):  # by the name that the file would have had
            place = str(error.filename or path).replace(str(temporary), str(path))
            raise OSError(error.errno, error.strerror, place) from error
        raise


def require_options(
    place: str | None, content: Mapping[str, Any], options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Compare the options that a state was trained with and those of this run.

    Args:
        content: of ``read_state``.
        defaults: what asks for nothing beside a state of a version that had no such option.

    Raises:
        InputError: each option that differs, with both values.
    """
    if place is None:
        return
    saved, faults = content["options"], Faults()
    writer = f"the state was written by {_version(content)}"
    lacking = sorted(set(options) - set(saved))
    for name in lacking:
        if options[name] != defaults[name]:
            faults.add(
                f"--resume '{place}': {name} is {options[name]!r}, and {writer}, which had no such option; leave it out"
            )
    for name in sorted(set(saved) - set(options)):
        faults.add(f"--resume '{place}': {writer} with {name} = {saved[name]!r}, which this version does not have")
    for name in sorted(set(saved) & set(options)):
        before, now = saved[name], json.loads(json.dumps(options[name]))
        if before != now:
            faults.add(
                f"--resume '{place}': {name} was {shown(before)} and is {shown(now)} now; resume with the run's own "
                "config.toml"
            )
    faults.raise_if_any()
    if lacking:
        logger.warning("%s, which had no such option: %s; the defaults are used", writer, shortened(lacking))


def _version(content: Mapping[str, Any]) -> str:
    return f"version {content['version']}" if "version" in content else "an earlier version"


def require_inputs(content: Mapping[str, Any], inputs: Mapping[str, str], place: str | None) -> None:
    """Compare what a state was trained on with what this run has; states of earlier versions know only the split.

    Args:
        inputs: by the names of INPUTS; what is left out is not compared.

    Raises:
        InputError: what has changed.
    """
    if place is None:
        return
    faults = Faults()
    for name, what in INPUTS.items():
        if name in inputs and content.get(name, None if name == "split" else inputs[name]) != inputs[name]:
            faults.add(f"--resume '{place}': {what} changed since the state was saved; restore what was, or train anew")
    faults.raise_if_any()


def load_training_state(place: str | None, training_state: TrainingState) -> None:
    """Load a state's tensors and moments into the training state; only tensors and plain values are unpickled.

    Raises:
        InputError: what is damaged, or does not fit this run.
    """
    if place is not None:
        try:
            _load(Path(place), training_state)
        except InputError as error:
            raise InputError(f"{error.messages[0]}; {whole_states(Path(place))}") from error


def _load(path: Path, training_state: TrainingState) -> None:
    fill_raw(training_state.network, _finite_tensors(path / "lora.safetensors"))
    _fill(training_state.proxy, _finite_tensors(path / "proxy.safetensors"))
    for name, held in (("kept", training_state.kept), ("first_falls", training_state.first_falls)):
        if (path / f"{name}.safetensors").exists():
            held.update(_finite_tensors(path / f"{name}.safetensors"))
    if training_state.average is not None:
        training_state.average.fill(_finite_tensors(path / "average.safetensors"))
    file = path / "optimizers.pt"
    moving = read_pickle(file, f"--resume: '{file}'", "resume from another state")
    if not isinstance(moving, dict) or not {"optimizer", "schedule", "attacker", "scaler"} <= set(moving):
        raise InputError(f"--resume: '{file}' holds no optimizer; resume from another state")
    check_moments(training_state.optimizer, moving["optimizer"], file)
    check_moments(training_state.attacker, moving["attacker"], file)
    check_schedule(training_state.schedule, moving["schedule"], f"--resume: in '{file}' schedule")
    training_state.optimizer.load_state_dict(moving["optimizer"])
    training_state.schedule.load_state_dict(moving["schedule"])
    training_state.attacker.load_state_dict(moving["attacker"])
    if training_state.scaler is not None and moving["scaler"]:
        check_alike(training_state.scaler.state_dict(), moving["scaler"], f"--resume: in '{file}' scaler")
        training_state.scaler.load_state_dict(moving["scaler"])


def _finite_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a state's file. Raises: InputError for NaN or infinity."""
    tensors = read_tensors(file)[0]
    if strange := not_finite(tensors):
        raise InputError(
            f"--resume: '{file}' holds NaN or infinity in {shortened(strange, 3)}; resume from another state"
        )
    return tensors


def raw_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers unchanged, including those that LyCORIS leaves out of ``state_dict()`` or rewrites."""
    return {name: value.detach() for name, value in (*module.named_parameters(), *module.named_buffers())}


def copied_tensors(module: nn.Module) -> dict[str, Tensor]:
    """``raw_tensors`` as they are now; what happens to the module later does not change them."""
    return {name: value.clone() for name, value in raw_tensors(module).items()}


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Whatever is filled into the module meanwhile, it has its own tensors again afterwards, bit for bit."""
    present = copied_tensors(module)
    try:
        yield
    finally:
        fill_raw(module, present)


def fill_raw(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load ``raw_tensors``. Raises: InputError when names or shapes differ."""
    own = raw_tensors(module)
    strange = sorted(set(own) ^ set(tensors))
    strange += [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if strange:
        raise InputError(f"the state does not fit this run's network: {shortened(strange, 3)}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise InputError(f"the state does not fit this run's network: {str(error).splitlines()[0]}") from error
