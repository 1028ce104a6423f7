"""How much memory a training step is going to take, estimated without running it."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel

from library.diffusion.model_files import LatentDiffusion


def saved_activations(unet: Any, latent_size: tuple[int, int], text_width: int) -> int:
    """Numbers that autograd keeps for one image, counted on a copy without data (the meta device).

    Args:
        latent_size: (height, width) of the latent.
        text_width: width of the text encoder's hidden states.
    """
    with torch.device("meta"):
        copy = UNet2DConditionModel.from_config(unet.config)
        sample = torch.empty(1, unet.config.in_channels, *latent_size, requires_grad=True)
        context = torch.empty(1, 77, text_width, requires_grad=True)
        copy.requires_grad_(False)
        seen: dict[int, int] = {}
        kept: list[torch.Tensor] = []  # keeps storages alive, so that no address is counted for two

        def count(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, torch.nn.Parameter):
                seen[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes() // tensor.element_size()
                kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            copy(sample, torch.zeros(1, dtype=torch.long), context)
    return sum(seen.values())


def estimate_in_words(model: LatentDiffusion, size: tuple[int, int], trained: int, batch_size: int) -> str:
    """The estimated memory of one step in one line: frozen weights, LoRA with gradients and Adam moments, activations.

    Args:
        size: training size (width, height) in pixels, the largest bucket.
        trained: trainable numbers, kept in fp32 with gradient and two moments (16 bytes each).
    """
    factor = model.latent_factor()
    frozen = sum(
        parameter.numel()
        for part in (model.unet, model.text_encoder, model.vae)
        for parameter in part.parameters()
        if not parameter.requires_grad
    )
    activations = saved_activations(
        model.unet, (size[1] // factor, size[0] // factor), model.text_encoder.config.hidden_size
    )
    element = model.unet.dtype.itemsize
    parts = (frozen * element, trained * 16, activations * batch_size * element)
    words = " + ".join(
        f"{name} {part / 1e9:.2f}" for name, part in zip(("weights", "LoRA", "activations"), parts, strict=True)
    )
    return f"memory of a step, estimated: {sum(parts) / 1e9:.2f} GB = {words} (no checkpointing, allocator not counted)"
