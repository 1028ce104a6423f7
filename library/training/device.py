"""The devices of a run: accelerate's processes, whether this torch build supports the GPU, and torch's threads."""

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from library.errors import InputError

logger = logging.getLogger(__name__)
Value = TypeVar("Value")
CORES = Path("/proc/stat")
LOOK = 0.5  # seconds in which the cores' use is measured
SET_BY_HAND = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


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


def agreed(accelerator: Accelerator, value: Value) -> Value:
    """The main process's value on every process; what each draws or measures itself would differ."""
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


def settle_threads(device: torch.device, saved: int | None, environment: Mapping[str, str] = os.environ) -> None:
    """Choose torch's threads on a CPU, and say it in one line where they are not torch's own choice.

    Threads that wait for a core that others use slow each other down to a tenth, so no more of them run than cores are
    free. The number decides the order of sums and so their last digits: a resumed run keeps the number of its state.

    Args:
        saved: threads of the state that the run goes on from; None: a fresh run, or a state that does not say.
    """
    own = torch.get_num_threads()
    by_hand = [f"{name} = {environment[name]}" for name in SET_BY_HAND if environment.get(name)]
    if device.type != "cpu":
        return
    if by_hand:
        if saved not in (None, own):
            logger.warning(
                "the state was trained with %s torch threads and this run has %s (%s): it goes on with the same draws, "
                "but sums may differ in their last digits", saved, own, by_hand[0],
            )  # fmt: skip
        return
    if saved is not None and saved != own:
        torch.set_num_threads(saved)
        logger.info("torch uses %s threads, as the state was trained with (OMP_NUM_THREADS sets another number)", saved)
        return
    cores = sorted(os.sched_getaffinity(0))
    busy = cores_in_use(cores)
    threads = free_threads(own, len(cores), busy)
    if saved is None and threads < own:
        torch.set_num_threads(threads)
        logger.info(
            "other programs use %.1f of %d cores, so torch uses %d of %d threads (OMP_NUM_THREADS sets another number)",
            busy, len(cores), threads, own,
        )  # fmt: skip


def free_threads(own: int, cores: int, busy: float) -> int:
    """Threads that find a free core each, at least one and at most torch's own number.

    Args:
        own: torch's number on an idle machine.
        busy: cores that other programs use, on average.
    """
    return max(1, min(own, round(cores - busy)))


def cores_in_use(cores: Sequence[int]) -> float:
    """How many of these cores worked while this process waited; 0 where the system does not say."""
    before = core_times(cores)
    time.sleep(LOOK if before else 0)
    after = core_times(cores)
    used = 0.0
    for core in before.keys() & after.keys():
        (idle, total), (idle_now, total_now) = before[core], after[core]
        used += 1 - (idle_now - idle) / max(total_now - total, 1)
    return used


def core_times(cores: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Idle and all clock ticks of each core since the machine started; empty where the system does not say."""
    times = {}
    for line in CORES.read_text(encoding="ascii").splitlines() if CORES.is_file() else []:
        if (match := re.match(r"cpu(\d+) (.+)", line)) and int(match[1]) in cores:
            ticks = [int(word) for word in match[2].split()]
            times[int(match[1])] = ticks[3] + ticks[4], sum(ticks[:8])  # idle + waiting for disks; guests count as user
    return times
