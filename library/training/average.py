"""A moving average of the trained weights, and the moments when the network shows it instead of what is trained."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from library.errors import InputError
from library.training.optimizers import trained_parameters


class Average:
    """EMA of the trained weights after each step that was taken: a += (1 - d_t) (w - a).

    d_t = min(d, (1 + t) / (10 + t)), where t counts the steps averaged before this one: the warm-up keeps the untrained
    start from weighing for long, as in diffusers and TensorFlow.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        """
        Args:
            parameters: the trained ones, of whatever network.
            decay: d, above 0 and below 1.
        """
        self.parameters = list(parameters)
        self.decay = decay
        self.steps = 0  # averaged so far
        self.values = [parameter.detach().float().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.values, [parameter.detach().float() for parameter in self.parameters], 1 - decay)
        self.steps += 1

    @torch.no_grad()
    def show(self) -> None:
        """Put the average into the parameters; whoever calls this keeps what stood there."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            parameter.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Average and count as tensors, by the place of the parameter."""
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
        if len(names) != len(shapes) or [tensor.shape for tensor in saved] != shapes:
            raise InputError(f"the state's average has {len(names)} tensors that do not fit this run's network")
        self.steps = int(tensors["steps"])
        for value, tensor in zip(self.values, saved, strict=True):
            value.copy_(tensor)


def begin_average(ema_decay: float | None, optimizer: Any) -> Average | None:
    """An average of the weights as they stand; None where none is wanted.

    Raises:
        InputError: a schedule-free optimizer, which keeps an average of its own.
    """
    if ema_decay is None:
        return None
    if has_two_faces(optimizer):
        raise InputError(
            f"ema_decay {ema_decay}: the optimizer is schedule-free, its files hold an average already; leave "
            "ema_decay out, or take another optimizer_type"
        )
    return Average(trained_parameters(optimizer), ema_decay)


def has_two_faces(optimizer: Any) -> bool:
    """Whether an optimizer (unwrapped) trains at one point and evaluates at another, as schedule-free ones do."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


@contextmanager
def shown_weights(
    network: nn.Module, parameters: Sequence[nn.Parameter], optimizer: Any, average: Average | None
) -> Iterator[None]:
    """The network as a file would hold it, without dropout; afterwards what is trained stands again, bit for bit.

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
        with torch.no_grad():  # going back by arithmetic would leave rounding errors, and a resumed run has none
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
        network.train(was_training)
