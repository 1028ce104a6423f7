"""The devices of a run: accelerate's processes, and whether this torch build supports the GPU."""

import re
from collections.abc import Sequence
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from library.errors import InputError


def open_accelerator(mixed_precision: str, ddp_timeout: int | None) -> Accelerator:
    """Devices, precision and processes.

    Args:
        ddp_timeout: minutes until processes stop waiting for each other; None: torch's default.

    Raises:
        InputError: a GPU that this torch build does not support.
    """
    if torch.cuda.is_available():
        check_capability(
            torch.cuda.get_device_name(),
            torch.cuda.get_device_capability(),
            torch.cuda.get_arch_list(),
            torch.__version__,
        )
    handlers = [] if ddp_timeout is None else [InitProcessGroupKwargs(timeout=timedelta(minutes=ddp_timeout))]
    return Accelerator(mixed_precision=mixed_precision, kwargs_handlers=handlers)


def agreed(accelerator: Accelerator, value: bytes) -> bytes:
    """The main process's value on every process; values that each process draws itself would differ."""
    values = [value]
    if accelerator.num_processes > 1:
        broadcast_object_list(values, from_process=0)
    return values[0]


def check_capability(name: str, capability: tuple[int, int], architectures: Sequence[str], version: str) -> None:
    """Compare a GPU's compute capability with those that torch was built for.

    Machine code (sm_) runs on the same major version and an equal or higher minor one, unless it is specific (sm_90a);
    intermediate code (compute_) is translated for any later GPU.

    Args:
        architectures: ``torch.cuda.get_arch_list()``, e.g. ["sm_80", "sm_90", "compute_90"]; empty: not known.

    Raises:
        InputError: no code for this GPU, with the way out.
    """
    matches = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", text) for text in architectures]
    known = [found for found in matches if found is not None]  # AMD's gfx names state no capability
    for found in known:
        kind, built, specific = found[1], (int(found[2]), int(found[3])), found[4]
        if built == capability or (kind == "compute" and built <= capability):
            return
        if kind == "sm" and specific != "a" and built[0] == capability[0] and built[1] <= capability[1]:
            return
    if known:
        raise InputError(
            f"torch {version} has no code for this GPU: {name} is sm_{capability[0]}{capability[1]}, and the build is "
            f"for {', '.join(architectures)}; install a torch build for a CUDA version that supports the GPU (sm_120, "
            "RTX "
            "50: CUDA 12.8 or newer), see pytorch.org/get-started"
        )
