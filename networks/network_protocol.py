"""What a trainer calls on a network: kohya's module protocol as a type, for networks.lora, LyCORIS and others alike."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Network(Protocol):
    """A network of low-rank layers that is injected into a model and trained in its place.

    Every network is an ``nn.Module`` too, which a Protocol cannot say; the five calls of a module that the trainer
    makes stand at the end. ``networks.protocol`` asks of a module only those calls that a run needs.
    """

    prepare_optimizer_params: Callable[..., Any]  # two rates in older modules, three in newer; groups, or a pair

    def apply_to(self, text_encoder: Any, unet: Any, apply_text_encoder: bool, apply_unet: bool) -> None:
        """Inject the layers into the parts asked for."""

    def load_weights(self, file: str) -> Any:
        """Fill from a LoRA file; returns what is missing and what is unexpected, as a pair or as a table."""

    def enable_gradient_checkpointing(self) -> None:
        """Save memory in the network's own layers."""

    def prepare_grad_etc(self, text_encoder: Any, unet: Any) -> None:
        """Make the factors trainable."""

    def on_epoch_start(self, text_encoder: Any, unet: Any) -> None:
        """Called before the first pass of an epoch."""

    def get_trainable_params(self) -> Iterable[nn.Parameter]:
        """The parameters that a step may change, for clipping."""

    def apply_max_norm_regularization(self, max_norm: float, device: torch.device) -> tuple[Any, Any, Any]:
        """Scale down what is longer than ``max_norm``; returns how many, the mean norm and the largest one."""

    def state_dict(self) -> dict[str, Any]:
        """The content of the LoRA file."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Fill from tensors of the same names."""

    def train(self) -> Any:
        """Training mode, in which dropouts act."""

    def eval(self) -> Any:
        """Evaluation mode."""

    def to(self, device: torch.device) -> Any:
        """Move every tensor."""
