"""Weight files: reads them without running code, loads them into a part of a model, and hashes them."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from library.errors import Faults, InputError, shortened
from library.incoming.files import open_regular
from library.incoming.pickles import read_pickle
from library.tensor_files import read_tensors

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file; a pickle is opened without running code.

    Raises:
        InputError: truncated files, pickles that hold more than tensors, other endings.
    """
    if file.suffix not in ENDINGS:
        raise InputError(f"'{file}' is not a checkpoint: its name must end in one of {', '.join(ENDINGS)}")
    if file.suffix == ".safetensors":
        return read_tensors(file)[0]
    content = read_pickle(
        file, f"'{file}'", "get a .safetensors of it, fetch it again, or convert it on a machine without private data"
    )
    while isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise InputError(f"'{file}' holds a {type(content).__name__} instead of a table of tensors")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def fill(part: nn.Module, state: Mapping[str, Tensor], where: str, faults: Faults) -> None:
    """Give a part tensors under diffusers' names, in their dtype; names and shapes that do not fit are faults."""
    own = part.state_dict()
    if not any(name.startswith("text_model.") for name in own):
        state = {name.removeprefix("text_model."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    missing = [name for name in own if name not in state and not name.endswith("position_ids")]
    compare_names(where, missing, [name for name in state if name not in own], faults)
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if misshapen:
        faults.add(f"{where}: {len(misshapen)} tensors have another shape: {shortened(misshapen, 3)}")
    elif not missing:
        part.load_state_dict({name: state[name] for name in own if name in state}, strict=False, assign=True)


def compare_names(where: str, missing: list[str], unexpected: list[str], faults: Faults) -> None:
    """Report tensors that a part needs and a file lacks, and tensors that it does not have."""
    if missing:
        faults.add(f"{where}: {len(missing)} tensors are missing: {shortened(sorted(missing), 4)}")
    if unexpected:
        faults.add(f"{where}: {len(unexpected)} tensors are unexpected: {shortened(sorted(unexpected), 4)}")


def file_hashes(file: Path) -> dict[str, str]:
    """kohya's two hashes of a checkpoint: 8 hex of 64 KiB at offset 1 MiB, and the SHA-256 of the whole file."""
    with open_regular(file, f"'{file}'") as stream:
        whole = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0x100000)
        short = hashlib.sha256(stream.read(0x10000)).hexdigest()[:8]
    return {"ss_sd_model_hash": short, "ss_new_sd_model_hash": whole}


def folder_fingerprint(folder: Path, parts: Iterable[str] = ("text_encoder", "unet", "vae")) -> str:
    """SHA-256 (hex) over the weight files in subfolders of a diffusers folder, by name and content."""
    digest = hashlib.sha256()
    for name in parts:
        for file in sorted((folder / name).iterdir()):
            if file.suffix in (".safetensors", ".bin"):
                with open_regular(file, f"'{file}'") as stream:
                    digest.update(f"{name}/{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for use in a message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
