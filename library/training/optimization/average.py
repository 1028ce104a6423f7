"""A moving average of the trained weights, and a context in which the network has its values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from library.errors import InputError
from library.training.optimization.optimizers import trained_parameters


class Average:
    """EMA of the trained weights, updated after each step: a += (1 - d_t) (w - a).

    d_t = min(d, (1 + t) / (10 + t)), where t counts the steps averaged before this one: the warm-up soon reduces the
    weight of the untrained start, as in diffusers and TensorFlow.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """
        Args:
            parameters: the trained ones, of any network.
            decay: d, above 0 and below 1.
        """
        self.parameters = list(parameters)
        self.decay = decay
        self.steps = 0  # averaged so far
        self.values = [parameter.detach().float().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the weights after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [parameter.detach().float() for parameter in self.parameters], 1 - decay)
        self.steps += 1

    @torch.no_grad()
    def show(self) -> None:
        """Copy the average into the parameters; the caller keeps their values."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            parameter.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Average and count as tensors, by index of the parameter."""
        return {"steps": torch.tensor(self.steps), **{f"{i:05d}": value for i, value in enumerate(self.values)}}

    @torch.no_grad()
    def fill(self, tensors: dict[str, Tensor]) -> None:
        """Take over the average of a state.

        Raises:
            InputError: another number of weights, or other shapes.
        """
        names = [f"{i:05d}" for i in range(len(tensors) - 1)]
        saved = [tensors[name] for name in names if name in tensors]
        shapes = [value.shape for value in self.values]
        steps = tensors.get("steps", torch.zeros(2))
        if steps.numel() != 1 or not 0 <= float(steps) < 2**53:
            raise InputError("the state's average does not say how many steps it is of; resume from another state")
        if len(names) != len(shapes) or [tensor.shape for tensor in saved] != shapes:
            raise InputError(f"the state's average has {len(names)} tensors that do not fit this run's network")
        self.steps = int(steps)
        for value, tensor in zip(self.values, saved, strict=True):
            value.copy_(tensor)


def begin_average(ema_decay: float | None, optimizer: Any) -> Average | None:
    """An average that starts at the present weights; None without ema_decay.

    Raises:
        InputError: a schedule-free optimizer, which keeps an average of its own.
    """
    if ema_decay is None:
        return None
    if has_two_faces(optimizer):
        raise InputError(
            f"ema_decay {ema_decay}: the optimizer is schedule-free, so its files already hold an average; leave "
            "ema_decay out, or use another optimizer_type"
        )
    return Average(trained_parameters(optimizer), ema_decay)


def has_two_faces(optimizer: Any) -> bool:
    """Whether an optimizer (unwrapped) trains and evaluates at different weights, as schedule-free ones do."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


@contextmanager
def shown_weights(
    network: nn.Module, parameters: Sequence[nn.Parameter], optimizer: Any, average: Average | None
) -> Iterator[None]:
    """The network with the weights of a file, without dropout; afterwards the trained weights are restored exactly.

    Args:
        optimizer: wrapped or not; ``train`` and ``eval`` of a schedule-free one are called.
    """
    kept = [parameter.detach().clone() for parameter in parameters]
    was_training = network.training
    network.eval()
    if average is not None:
        average.show()
    else:
        optimizer.eval()
    try:
        yield
    finally:
        if average is None:
            optimizer.train()
        with torch.no_grad():  # restoring by arithmetic would leave rounding errors, which a resumed run does not have
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
        network.train(was_training)
