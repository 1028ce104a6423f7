"""A course of training on the CPU: one process a core, averaged gradients, EMA, a cosine over minutes, resumable.

Minutes are those in which the processor worked for the process, so that a machine shared with others changes nothing.
"""

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

WARMUP = 0.02  # share of the course
EMA_DECAY = 0.999


@dataclass(frozen=True)
class Course:
    """What is fixed before training starts."""

    name: str
    work: Path
    minutes: float
    learning_rate: float
    batch: int  # images per process and step
    processes: int
    seed: int
    target: Path | None = None  # folder of the finished thing, if it is not in ``work``
    export_minutes: float = 8.0


def write_whole(state: object, target: Path) -> None:
    """torch.save that never leaves half a file under the final name."""
    partial = target.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, target)


def learning_rate_factor(done: float) -> float:
    """Linear warm-up, then a cosine to zero; ``done`` is the share of the course that has passed."""
    if done < WARMUP:
        return done / WARMUP + 0.01
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (done - WARMUP) / (1 - WARMUP)))


def averaged(parameters: list[nn.Parameter], extra: list[float], processes: int) -> list[float]:
    """Averages the gradients in place over the processes, and the extra numbers with them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients] + [torch.tensor(extra)])
    if processes > 1:
        dist.all_reduce(flat)
        flat /= processes
    start = 0
    for g in gradients:
        g.copy_(flat[start : start + g.numel()].view_as(g))
        start += g.numel()
    return flat[start:].tolist()


class Trainer:
    """Model, its moving average, optimiser and counters: what a checkpoint holds."""

    def __init__(self, model: nn.Module, course: Course, rank: int) -> None:
        self.model, self.course, self.rank = model, course, rank
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=course.learning_rate, betas=(0.9, 0.99), fused=True)
        self.minutes, self.step, self.loss = 0.0, 0, 0.0
        self.file = course.work / f"{course.name}.pt"
        if self.file.exists():
            self.resume()

    def resume(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.minutes, self.step, self.loss = state["minutes"], state["step"], state["loss"]

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "average": self.average.state_dict()}
        state |= {"optimiser": self.optimiser.state_dict(), "minutes": self.minutes, "step": self.step}
        write_whole(state | {"loss": self.loss, "images": self.images}, self.file)

    @property
    def images(self) -> int:
        return self.step * self.course.batch * self.course.processes

    def facts(self) -> dict[str, float]:
        """What the README tells of a course."""
        facts = {"images_seen": self.images, "steps": self.step, "minutes": round(self.minutes, 1)}
        return facts | {"loss": round(self.loss, 4)}

    def update(self, loss: Tensor, minutes: float) -> None:
        """One optimiser step; ``minutes`` is the processor time so far as this process counts it."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.minutes, now = averaged(self.parameters, [minutes, loss.item()], self.course.processes)
        self.loss = 0.99 * self.loss + 0.01 * now if self.step else now
        factor = learning_rate_factor(self.minutes / self.course.minutes)
        for group in self.optimiser.param_groups:
            group["lr"] = self.course.learning_rate * factor
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            averages = list(self.average.parameters())
            torch._foreach_lerp_(averages, list(self.model.parameters()), 1 - decay)


def follow(
    course: Course,
    rank: int,
    model: nn.Module,
    batch_loss: Callable[[nn.Module, np.random.Generator], Tensor],
    export: Callable[[nn.Module, Trainer], None],
) -> None:
    """Trains ``model`` until the minutes of the course are used up; process 0 saves and exports on the way."""
    torch.set_num_threads(1)
    if course.processes > 1:
        meeting = f"tcp://127.0.0.1:{os.environ['DEMO_PORT']}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=course.processes)
    trainer = Trainer(model, course, rank)
    chance = np.random.default_rng([course.seed, rank, trainer.step])
    torch.manual_seed(course.seed * 1000 + rank + 10 * trainer.step)
    before, start = trainer.minutes, time.process_time()
    exported, told = before, before
    while trainer.minutes < course.minutes:
        loss = batch_loss(trainer.model, chance)
        trainer.update(loss, before + (time.process_time() - start) / 60)
        if rank == 0 and trainer.minutes - told >= 0.5:
            told = trainer.minutes
            print(f"{course.name}: minute {told:.1f} images {trainer.images} loss {trainer.loss:.4f}", flush=True)
        if rank == 0 and trainer.minutes - exported >= course.export_minutes:
            exported = trainer.minutes
            trainer.save()
            export(trainer.average, trainer)
    if rank == 0:
        trainer.save()
        export(trainer.average, trainer)
    if course.processes > 1:
        dist.destroy_process_group()
