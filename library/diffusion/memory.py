"""The memory of a training step: an estimate without running it, and advice when it runs out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from library.diffusion.conditioning import blank_conditioning
from library.diffusion.latent_diffusion import LatentDiffusion
from library.errors import InputError

BATCHES = (1, 2, 4, 8, 16)  # batch sizes that are shown besides the run's own
OPTIMIZER_BYTES = 16  # a trained number in fp32, its gradient, and Adam's two moments


@dataclass(frozen=True)
class MemoryRules:
    """Options that change the memory of a step."""

    gradient_checkpointing: bool
    separate_noise: bool
    no_half_vae: bool


def saved_activations(unet: Any, latent_size: tuple[int, int], *, gradient_checkpointing: bool = False) -> int:
    """Numbers that autograd keeps for one image while a LoRA trains, counted on a copy without data.

    The copy runs with fake tensors of the CPU, whose attention keeps queries, keys, values and output, as the fused
    kernels of a GPU do, and not the [h * w, h * w] weights. Inputs of the layers that take a LoRA are kept; the
    low-rank activations, a few per cent, are not counted. With checkpointing, what one block recomputes is not counted
    either.

    Args:
        latent_size: (height, width) of the latent.
    """
    with FakeTensorMode():
        copy = UNet2DConditionModel.from_config(unet.config)
        _train_where_loras_sit(copy)
        if gradient_checkpointing:
            copy.enable_gradient_checkpointing()
            copy.train()
        weights = {_storage(tensor) for tensor in copy.state_dict().values()}
        seen: dict[int, int] = {}
        kept: list[Tensor] = []  # keeps storages alive, so that no address is reused

        def count(tensor: Tensor) -> Tensor:
            if _storage(tensor) not in weights:
                seen[_storage(tensor)] = tensor.untyped_storage().nbytes() // tensor.element_size()
                kept.append(tensor)
            return tensor

        sample = torch.empty(1, unet.config.in_channels, *latent_size)
        context = blank_conditioning(unet.config)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            context.predicted(copy, sample, torch.zeros(1, dtype=torch.long))
    return sum(seen.values())


def memory_summary(
    model: LatentDiffusion, size: tuple[int, int], trained: int, batch_size: int, rules: MemoryRules
) -> str:
    """The estimated memory of one step of this run, and of other batch sizes, with and without checkpointing.

    Args:
        size: training size (width, height) in pixels, the largest bucket.
        trained: trainable numbers.
        batch_size: images of one pass.
    """
    factor, element = model.latent_factor(), model.unet.dtype.itemsize
    frozen = frozen_bytes(model, full_precision_vae=rules.no_half_vae)
    latent_size = (size[1] // factor, size[0] // factor)
    passes = 2 if rules.separate_noise else 1
    per_image = {
        checkpointing: passes
        * element
        * saved_activations(model.unet, latent_size, gradient_checkpointing=checkpointing)
        for checkpointing in (False, True)
    }
    lora = OPTIMIZER_BYTES * trained
    fixed, activations = sum(frozen.values()) + lora, batch_size * per_image[rules.gradient_checkpointing]
    weights = ", ".join(f"{name} {part / 1e9:.2f}" for name, part in frozen.items())
    lines = [
        f"memory of a step, estimated: {(fixed + activations) / 1e9:.2f} GB = weights {sum(frozen.values()) / 1e9:.2f} "
        f"({weights}) + LoRA, gradients and Adam {lora / 1e9:.2f} + activations "
        f"{activations / 1e9:.2f} (batch {batch_size}, {size[0]} x {size[1]} pixels)",
        "  GB at batch size  " + "".join(f"{count:>8}" for count in BATCHES),
    ]
    for checkpointing, name in ((False, "  checkpointing off"), (True, "  checkpointing on ")):
        totals = [(fixed + count * per_image[checkpointing]) / 1e9 for count in BATCHES]
        lines.append(f"{name} " + "".join(f"{total:>8.2f}" for total in totals))
    lines.append("  (not counted: memory that the allocator reserves, the proxy, and about 0.6 GB for CUDA)")
    return "\n".join(lines)


def frozen_bytes(model: LatentDiffusion, *, full_precision_vae: bool) -> dict[str, int]:
    """Bytes of the frozen weights on the device, part by part, without those of a network."""
    element = model.unet.dtype.itemsize
    roles = [one.role for one in model.family.texts]
    sizes = {
        "UNet": (model.unet, element),
        **{role: (part, element) for role, part in zip(roles, model.text_encoders(), strict=True)},
        "VAE": (model.vae, 4 if full_precision_vae else element),
    }
    return {
        name: bytes_each * sum(weight.numel() for weight in part.parameters() if not weight.requires_grad)
        for name, (part, bytes_each) in sizes.items()
    }


def _train_where_loras_sit(unet: nn.Module) -> None:
    """Train the weights of layers with a LoRA: they keep the layer's input for the backward pass, as the LoRA does."""
    unet.requires_grad_(False)
    for path, layer in unet.named_modules():
        if "attentions" in path.split(".") and isinstance(layer, (nn.Linear, nn.Conv2d)):
            layer.weight.requires_grad_(True)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@dataclass(frozen=True)
class AdviceRules:
    """The options that decide how much memory a step takes."""

    gradient_checkpointing: bool
    mixed_precision: str
    cache_latents: bool
    train_batch_size: int
    gradient_accumulation_steps: int
    attack_batch_size: int | None
    resolution: str
    separate_noise: bool
    network_dim: int


@contextmanager
def out_of_memory_explained(rules: AdviceRules) -> Iterator[None]:
    """Raises: InputError with advice, instead of torch's error."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        advice = [f"  {number}. {text}" for number, text in enumerate(best_switches(rules)[:3], 1)]
        raise InputError(f"the GPU is out of memory: {reason}", "for this run, try these in order:", *advice) from error


def best_switches(rules: AdviceRules) -> list[str]:
    """Measures that the run does not use yet, those that save most at the least cost first.

    SD 1.5 at 512 pixels saves 0.93 GB of bf16 activations an image, 0.15 GB with checkpointing; fp32 doubles both and
    the frozen weights (2.1 GB in bf16).
    """
    switches = []
    if rules.mixed_precision == "no":
        switches.append('mixed_precision = "bf16" (halves weights and activations; fp16 on cards before RTX 30)')
    if not rules.gradient_checkpointing:
        switches.append("gradient_checkpointing = true (a sixth of the activations, about 1.5 x the time)")
    if not rules.cache_latents:
        switches.append("cache_latents = true (no VAE pass inside the step)")
    if rules.train_batch_size > 1:
        half, passes = rules.train_batch_size // 2, rules.gradient_accumulation_steps * 2
        switches.append(
            f"train_batch_size = {half} with gradient_accumulation_steps = {passes} (the same images per step; the "
            "gain "
            "is then averaged over the passes)"
        )
    images = rules.attack_batch_size or rules.train_batch_size
    if images > 1:
        switches.append(
            f"attack_batch_size = {max(1, images // 2)} (the attacker's pass takes this many images of each of two "
            "sides)"
        )
    if rules.separate_noise:
        switches.append("separate_noise = false (one UNet pass with gradient instead of two)")
    switches.append(f"a smaller resolution than {rules.resolution} (activations are proportional to the area)")
    if rules.network_dim > 4:
        switches.append(f"network_dim = {rules.network_dim // 2} (16 bytes per trained number)")
    switches.append("network_train_unet_only = true (no LoRA and no gradients in the text encoder)")
    return switches
