"""A LoRA file of any kind in a model, to be asked and not trained: each layer's change is built from its factors."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from library.errors import InputError, shortened
from library.lora_files.format import modules_of
from networks.lora_targets import named_layers
from networks.per_sample_gradients import Reading
from networks.weight_change import bias_change, lengths_of, weight_change

# What is zero in an untrained module, so that it changes nothing. The other factors are drawn
ZERO_AT_START = ("lora_up.weight", "hada_w2_a", "lokr_w2", "lokr_w2_b", "a2.weight", "b2.weight", "oft_blocks", "diff",
                 "diff_b", "w_norm", "b_norm")  # fmt: skip
NORMAL_AT_START = {"hada_w1_a": 0.1, "hada_w1_b": 1.0, "hada_w2_b": 1.0, "hada_t1": 0.1, "hada_t2": 0.1}  # std
SCALES = ("dora_scale", "rescale")  # lengths: untrained ones are those of the base, which are not zero
BIASES = ("diff_b", "b_norm")
CONSTANT = "alpha"


def changes_nothing(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is as good as untrained: every factor that starts at zero is zero, and no length is stated."""
    return all(
        not any(name in SCALES for name in parts)
        and all(not value.any() for name, value in parts.items() if name in ZERO_AT_START)
        for parts in modules_of(tensors).values()
    )


class Change(nn.Module):
    """What the changed part of a weight adds to a layer's output; a module, so that its calls can be noted."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, so that it is no child

    def forward(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own operation with these values in place of its own."""
        layer = self._layer[0]
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(inputs, weight, bias)
        if isinstance(layer, nn.Conv2d):
            padding: Any = layer.padding
            return nn.functional.conv2d(inputs, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
        if isinstance(layer, nn.GroupNorm):
            return nn.functional.group_norm(inputs, layer.num_groups, weight, bias, layer.eps)
        assert isinstance(layer, nn.LayerNorm)
        return nn.functional.layer_norm(inputs, layer.normalized_shape, weight, bias, layer.eps)


class AdaptedLayer(nn.Module):
    """One module of a LoRA file beside its layer: layer(x) + change(factors) x, whatever the kind."""

    def __init__(self, lora_name: str, layer: nn.Module, parts: Mapping[str, Tensor]) -> None:
        """Untrained: factors of the parts' shapes that change nothing. ``load_state_dict`` fills it."""
        super().__init__()
        self.lora_name, self.multiplier = lora_name, 1.0
        self.change = Change(layer)
        self._layer = [layer]
        self._original_forward = layer.forward
        for name, value in parts.items():
            start = value.float() if name == CONSTANT else at_start(name, value.shape, self._base())
            holder, _, own = name.rpartition(".")
            if holder and not hasattr(self, holder):
                self.add_module(holder, nn.Module())
            place = self.get_submodule(holder)
            if name == CONSTANT:
                place.register_buffer(own, start)
            else:
                place.register_parameter(own, nn.Parameter(start))
        self._scales_at_start = {name: value.detach().clone() for name, value in self.parts().items() if name in SCALES}

    def _base(self) -> Tensor:
        weight = self._layer[0].weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def parts(self) -> dict[str, Tensor]:
        """The tensors of the module by their last names, as in the file."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def apply_to(self) -> None:
        """Take the layer's place in the model."""
        self._layer[0].forward = self.forward  # type: ignore[method-assign, assignment]

    def remove(self) -> None:
        """Give the layer its own forward back."""
        self._layer[0].forward = self._original_forward  # type: ignore[method-assign]

    def forward(self, inputs: Tensor) -> Tensor:
        """Layer output plus the change's; with multiplier 0 the layer's own output bit for bit."""
        outputs = self._original_forward(inputs)
        if self.multiplier == 0:
            return outputs
        parts, base = self.parts(), self._base()
        weight, bias = weight_change(parts, base) * self.multiplier, bias_change(parts)
        if bias is not None:
            bias = (bias * self.multiplier).to(base.dtype)
        return outputs + self.change(inputs, weight.to(base.dtype), bias)

    @torch.no_grad()
    def check_fit(self) -> None:
        """Raises: RuntimeError or IndexError when the factors do not make a change of the layer's shape."""
        parts = {name: value.to(self._base().device) for name, value in self.parts().items()}
        weight_change(parts, self._base()).expand(self._base().shape)
        bias, added = self._layer[0].bias, bias_change(parts)
        if added is not None and (not isinstance(bias, Tensor) or added.shape != bias.shape):
            raise RuntimeError("a bias that the layer does not have")

    def readings(self) -> list[Reading]:
        """The change's calls; its weight's gradient is passed on to the factors, in two groups."""
        return [Reading(self.change, self._layer[0], self._factor_gradients, self._factors)]

    def _groups(self) -> tuple[list[str], list[str]]:
        """Names of the factors inside, and of those that are zero at the start; scales belong to these."""
        names = [name for name, _ in self.named_parameters() if name not in BIASES]
        outer = [name for name in names if name in (*ZERO_AT_START, *SCALES)]
        return [name for name in names if name not in outer], outer

    def _factor_gradients(self, gradients: Tensor) -> list[Tensor]:
        """[B, n] of each group, from [B, *weight] of the changed weight."""
        parts = {name: value.detach().requires_grad_(name != CONSTANT) for name, value in self.parts().items()}
        groups = self._groups()
        with torch.enable_grad():
            found = torch.autograd.grad(
                weight_change(parts, self._base()),
                [parts[name] for names in groups for name in names],
                gradients,
                is_grads_batched=True,
            )
        batch, first = len(gradients), len(groups[0])
        return [
            torch.cat([gradients.new_zeros(batch, 0), *(one.flatten(1) for one in of_group)], dim=1)
            for of_group in (found[:first], found[first:])
        ]

    def _factors(self) -> list[Tensor]:
        """[n] of each group; of scales, what they have moved from the base's own lengths."""
        moved = {
            name: (value - self._scales_at_start[name].to(value.device) if name in SCALES else value).detach().flatten()
            for name, value in self.named_parameters()
        }
        return [torch.cat([self._base().new_zeros(0), *(moved[name] for name in names)]) for names in self._groups()]


def at_start(name: str, shape: torch.Size, base: Tensor) -> Tensor:
    """An untrained factor of a layer whose own weight is ``base``; drawn ones come from torch's global generator."""
    if name in ZERO_AT_START:
        return torch.zeros(shape)
    if name == "rescale":
        return torch.ones(shape)
    if name == "dora_scale":
        return lengths_of(base.float().cpu(), shape).reshape(shape)
    if name in NORMAL_AT_START:
        return torch.randn(shape) * NORMAL_AT_START[name]
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5))


