"""K LoRAs at once on one frozen UNet: their factors as stacks, and the layers that apply LoRA k to its own rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from library.audit.queries.audited_model import noise_of_velocity
from library.audit.reconstruction.prompt_states import unpacked
from library.errors import Faults, InputError, shortened
from library.lora_files.format import modules_of
from library.tensor_files import not_finite
from networks.lora_targets import unet_namer

PROJECTIONS = ("to_q", "to_v")  # of every attention: the layout of arXiv 2409.08482


@dataclass(frozen=True)
class Factors:
    """K LoRAs on the same layers, under kohya's module names; the weight change of a layer is scale * up @ down."""

    down: Mapping[str, Tensor]  # [K, r, d_in] by module; ranks may differ between modules
    up: Mapping[str, Tensor]  # [K, d_out, r]
    scale: float | Mapping[str, float]  # alpha / rank

    @property
    def count(self) -> int:
        """How many LoRAs, K."""
        return len(next(iter(self.down.values())))

    def scale_of(self, name: str) -> float:
        """alpha / rank of one module."""
        return self.scale[name] if isinstance(self.scale, Mapping) else self.scale

    def tensors(self) -> list[Tensor]:
        """Every down factor, then every up factor."""
        return [*self.down.values(), *self.up.values()]

    def rows(self, indices: Sequence[int] | Tensor) -> "Factors":
        """Some of the LoRAs, in this order; one may come twice."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return self.changed(lambda value: value[chosen.to(value.device)])

    def only(self, names: Sequence[str]) -> "Factors":
        """The same LoRAs with some of their modules."""
        return Factors({n: self.down[n] for n in names}, {n: self.up[n] for n in names}, self.scale)

    def changed(self, change: Any) -> "Factors":
        """Every tensor passed through a function."""
        return Factors(
            {name: change(value) for name, value in self.down.items()},
            {name: change(value) for name, value in self.up.items()},
            self.scale,
        )

    def changes_something(self) -> Tensor:
        """[K] whether any up factor is not 0: larger batches round differently, so an exact 0 must be said."""
        return torch.stack([value.flatten(1).any(1) for value in self.up.values()]).any(0)

    def copied(self) -> "Factors":
        """On the CPU, without a gradient; later steps do not change it."""
        return self.changed(lambda value: value.detach().cpu().clone())

    def state(self) -> dict[str, Tensor]:
        """Flat names for a safetensors file."""
        return {f"{name}.down": value for name, value in self.down.items()} | {
            f"{name}.up": value for name, value in self.up.items()
        }


def factors_from_state(state: Mapping[str, Tensor], scale: float) -> Factors:
    """What ``Factors.state`` wrote."""
    parts = {
        part: {n.removesuffix(f".{part}"): v for n, v in state.items() if n.endswith(f".{part}")}
        for part in ("down", "up")
    }
    return Factors(parts["down"], parts["up"], scale)


def joined(several: Sequence[Factors]) -> Factors:
    """LoRAs of several stacks in one, which must share their layers, ranks and scale."""
    first = several[0]
    return Factors(
        {name: torch.cat([one.down[name] for one in several]) for name in first.down},
        {name: torch.cat([one.up[name] for one in several]) for name in first.up},
        first.scale,
    )


def padded(some: Factors, rank: int) -> Factors:
    """The same changes as factors of a higher rank: further directions of 0. Raises: ValueError for a lower one."""

    def further(value: Tensor, side: int) -> Tensor:
        missing = rank - value.shape[side]
        if missing < 0:
            raise ValueError(f"factors of rank {value.shape[side]} do not fit into rank {rank}")
        return torch.nn.functional.pad(value, (0, 0, 0, missing) if side == 1 else (0, missing))

    return Factors(
        {name: further(value, 1) for name, value in some.down.items()},
        {name: further(value, 2) for name, value in some.up.items()},
        some.scale,
    )


def factors_of_file(tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module], file: object) -> Factors:
    """The UNet's part of one LoRA file, K = 1. Convolutions wider than 1 x 1 and the text encoder are left out.

    Args:
        tensors: under kohya's names, as ``read_lora`` gives them.
        layers: of the base by kohya's name; those without a module in the file are left out.
        file: for messages.

    Raises:
        InputError: NaN; modules of another kind than LoRA; no module, or one of another shape: another base model's.
    """
    if bad := not_finite(tensors):
        raise InputError(f"'{file}' has NaN or infinity in {len(bad)} tensors: {shortened(bad, 3)}; it is damaged")
    by_module = {name: parts for name, parts in modules_of(tensors).items() if name in layers}
    if not by_module:
        raise InputError(
            f"'{file}' has no module on a layer of this UNet; it was made for another base model, or it trains the "
            "text encoder alone"
        )
    faults = Faults()
    down, up, scale = {}, {}, {}
    for name, parts in sorted(by_module.items()):
        if not {"lora_down.weight", "lora_up.weight"} <= set(parts):
            faults.add(f"'{file}': {name} is no LoRA module; the attack on weights reads plain LoRA factors alone")
            continue
        low, high = parts["lora_down.weight"].float().flatten(1), parts["lora_up.weight"].float().flatten(1)
        d_out, d_in = weight_shape(layers[name])
        if low.shape[1] != d_in or high.shape != (d_out, low.shape[0]):
            faults.add(
                f"'{file}': {name} has factors {tuple(high.shape)} and {tuple(low.shape)}, its layer is {d_out} x "
                f"{d_in}; it was made for another base model"
            )
            continue
        down[name], up[name] = low[None], high[None]
        scale[name] = float(parts.get("alpha", torch.tensor(float(len(low))))) / len(low)
    faults.raise_if_any()
    return Factors(down, up, scale)


def weight_shape(layer: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear layer or a 1 x 1 convolution."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return int(weight.shape[0]), int(weight.shape[1])


def attention_layers(unet: Any, projections: Sequence[str] = PROJECTIONS) -> dict[str, nn.Module]:
    """``to_q`` and ``to_v`` of every attention, by kohya's names: 64 layers in SD 1.x, 128 factors."""
    name = unet_namer(unet)
    return {
        name(path): layer
        for path, layer in unet.named_modules()
        if path.rpartition(".")[2] in projections and isinstance(layer, nn.Linear)
    }


