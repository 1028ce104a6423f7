"""Several processes: gradients are averaged, batches dealt out, and the same LoRA grows everywhere."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as processes

from library.check import InputError
from library.toml_config import read_config
from library.training.stepping import average_gradients


def average_in_process(rank: int, folder: str) -> None:
    """One of two processes: its gradient is rank + 1, or none at all for the second parameter of rank 0."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    first, second = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    first.grad = torch.full((3,), float(rank + 1))
    second.grad = None if rank == 0 else torch.ones(3)
    average_gradients(SimpleNamespace(num_processes=2), [first, second])  # type: ignore[arg-type]
    torch.save({"first": first.grad, "second": second.grad}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_gradients_are_averaged_over_processes(tmp_path: Path) -> None:
    processes.spawn(average_in_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(result["first"], torch.full((3,), 1.5)) and torch.equal(
            result["second"], torch.full((3,), 0.5)
        )


def test_several_processes_without_a_seed_are_refused(flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would draw its own."""
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(InputError, match="several processes need one seed"):
        read_config("SPLoRA", flags(seed=None))
