"""Per-picture gradients of low-rank factors from one batched backward pass (arXiv 2308.06405)."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class AdapterLayer:
    """One pair of low-rank factors; both are called as modules, so that their gradients can be read per sample."""

    name: str
    down: nn.Module  # nn.Linear or nn.Conv2d
    up: nn.Module


class GradientReader:
    """Context that notes what goes in and out of every factor in this thread, until ``taken`` asks for gradients.

    The factors' own ``.grad`` is never touched, so several threads can ask the same modules.
    """

    def __init__(self, layers: Sequence[AdapterLayer]) -> None:
        self.modules = [module for layer in layers for module in (layer.down, layer.up)]
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
        """[B, *weight] gradients of a loss that is a sum over pictures: down, up, down, up ...; zeros where unused."""
        arrived = torch.autograd.grad(loss, self.outputs, allow_unused=True)
        gradients: dict[int, Tensor] = {}
        for place, inputs, grad in zip(self.places, self.inputs, arrived, strict=True):
            if grad is not None:
                found = per_picture_gradient(self.modules[place], inputs.float(), grad.float(), batch)
                gradients[place] = gradients[place] + found if place in gradients else found
        self.inputs, self.outputs, self.places = [], [], []
        return [gradients.get(place, zeros_for(module, batch)) for place, module in enumerate(self.modules)]


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a factor."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def zeros_for(module: nn.Module, batch: int) -> Tensor:
    """[B, *weight] of a factor that the loss does not reach."""
    weight = weight_of(module)
    return weight.new_zeros((batch, *weight.shape), dtype=torch.float32)


def per_picture_gradient(module: nn.Module, inputs: Tensor, grad: Tensor, batch: int) -> Tensor:
    """[B, *weight] gradient of the weight for each picture; rows of one picture (caption pieces) follow each other."""
    if isinstance(module, nn.Linear):
        rows, columns = grad.reshape(batch, -1, grad.shape[-1]), inputs.reshape(batch, -1, inputs.shape[-1])
        return torch.einsum("bto,bti->boi", rows, columns)
    if isinstance(module, nn.Conv2d):
        padding, dilation, stride = module.padding, module.dilation, module.stride
        if isinstance(padding, str) or module.groups != 1:
            raise ValueError(f"a factor with padding {padding!r} and {module.groups} groups cannot be read")
        patches = nn.functional.unfold(inputs, module.kernel_size, dilation, padding, stride)  # [B, i*k*k, L]
        return torch.einsum("bol,bil->boi", grad.flatten(2), patches).reshape(batch, *module.weight.shape)
    raise ValueError(f"factors must be Linear or Conv2d, got {type(module).__name__}")