def stackable_layers(unet: Any) -> dict[str, nn.Module]:
    """Every layer of the UNet that a stack can stand beside: linear ones and 1 x 1 convolutions, by kohya's names."""
    name = unet_namer(unet)
    return {
        name(path): layer
        for path, layer in unet.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    }


def fresh_factors(
    layers: Mapping[str, nn.Module], rank: int, scale: float, generators: Sequence[torch.Generator]
) -> Factors:
    """Untrained LoRAs, one for each generator: down uniform in +-1/sqrt(d_in) as kohya draws it, up zero.

    Raises:
        InputError: a rank above the smaller side of a layer.
    """
    sides = {name: weight_shape(layer) for name, layer in layers.items()}
    least = min(min(pair) for pair in sides.values())
    if not 1 <= rank <= least:
        raise InputError(f"rank must be from 1 to {least}, the smallest side of these layers, got {rank}")
    down = {name: torch.empty(len(generators), rank, d_in) for name, (_, d_in) in sides.items()}
    for number, generator in enumerate(generators):
        for name, (_, d_in) in sides.items():
            bound = 1 / math.sqrt(d_in)
            down[name][number] = (2 * torch.rand(rank, d_in, generator=generator) - 1) * bound
    up = {name: torch.zeros(len(generators), d_out, rank) for name, (d_out, _) in sides.items()}
    return Factors(down, up, scale)


