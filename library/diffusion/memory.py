"""How much memory a training step is going to take, estimated without running it."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from library.diffusion.latent_diffusion import LatentDiffusion

BATCHES = (1, 2, 4, 8, 16)  # shown beside the run's own
OPTIMIZER_BYTES = 16  # a trained number in fp32, its gradient, and Adam's two moments


@dataclass(frozen=True)
class MemoryRules:
    """What changes the memory of a step."""

    gradient_checkpointing: bool
    separate_noise: bool
    no_half_vae: bool


def saved_activations(
    unet: Any, latent_size: tuple[int, int], text_width: int, *, gradient_checkpointing: bool = False
) -> int:
    """Numbers that autograd keeps for one image while a LoRA trains, counted on a copy without data.

    The copy runs with fake tensors of the CPU, whose attention keeps queries, keys, values and output, as the fused
    kernels of a GPU do, and not the [h * w, h * w] weights. Inputs of the layers that take a LoRA are kept; the rank's
    own numbers, a few per cent, are not counted. With checkpointing, what one block recomputes is not counted either.

    Args:
        latent_size: (height, width) of the latent.
        text_width: width of the text encoder's hidden states.
    """
    with FakeTensorMode():
        copy = UNet2DConditionModel.from_config(unet.config)
        _train_where_loras_sit(copy)
        if gradient_checkpointing:
            copy.enable_gradient_checkpointing()
            copy.train()
        weights = {_storage(tensor) for tensor in copy.state_dict().values()}
        seen: dict[int, int] = {}
        kept: list[Tensor] = []  # keeps storages alive, so that no address is counted for two

        def count(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in weights:
                seen[_storage(tensor)] = tensor.untyped_storage().nbytes() // tensor.element_size()
                kept.append(tensor)
            return tensor

        sample = torch.empty(1, unet.config.in_channels, *latent_size)
        context = torch.empty(1, 77, text_width)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            copy(sample, torch.zeros(1, dtype=torch.long), context)
    return sum(seen.values())


def estimate_in_words(
    model: LatentDiffusion, size: tuple[int, int], trained: int, batch_size: int, rules: MemoryRules
) -> str:
    """The estimated memory of one step: this run's, and that of other batch sizes, with and without checkpointing.

    Args:
        size: training size (width, height) in pixels, the largest bucket.
        trained: trainable numbers.
        batch_size: images of one pass.
    """
    factor, element = model.latent_factor(), model.unet.dtype.itemsize
    frozen = frozen_bytes(model, full_precision_vae=rules.no_half_vae)
    latent_size, width = (size[1] // factor, size[0] // factor), model.text_encoder.config.hidden_size
    passes = 2 if rules.separate_noise else 1
    per_image = {
        checkpointing: passes * element
        * saved_activations(model.unet, latent_size, width, gradient_checkpointing=checkpointing)
        for checkpointing in (False, True)
    }  # fmt: skip
    lora = OPTIMIZER_BYTES * trained
    fixed, activations = sum(frozen.values()) + lora, batch_size * per_image[rules.gradient_checkpointing]
    weights = ", ".join(f"{name} {part / 1e9:.2f}" for name, part in frozen.items())
    lines = [
        f"memory of a step, estimated: {(fixed + activations) / 1e9:.2f} GB = weights {sum(frozen.values()) / 1e9:.2f} "
        f"({weights}) + LoRA, gradients and Adam {lora / 1e9:.2f} + activations "
        f"{activations / 1e9:.2f} (batch {batch_size}, {size[0]} x {size[1]} pixels)",
        "  GB at batch size" + "".join(f"{count:>8}" for count in BATCHES),
    ]
    for checkpointing, name in ((False, "  as it is       "), (True, "  checkpointing  ")):
        totals = [(fixed + count * per_image[checkpointing]) / 1e9 for count in BATCHES]
        lines.append(f"{name} " + "".join(f"{total:>8.2f}" for total in totals))
    lines.append("  (not counted: the allocator's slack, the proxy, about 0.6 GB of CUDA's own)")
    return "\n".join(lines)


def frozen_bytes(model: LatentDiffusion, *, full_precision_vae: bool) -> dict[str, int]:
    """Bytes of the frozen weights on the device, part by part; what a network has added is not among them."""
    element = model.unet.dtype.itemsize
    sizes = {"UNet": (model.unet, element), "text encoder": (model.text_encoder, element),
             "VAE": (model.vae, 4 if full_precision_vae else element)}  # fmt: skip
    return {
        name: bytes_each * sum(weight.numel() for weight in part.parameters() if not weight.requires_grad)
        for name, (part, bytes_each) in sizes.items()
    }


def _train_where_loras_sit(unet: nn.Module) -> None:
    """A trained weight keeps its layer's input for the backward pass, as the LoRA beside it would."""
    unet.requires_grad_(False)
    for path, layer in unet.named_modules():
        if "attentions" in path.split(".") and isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight.requires_grad_(True)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
