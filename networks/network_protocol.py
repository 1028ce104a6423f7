"""What a trainer calls on a network: kohya's module protocol as a type, for networks.lora, LyCORIS and others alike."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from library.errors import InputError


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


def can_be_switched_off(network: Any) -> bool:
    """Whether a network has kohya's ``set_multiplier``; it is optional in the protocol."""
    return callable(getattr(network, "set_multiplier", None))


def require_switch(network: Any, module: str) -> None:
    """Raises: InputError for a network that cannot be switched off.

    Args:
        module: its name, for the message.
    """
    if not can_be_switched_off(network):
        raise InputError(
            f"network_module '{module}' lacks set_multiplier, so the model cannot be asked without the LoRA, which "
            'target_auc and proxy_input = "calibrated" need; leave them out, or use networks.lora'
        )


@contextmanager
def switched_off(network: Any) -> Iterator[None]:
    """The model as it is without the network, which is at full strength again afterwards."""
    network.set_multiplier(0.0)
    try:
        yield
    finally:
        network.set_multiplier(1.0)
