"""The weight change of a LoRA file's module, by its kind, and its addition to a model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from library.errors import InputError, shortened
from library.lora_files.format import kind_of, modules_of
from networks.lora_targets import all_layers


def weight_change(parts: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    """The weight change [*shape] (fp32) of a module at strength 1.

    LoRA: alpha/r up down. LoHa (arXiv 2108.06098): alpha/r (w1_a w1_b) * (w2_a w2_b), elementwise. LoKr (arXiv
    2309.14859): w1 (x) w2, either of them a product of two. "mid", "t1", "t2" are the cores of a Tucker form.

    Args:
        parts: tensors of one module by their last names, e.g. "lora_down.weight".
        shape: of the layer's weight, [out, in] or [out, in, k, k].

    Raises:
        InputError: kinds that do not add to the weight, and unknown ones.
    """
    values = {name: value.float() for name, value in parts.items()}
    kind = kind_of(frozenset(values))
    if "dora_scale" in values:
        raise InputError("a DoRA module rescales the layer's weight, so it cannot be merged by addition")
    if kind == "LoRA":
        up, down = values["lora_up.weight"].flatten(1), values["lora_down.weight"].flatten(1)
        return (up @ down * (values["alpha"] / down.shape[0])).reshape(shape)
    if kind == "LoCon with a core":
        up, core, down = (values[f"lora_{part}.weight"] for part in ("up", "mid", "down"))
        change = torch.einsum("oi,ijhw,jc->ochw", up.flatten(1), core, down.flatten(1))
        return change * (values["alpha"] / down.shape[0])
    if kind == "LoHa":
        products = [_factored(values, f"hada_w{side}", f"hada_t{side}") for side in "12"]
        return (products[0] * products[1]).reshape(shape) * (values["alpha"] / values["hada_w1_b"].shape[0])
    if kind == "LoKr":
        return _kronecker(values, shape)
    if kind == "full difference":
        return values["diff"].reshape(shape)
    raise InputError(f"modules of the kind {kind or 'unknown'} cannot be merged by addition")


def _factored(values: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """A matrix as it is, as a product of two, or in Tucker form around a core [r, r, k, k]."""
    if name in values:
        return values[name]
    first, second = values[f"{name}_a"], values[f"{name}_b"]
    if core in values:
        return torch.einsum("ijhw,io,jc->ochw", values[core], first, second)
    return first @ second


def _kronecker(values: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
    small, large = _factored(values, "lokr_w1", "lokr_t1"), _factored(values, "lokr_w2", "lokr_t2")
    if len(shape) == 4:
        large = large.reshape(large.shape[0], -1, *shape[2:])
        small = small[:, :, None, None]
    inner = next((values[name] for name in ("lokr_w2_b", "lokr_w1_b") if name in values), None)
    scale = values["alpha"] / inner.shape[0] if inner is not None else 1.0
    return torch.kron(small.contiguous(), large.contiguous()) * scale


@torch.no_grad()
def merge_weights(unet: Any, text_encoder: Any, tensors: Mapping[str, Tensor], multiplier: float) -> None:
    """Add ``multiplier`` times every module's change to the layer of its name, with one rounding to the layer's dtype.

    Raises:
        InputError: modules without a layer here or with another shape; the model is then unchanged.
    """
    layers = all_layers(unet, text_encoder)
    by_module = modules_of(tensors)
    strange = sorted(set(by_module) - set(layers))
    if strange or not by_module:
        raise InputError(
            f"{len(strange)} of {len(by_module)} modules have no layer here: {shortened(strange, 3)}; the file was "
            "made for another base model, or it is not a LoRA"
        )
    changes: list[tuple[Tensor, Tensor]] = []
    for name, parts in by_module.items():
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        try:
            change = weight_change({part: value.to(weight.device) for part, value in parts.items()}, weight.shape)
        except RuntimeError as error:
            raise InputError(f"{name} does not fit this model; it was made for another base model") from error
        changes.append((weight, change))
        bias = layers[name].bias
        if "diff_b" in parts:
            assert isinstance(bias, Tensor)
            changes.append((bias, parts["diff_b"].to(bias.device).float()))
    for value, change in changes:
        value.copy_(value.float() + multiplier * change)
