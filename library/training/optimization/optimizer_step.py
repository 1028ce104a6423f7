"""One optimizer step: averages gradients over processes, clips and checks them, and takes or skips the step."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from library.training.interruption import FiniteGuard
from library.training.optimization.optimizers import gradient_norm, trained_parameters
from library.training.state import TrainingState

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "no": torch.float32}


def average_gradients(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Mean of the gradients over all processes; nothing to do for one."""
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= accelerator.num_processes


def take_step(
    accelerator: Accelerator,
    training_state: TrainingState,
    max_grad_norm: float,
    losses: Tensor,
    guard: FiniteGuard,
    settle: Callable[[], dict[str, float]],
    rate_factor: float = 1.0,
) -> dict[str, float]:
    """Step optimizer, schedule and average unless loss or gradient are not finite; then clear the gradients.

    Args:
        training_state: with the optimizer prepared by the accelerator.
        losses: [3] of this process: the objective that was differentiated, L and CE.
        settle: changes the network's weights after a step, before the average is updated; returns figures.
        rate_factor: of the learning rates of this step, beside the schedule.

    Returns:
        Figures for the log: losses averaged over processes, the gradient norm before clipping, the learning rate; the
        rate times the step size for optimizers that find one; and the figures of ``settle``.
    """
    optimizer, schedule = training_state.optimizer, training_state.schedule
    parameters = trained_parameters(optimizer)
    average_gradients(accelerator, parameters)  # before unscaling, so that every process sees an overflow
    accelerator.unscale_gradients(optimizer)
    norm = gradient_norm(parameters, max_grad_norm)
    values = accelerator.reduce(
        torch.cat([losses, norm.reshape(1)]), "mean"
    ).tolist()  # the only wait for the GPU in a step
    figures = dict(zip(("loss", "adaptation_loss", "attack_loss", "gradient_norm"), values, strict=True))
    figures |= rates(optimizer, schedule, rate_factor)
    scaled = accelerator.scaler is not None  # then the scaler handles an overflow of the gradient
    taken = guard.accepts(figures["loss"], 0.0 if scaled else figures["gradient_norm"])
    if taken or scaled:
        with scaled_rates(optimizer, rate_factor):
            optimizer.step()
    figures |= settle()
    # A fused optimizer skips an overflow inside its kernel, which accelerate does not see; the norm shows it
    overflowed = scaled and (optimizer.step_was_skipped or not math.isfinite(figures["gradient_norm"]))
    if taken and not overflowed:
        schedule.step()  # before the gradients are cleared: Adafactor's schedule reads them
        if training_state.average is not None:
            training_state.average.update()
    optimizer.zero_grad(set_to_none=True)
    return figures


@contextmanager
def scaled_rates(optimizer: Any, factor: float) -> Iterator[None]:
    """The optimizer with its learning rates times a factor; the schedule, which may build on them, does not see it."""
    if factor == 1:
        yield
        return
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    yield
    for group, rate in zip(optimizer.param_groups, before, strict=True):
        group["lr"] = rate


def rates(optimizer: Any, schedule: Any, factor: float = 1.0) -> dict[str, float]:
    """Learning rate of the first group in this step; times d for D-adaptation and Prodigy."""
    rate = float(schedule.get_last_lr()[0]) * factor
    found = optimizer.param_groups[0].get("d")
    return {"learning_rate": rate} | ({} if found is None else {"adapted_learning_rate": rate * float(found)})
