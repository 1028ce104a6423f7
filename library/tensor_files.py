"""Files written whole or not at all, and safetensors with their metadata."""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from library.errors import InputError, shortest
from library.incoming.files import check_regular

# Of values, as the header calls them; the others cannot be compared or cast everywhere
KINDS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


@dataclass(frozen=True)
class Slot:
    """What a safetensors header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner may open (0700) and return it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def owners_file(path: str, how: int) -> int:
    """An opener for ``open()``: the file is its owner's alone (0600), also where it was there with another mode."""
    handle = os.open(path, how, 0o600)
    if stat.S_ISREG(os.fstat(handle).st_mode):  # never the mode of a device
        os.fchmod(handle, 0o600)
    return handle


def write_whole(path: Path, data: bytes | str, private: bool = True) -> None:
    """Write under a temporary name, flush to disk, rename: a reader finds the old file or the new one.

    Args:
        private: mode 0600 from the first byte on; False (for what is made to be shared) leaves the mode to the umask.

    Raises:
        OSError: with the name of this file, not with that of the temporary one.
    """
    with whole_file(path, private) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def whole_file(path: Path, private: bool) -> Iterator[IO[bytes]]:
    """A file to be written piece by piece, which takes its name once all is on the disk; see ``write_whole``."""
    try:
        with _renamed_at_the_end(path, private) as file:
            yield file
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def _renamed_at_the_end(path: Path, private: bool) -> Iterator[IO[bytes]]:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if not private:
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def rename_away(path: Path) -> Path:
    """Give a folder a temporary name beside it, so that a kill while it is removed leaves no half folder."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    os.replace(path, aside)
    return aside


def remove_folder(path: Path) -> None:
    """Remove a folder and what is in it; a link to one is left as it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(rename_away(path), ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], private: bool = True) -> None:
    """Write a safetensors file whole; tensors are made contiguous and brought to the CPU."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(plain, dict(metadata)), private=private)


def stream_tensors(
    path: Path,
    layout: Mapping[str, Slot],
    value_of: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    private: bool = True,
) -> None:
    """Write a safetensors file whole, tensor by tensor, so that memory holds one of them at a time.

    Args:
        layout: every tensor; wider kinds of numbers come first, so that each tensor is aligned.
        value_of: called once for each name, in the order of the file.
    """
    order = sorted(layout, key=lambda name: (-layout[name].dtype.itemsize, name))
    kinds = {dtype: kind for kind, dtype in KINDS.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        slot, start = layout[name], end
        end += slot.size
        header[name] = {"dtype": kinds[slot.dtype], "shape": list(slot.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path, private) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            value = value_of(name).detach().cpu().contiguous()
            if (value.dtype, tuple(value.shape)) != (layout[name].dtype, layout[name].shape):
                raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}, its slot {layout[name]}")
            if value.numel():
                file.write(value.flatten().view(torch.uint8).numpy().tobytes())


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file.

    Raises:
        InputError: when the file is missing, truncated or no safetensors file; values of a type that no file here has.
    """
    with open_tensors(path) as file, _readable(path):
        names = list(file.keys())  # the file object itself is not iterable
        return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors of a safetensors file; only its header is read. Raises: InputError, see ``read_tensors``."""
    with open_tensors(path) as file:
        return list(file.keys())


def slots(file: Any) -> dict[str, Slot]:
    """What the header of an open safetensors file says of each tensor; no value is read."""
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    return {name: Slot(KINDS[str(one.get_dtype())], tuple(one.get_shape())) for name, one in found.items()}


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """An open safetensors file whose header is sound. Raises: InputError, see ``read_tensors``."""
    check_regular(path, f"'{path}'")
    with _readable(path):
        opened = safe_open(str(path), framework="pt")
        kinds = {str(opened.get_slice(name).get_dtype()) for name in opened.keys()}  # noqa: SIM118  not a mapping
        if strange := sorted(kinds - set(KINDS)):
            raise InputError(f"'{path}' holds values of a kind that is not read here ({', '.join(strange)[:80]})")
    with opened as file:  # what goes wrong in the caller's own work is not about this file
        yield file


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises: InputError for whatever safetensors says of a damaged file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a damaged header has many
        raise InputError(
            f"'{path}' is no whole safetensors file ({shortest(error)}); fetch or export it again"
        ) from error


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, in the order of the alphabet."""
    return sorted(name for name, value in tensors.items() if not value.float().isfinite().all())


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the tensor bytes as a safetensors file lays them out, header left out.

    The same number as ``sshs_model_hash`` of kohya and the addnet hash of A1111: metadata does not change it.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def state_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, shapes, types and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()
