"""Writes a checkpoint with changed layers, one tensor in memory at a time; the original is only read."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from library.errors import InputError
from library.lora_files.format import DTYPES
from library.progress import counted
from library.tensor_files import Slot, stream_tensors
from networks.checkpoints.layers import BaseCheckpoint, Place
from networks.command_line import check_room
from networks.weight_change import bias_change, weight_change

Changes = Mapping[str, Sequence[tuple[Mapping[str, Tensor], float]]]  # layer -> LoRA modules with their strengths


def write_merged(
    checkpoint: BaseCheckpoint, changes: Changes, path: Path, save_precision: str | None, device: torch.device
) -> None:
    """The checkpoint at another place, with the changes added to its layers: a file, or a folder like the original.

    Args:
        save_precision: dtype of all floating tensors of the files that have layers; None: as they are.

    Raises:
        InputError: modules that do not fit their layers, before anything is written; a disk without room.
    """
    check_fit(checkpoint, changes)
    layouts = {file: _cast(layout, save_precision) for file, layout in checkpoint.files.items()}
    if checkpoint.path in layouts:
        check_room(path, _size(layouts[checkpoint.path]))
        _write_file(checkpoint, changes, checkpoint.path, path, layouts[checkpoint.path], device)
        return
    others = [file for file in sorted(checkpoint.path.rglob("*")) if file.is_file() and file not in layouts]
    check_room(path, sum(map(_size, layouts.values())) + sum(file.stat().st_size for file in others))
    place = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        for file in [*others, *layouts]:
            target = place / file.relative_to(checkpoint.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file in layouts:
                _write_file(checkpoint, changes, file, target, layouts[file], device)
            else:
                shutil.copyfile(file, target)
        mask = os.umask(0)
        os.umask(mask)
        place.chmod(0o777 & ~mask)
        place.rename(path)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def check_fit(checkpoint: BaseCheckpoint, changes: Changes) -> None:
    """Raises: InputError when the factors of a module do not make a change of their layer's shape."""
    for name, terms in changes.items():
        shape = checkpoint.shape(name) or torch.Size()
        for parts, _ in terms:
            try:
                weight_change(parts, torch.zeros(1).expand(shape)).reshape(shape)
                bias = bias_change(parts)
                if bias is not None and bias.shape != checkpoint.shape(name, "bias"):
                    raise InputError(f"{name} changes a bias of another size")
            except (RuntimeError, IndexError, KeyError) as error:
                raise InputError(
                    f"{name} does not fit its layer {tuple(shape)} in '{checkpoint.path}'; it was made for another "
                    "base model"
                ) from error


def _cast(layout: Mapping[str, Slot], precision: str | None) -> dict[str, Slot]:
    """The layout with floating tensors in another dtype."""
    if precision is None:
        return dict(layout)
    return {
        name: Slot(DTYPES[precision], slot.shape) if slot.dtype.is_floating_point else slot
        for name, slot in layout.items()
    }


def _size(layout: Mapping[str, Slot]) -> int:
    return sum(slot.size for slot in layout.values())


def _write_file(
    checkpoint: BaseCheckpoint,
    changes: Changes,
    file: Path,
    target: Path,
    layout: Mapping[str, Slot],
    device: torch.device,
) -> None:
    """One file of the checkpoint."""
    touched: dict[str, list[tuple[str, str, Place]]] = {}
    for name in changes:
        for part, place in checkpoint.places[name].items():
            if place.file == file:
                touched.setdefault(place.name, []).append((name, part, place))

    with counted(len(layout), "writing", "tensors") as bar:

        def value_of(tensor: str) -> Tensor:
            stored = checkpoint.read(file, tensor)
            value = _changed(stored, touched[tensor], changes, device) if tensor in touched else stored
            cast = value.to(layout[tensor].dtype)
            if (tensor in touched or cast.dtype != stored.dtype) and not bool(cast.isfinite().all()):
                _refuse_not_finite(tensor, file, stored, value, cast.dtype)
            bar.update()
            return cast

        stream_tensors(target, layout, value_of, checkpoint.header(file), private=False)


def _refuse_not_finite(name: str, file: Path, stored: Tensor, changed: Tensor, dtype: torch.dtype) -> NoReturn:
    """Raises: InputError that says where NaN or infinity comes from."""
    if not bool(stored.isfinite().all()):
        raise InputError(f"'{file}' has NaN or infinity in {name}; fetch or export it again")
    if not bool(changed.isfinite().all()):
        raise InputError(f"the change of {name} in '{file}' is not finite; the LoRAs or their ratios are too large")
    precision = {kind: word for word, kind in DTYPES.items()}.get(dtype, str(dtype))
    most = float(changed.abs().max())
    raise InputError(f"{name} has values up to {most:.3g}, which {precision} cannot hold; try --save_precision float")


def _changed(stored: Tensor, touched: list[tuple[str, str, Place]], changes: Changes, device: torch.device) -> Tensor:
    """A stored tensor plus its layers' changes, in fp32."""
    result = stored.to(device, torch.float32, copy=True)
    for name, part, place in touched:
        rows = slice(place.first, place.first + place.rows)
        original = stored[rows].to(device, torch.float32) if stored.dim() else stored.to(device, torch.float32)
        for parts, ratio in changes[name]:
            here = {key: value.to(device) for key, value in parts.items()}
            change = weight_change(here, original) if part == "weight" else bias_change(here)
            if change is not None:
                result[rows] += ratio * change.reshape(original.shape)
    return result.cpu()
