"""Per-picture gradients of low-rank factors from one batched backward pass (arXiv 2308.06405)."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Reading:
    """One module whose calls are noted, and the factors whose gradients follow from its weight's."""

    called: nn.Module
    geometry: nn.Module  # the layer that computes the same with a weight of its own: nn.Linear, nn.Conv2d, or a norm
    factor_gradients: Callable[[Tensor], list[Tensor]]  # [B, *weight] of the geometry -> [B, ...] of each factor
    factors: Callable[[], list[Tensor]]  # their values, as far as they have moved from an untrained adapter's


class ReadableLayer(Protocol):
    """A layer of an adapter; two factors in all: those inside, and those that an untrained adapter has at zero."""

    def readings(self) -> list[Reading]:
        """The modules to note, with their factors."""


@dataclass(frozen=True)
class AdapterLayer:
    """One pair of low-rank factors; both are called as modules, so that their gradients can be read per sample."""

    name: str
    down: nn.Module  # nn.Linear or nn.Conv2d
    up: nn.Module

    def readings(self) -> list[Reading]:
        """Each factor is the weight of its own module."""
        return [_reading_of(module) for module in (self.down, self.up)]


def _reading_of(module: nn.Module) -> Reading:
    return Reading(module, module, lambda gradient: [gradient], lambda: [weight_of(module)])


class GradientReader:
    """Context that notes what goes in and out of every factor in this thread, until ``taken`` asks for gradients.

    The factors' own ``.grad`` is never touched, so several threads can ask the same modules.
    """

    def __init__(self, layers: Sequence[ReadableLayer]) -> None:
        self.readings = [reading for layer in layers for reading in layer.readings()]
        self.modules = [reading.called for reading in self.readings]
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.places: list[int] = []  # which factor each of them belongs to
        self.handles: list[RemovableHandle] = []
        self.thread = threading.get_ident()

    def __enter__(self) -> "GradientReader":
        for place, module in enumerate(self.modules):
            self.handles.append(module.register_forward_hook(self._noting(place)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self.handles:
            handle.remove()

    def _noting(self, place: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad and threading.get_ident() == self.thread:
                self.inputs.append(inputs[0].detach())
                self.outputs.append(output)
                self.places.append(place)

        return note

    def taken(self, loss: Tensor, batch: int) -> list[Tensor]:
        """[B, ...] gradients of a loss that is a sum over pictures, factor by factor: down, up, down, up ...

        Zeros where the loss does not reach.
        """
        arrived = torch.autograd.grad(loss, self.outputs, allow_unused=True)
        gradients: dict[int, Tensor] = {}
        for place, inputs, grad in zip(self.places, self.inputs, arrived, strict=True):
            if grad is not None:
                geometry = self.readings[place].geometry
                found = per_picture_gradient(geometry, inputs.float(), grad.float(), batch)
                gradients[place] = gradients[place] + found if place in gradients else found
        self.inputs, self.outputs, self.places = [], [], []
        taken: list[Tensor] = []
        for place, reading in enumerate(self.readings):
            found_here = gradients.pop(place, None)
            taken += zeros_for(reading, batch) if found_here is None else reading.factor_gradients(found_here)
        return taken

    def factors(self) -> list[Tensor]:
        """The values beside ``taken``."""
        return [value for reading in self.readings for value in reading.factors()]


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a factor."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def zeros_for(reading: Reading, batch: int) -> list[Tensor]:
    """[B, ...] of factors that the loss does not reach."""
    return [value.new_zeros((batch, *value.shape), dtype=torch.float32) for value in reading.factors()]


def per_picture_gradient(module: nn.Module, inputs: Tensor, grad: Tensor, batch: int) -> Tensor:
    """[B, *weight] gradient of the weight for each picture; its rows (caption pieces, draws) follow each other."""
    if isinstance(module, nn.Linear):
        rows, columns = grad.reshape(batch, -1, grad.shape[-1]), inputs.reshape(batch, -1, inputs.shape[-1])
        return torch.einsum("bto,bti->boi", rows, columns)
    if isinstance(module, nn.Conv2d):
        padding, dilation, stride = module.padding, module.dilation, module.stride
        if isinstance(padding, str) or module.groups != 1:
            raise ValueError(f"a factor with padding {padding!r} and {module.groups} groups cannot be read")
        patches = nn.functional.unfold(inputs, module.kernel_size, dilation, padding, stride)  # [B, i*k*k, L]
        rows = torch.einsum("bol,bil->boi", grad.flatten(2), patches)
        return rows.reshape(batch, -1, *module.weight.shape).sum(1)
    if isinstance(module, nn.GroupNorm):
        normed = nn.functional.group_norm(inputs, module.num_groups, eps=module.eps)
        return (normed * grad).reshape(batch, -1, *normed.shape[1:]).flatten(3).sum((1, 3))
    if isinstance(module, nn.LayerNorm):
        normed = nn.functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
        return (normed * grad).reshape(batch, -1, *module.normalized_shape).sum(1)
    raise ValueError(f"factors must be Linear, Conv2d or a norm, got {type(module).__name__}")
