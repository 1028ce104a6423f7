"""Putting a network into a model by kohya's module protocol, whatever module it comes from."""

from importlib import import_module
from typing import Any

import torch

from library.check import InputError

NEEDED = ("apply_to", "prepare_optimizer_params", "prepare_grad_etc", "on_epoch_start", "get_trainable_params")


def inject(
    network_module: str, network_dim: int, network_alpha: float, network_dropout: float, model: Any,
    device: torch.device, *, text_encoder: bool, unet: bool,
) -> Any:  # fmt: skip
    """Create the module's network for a model, apply it and make it trainable.

    Args:
        model: with ``vae``, ``text_encoder`` and ``unet``.
        text_encoder, unet: which parts get the network.

    Raises:
        InputError: a module that lacks a call of the protocol, by name.
    """
    module = import_module(network_module)
    if not hasattr(module, "create_network"):
        raise InputError(f"network_module '{network_module}' has no create_network; use networks.lora")
    network = module.create_network(
        1.0, network_dim, network_alpha, model.vae, model.text_encoder, model.unet, network_dropout
    )
    lacking = [name for name in NEEDED if not hasattr(network, name)]
    if lacking:
        raise InputError(f"network_module '{network_module}' lacks {', '.join(lacking)}; use networks.lora")
    network.apply_to(model.text_encoder, model.unet, text_encoder, unet)
    network.to(device)
    network.prepare_grad_etc(model.text_encoder, model.unet)
    return network