class AdaptedNetwork(nn.Module):
    """All modules of a LoRA file in a model, under kohya's names, so that ``load_state_dict`` takes its tensors."""

    def __init__(self, layers: list[AdaptedLayer]) -> None:
        super().__init__()
        self.layers = layers
        for layer in layers:
            self.add_module(layer.lora_name, layer)

    def apply_to(self) -> None:
        """Inject every module."""
        for layer in self.layers:
            layer.apply_to()

    def set_multiplier(self, multiplier: float) -> None:
        """Strength of the whole network; 0 gives the base model's own output."""
        for layer in self.layers:
            layer.multiplier = multiplier


def untrained_network(file: object, unet: Any, text_encoder: Any, weights: Mapping[str, Tensor]) -> AdaptedNetwork:
    """An untrained network with the modules of a LoRA file, not yet injected.

    Args:
        file: for messages.
        weights: its tensors under kohya's names, as ``read_lora`` gives them.

    Raises:
        InputError: modules without a layer here, or with another shape.
    """
    layers, by_module = named_layers(unet, text_encoder), modules_of(weights)
    strange = sorted(set(by_module) - set(layers))
    if strange:
        raise InputError(
            f"'{file}' does not fit this model: {len(strange)} of {len(by_module)} modules have no layer here: "
            f"{shortened(strange, 3)}; it was made for another base model, or it is not a LoRA"
        )
    made = []
    for name in sorted(by_module):
        try:
            made.append(AdaptedLayer(name, layers[name], by_module[name]))
            made[-1].check_fit()
        except InputError as error:
            raise InputError(f"'{file}': {name}: {error}") from error
        except (RuntimeError, IndexError) as error:
            raise InputError(f"'{file}' does not fit this model: {name} has another shape than its layer") from error
    return AdaptedNetwork(made)