class StackedLoRA:
    """Stands beside the layers of a frozen UNet and gives rows k*b .. (k+1)*b of a batch the change of LoRA k.

    delta = scale * bmm(bmm(x, A^T), B^T) on x [K, b * tokens, d_in]: the same numbers as K passes with one LoRA each.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers

    @contextmanager
    def using(self, factors: Factors | None) -> Iterator[None]:
        """Apply these LoRAs inside the block; None is the base alone. The layers have their own forward afterwards."""
        missing = sorted(set(factors.down) - set(self.layers)) if factors is not None else []
        if missing:
            raise InputError(f"{len(missing)} modules have no layer in this UNet: {shortened(missing, 3)}")
        changed = [] if factors is None else [(self.layers[name], name) for name in factors.down]
        own = [layer.forward for layer, _ in changed]
        try:
            for (layer, name), forward in zip(changed, own, strict=True):
                layer.forward = _beside(layer, forward, factors, name)  # type: ignore[method-assign, assignment, arg-type]
            yield
        finally:
            for (layer, _), forward in zip(changed, own, strict=True):
                layer.forward = forward  # type: ignore[method-assign]


def _beside(layer: nn.Module, forward: Any, factors: Factors, name: str) -> Any:
    """The layer's own forward plus the stack's change."""
    down, up, scale = factors.down[name], factors.up[name], factors.scale_of(name)

    def change(inputs: Tensor) -> Tensor:
        """[K*b, tokens, d_in] -> [K*b, tokens, d_out]."""
        count, width = len(down), inputs.shape[-1]
        if len(inputs) % count:
            raise ValueError(f"a batch of {len(inputs)} cannot be divided among {count} LoRAs")
        low = torch.bmm(inputs.reshape(count, -1, width), down.transpose(1, 2).to(inputs.dtype)) * scale
        return torch.bmm(low, up.transpose(1, 2).to(inputs.dtype)).reshape(*inputs.shape[:-1], -1)

    def of_linear(inputs: Tensor) -> Tensor:
        result: Tensor = forward(inputs) + change(inputs)
        return result

    def of_convolution(inputs: Tensor) -> Tensor:
        rows = change(inputs.flatten(2).transpose(1, 2))  # [K*b, h*w, d_out]
        result: Tensor = forward(inputs) + rows.transpose(1, 2).unflatten(2, inputs.shape[2:])
        return result

    return of_convolution if isinstance(layer, nn.Conv2d) else of_linear


@dataclass(frozen=True)
class StackedModel:
    """A frozen UNet that is asked with many LoRAs at once, or with none."""

    unet: Any
    layers: Mapping[str, nn.Module]  # that a stack may change
    alphas_cumprod: Tensor  # [steps]
    fingerprint: str  # of the base
    velocity: bool = False  # the UNet predicts velocity; answers are turned into noise
    latent_factor: int = 8  # pixels per latent side; SDXL is told a picture's size

    @property
    def device(self) -> torch.device:
        """Where the UNet lies."""
        return next(self.unet.parameters()).device

    def predict(self, factors: Factors | None, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        """Noise [K*b, 4, h, w] fp32, differentiable in the factors and the context.

        Args:
            factors: on the UNet's device; None is the base alone.
            latents: [K*b, 4, h, w], noised; LoRA k answers rows k*b .. (k+1)*b.
            timesteps: [K*b].
            context: [K*b, T, D] as ``prompt_states.packed`` makes it.
        """
        device = self.device
        latents, timesteps = latents.to(device), timesteps.to(device)
        size = (self.latent_factor * latents.shape[3], self.latent_factor * latents.shape[2])
        told = unpacked(context.to(device, self.unet.dtype), self.unet.config, size)
        with StackedLoRA(self.layers).using(factors):
            answer = told.predicted(self.unet, latents.to(self.unet.dtype), timesteps).float()
        return noise_of_velocity(answer, latents, self.alphas_cumprod, timesteps) if self.velocity else answer

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(a_t) z + sqrt(1 - a_t) eps, [B, 4, h, w]."""
        alpha = self.alphas_cumprod.to(latents.device)[timesteps.to(latents.device)][:, None, None, None]
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
