"""Several processes: gradients are averaged, batches dealt out, and the same LoRA grows everywhere."""

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as processes

from library.training.device import agreed, open_accelerator
from library.training.interruption import FiniteGuard, StopSignal
from library.training.optimization.optimizer_step import average_gradients, take_step
from library.training.state import TrainingState
from tests.helpers.keys import secret_of


def average_in_process(rank: int, folder: str) -> None:
    """One of two processes: its gradient is rank + 1, or none at all for the second parameter of rank 0."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    first, second = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    first.grad = torch.full((3,), float(rank + 1))
    second.grad = None if rank == 0 else torch.ones(3)
    average_gradients(SimpleNamespace(num_processes=2), [first, second])  # type: ignore[arg-type]
    torch.save({"first": first.grad, "second": second.grad}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_gradients_are_averaged_over_processes(tmp_path: Path) -> None:
    processes.spawn(average_in_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(result["first"], torch.full((3,), 1.5)) and torch.equal(
            result["second"], torch.full((3,), 0.5)
        )


class ScaledOptimizer:
    """What accelerate makes of an optimizer under fp16, on the CPU."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self.optimizer, self.scaler = optimizer, scaler
        self.param_groups = optimizer.param_groups
        self.zero_grad = optimizer.zero_grad
        self.step_was_skipped = False

    def step(self) -> None:
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step_was_skipped = self.scaler.get_scale() < before


def overflow_in_process(rank: int, folder: str) -> None:
    """One of two processes under fp16: the scaled gradient of rank 0 overflowed, that of rank 1 did not."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    weight = torch.nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    plain = torch.optim.SGD([weight], lr=0.1)
    optimizer = ScaledOptimizer(plain, scaler)
    accelerator = SimpleNamespace(
        num_processes=2, scaler=scaler, unscale_gradients=lambda it: scaler.unscale_(it.optimizer),
        reduce=lambda values, how: values,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: 1.0)
    nothing = torch.nn.Identity()
    training_state = TrainingState(nothing, optimizer, schedule, nothing, None, scaler, None)
    weight.grad = torch.full((3,), float("inf") if rank == 0 else 1.0)
    take_step(accelerator, training_state, 1.0, torch.zeros(3), FiniteGuard(), dict)  # type: ignore[arg-type]
    torch.save({"weight": weight.detach(), "scale": scaler.get_scale()}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_an_overflow_of_one_process_is_skipped_by_all_and_their_loras_stay_the_same(tmp_path: Path) -> None:
    processes.spawn(overflow_in_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(result["weight"], torch.ones(3)) and result["scale"] == 4.0


def agree_in_process(rank: int, folder: str, port: int) -> None:
    """One of two processes; each drew a secret of its own."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, ACCELERATE_USE_CPU="true")
    accelerator = open_accelerator("no", None)
    assert accelerator.num_processes == 2
    (Path(folder) / f"{rank}.secret").write_bytes(agreed(accelerator, secret_of(rank)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_take_the_main_processs_secret(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.spawn(agree_in_process, (str(tmp_path), port), nprocs=2)
    assert [(tmp_path / f"{rank}.secret").read_bytes() for rank in range(2)] == [secret_of(0)] * 2


def stop_in_process(rank: int, folder: str) -> None:
    """One of two processes; only the second was asked to stop."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

    def reduce(value: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        torch.distributed.all_reduce(value)
        return value

    stop = StopSignal()
    accelerator = SimpleNamespace(num_processes=2, device="cpu", reduce=reduce)
    before = stop.asked(accelerator)
    stop.received = rank == 1
    torch.save({"before": before, "after": stop.asked(accelerator)}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ctrl_c_that_reaches_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    processes.spawn(stop_in_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == {"before": False, "after": True}
