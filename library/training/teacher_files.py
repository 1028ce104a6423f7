"""The file of one teacher of a distillation, in the run's state folder: its weights, and what they belong to."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from library.errors import InputError, shortened
from library.tensor_files import not_finite, private_folder, read_tensors, state_fingerprint, write_tensors
from library.training.state import fill_raw, restored

FIGURE = "figure "  # begins the names of figures in a file's metadata


def teacher_file(folder: Path, teacher: int) -> Path:
    """The file of a teacher, counted from 0."""
    return folder / f"teacher-{teacher + 1}.safetensors"


def write_teacher(file: Path, weights: Mapping[str, Tensor], run: str, figures: Mapping[str, float]) -> None:
    """Write a teacher whole; the file is its owner's alone.

    Args:
        run: fingerprint of what the teachers of a run depend on.
        figures: of its training.
    """
    private_folder(file.parent.parent)
    private_folder(file.parent)
    stated = {"run": run, "tensors": state_fingerprint(weights)}
    write_tensors(file, weights, stated | {f"{FIGURE}{name}": repr(value) for name, value in figures.items()})


def read_teacher(file: Path, network: nn.Module, run: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Weights and figures of a teacher that was trained before.

    Args:
        network: that the weights are for; it stays as it is.

    Raises:
        InputError: a damaged file, or the teacher of another run.
    """
    way_out = "remove it, and this teacher is trained anew, with the same result"
    try:
        tensors, stated = read_tensors(file)
        figures = {name.removeprefix(FIGURE): float(text) for name, text in stated.items() if name.startswith(FIGURE)}
    except InputError as error:
        raise InputError(f"{error.messages[0]}; {way_out}") from error
    except ValueError as error:
        raise InputError(f"'{file}' states a figure that is no number; {way_out}") from error
    if stated.get("tensors") != state_fingerprint(tensors):
        raise InputError(f"'{file}' is not as it was written; {way_out}")
    if stated.get("run") != run:
        raise InputError(f"'{file}' is a teacher of another run (options, members or model differ); {way_out}")
    if strange := not_finite(tensors):
        raise InputError(f"'{file}' holds NaN or infinity in {shortened(strange, 3)}; {way_out}")
    with restored(network):
        fill_raw(network, tensors)
    return tensors, figures
