"""The weight change of a LoRA file's module, by its kind, and its addition to a model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from library.errors import InputError, shortened
from library.lora_files.format import kind_of, modules_of
from networks.lora_targets import named_layers


def weight_change(parts: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """What a module at strength 1 adds to its layer's weight; [*weight], fp32.

    LoRA: alpha/r up down. LoHa (arXiv 2108.06098): alpha/r (w1_a w1_b) * (w2_a w2_b), elementwise. LoKr (arXiv
    2309.14859): w1 (x) w2, either of them a product of two. "mid", "t1", "t2" are the cores of a Tucker form.
    GLoRA (arXiv 2306.07967): alpha/r (W a1 a2 + b1 b2). OFT (arXiv 2306.07280): (R - 1) W in blocks. DoRA (arXiv
    2402.09353): the changed weight, brought to the length that its scale states, minus W.

    Args:
        parts: tensors of one module by their last names, e.g. "lora_down.weight".
        weight: of the layer, [out, in] or [out, in, k, k]; of a norm, [channels].

    Raises:
        InputError: unknown kinds, and BOFT.
    """
    values = {name: value.float() for name, value in parts.items()}
    base = weight.float()
    added = _addition(values, base)
    return _rescaled(base + added, values["dora_scale"]) - base if "dora_scale" in values else added


def bias_change(parts: Mapping[str, Tensor]) -> Tensor | None:
    """What a module at strength 1 adds to its layer's bias; None for most kinds."""
    found = parts.get("diff_b", parts.get("b_norm"))
    return None if found is None else found.float()


def _addition(values: Mapping[str, Tensor], base: Tensor) -> Tensor:
    kind, shape = kind_of(frozenset(values)), base.shape
    if kind == "LoRA":
        up, down = values["lora_up.weight"].flatten(1), values["lora_down.weight"].flatten(1)
        return (up @ down * (values["alpha"] / down.shape[0])).reshape(shape)
    if kind == "LoCon with a core":
        up, core, down = (values[f"lora_{part}.weight"] for part in ("up", "mid", "down"))
        change = torch.einsum("oi,ijhw,jc->ochw", up.flatten(1), core, down.flatten(1))
        return (change * (values["alpha"] / down.shape[0])).reshape(shape)
    if kind == "LoHa":
        products = [_factored(values, f"hada_w{side}", f"hada_t{side}") for side in "12"]
        return (products[0] * products[1]).reshape(shape) * (values["alpha"] / values["hada_w1_b"].shape[0])
    if kind == "LoKr":
        return _kronecker(values, shape)
    if kind == "GLoRA":
        a1, a2, b1, b2 = (values[f"{part}.weight"].flatten(1) for part in ("a1", "a2", "b1", "b2"))
        through = torch.einsum("oi...,ij->oj...", base, a1 @ a2)
        return (through + (b1 @ b2).reshape(shape)) * (values["alpha"] / a2.shape[0])
    if kind == "OFT":
        return _rotated(values, base) - base
    if kind in ("full difference", "norm"):
        return values["diff" if kind == "full difference" else "w_norm"].reshape(shape)
    raise InputError(f"modules of the kind {kind or 'unknown'} cannot be put into a model")


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
    inner = next((values[name] for name in ("lokr_w2_b", "lokr_w1_b") if name in values), None)
    scale = values["alpha"] / inner.shape[0] if inner is not None else 1.0
    large = large.reshape(large.shape[0], -1, *shape[2:])
    # [up, uq] (x) [vp, vq, ...] -> [up * vp, uq * vq, ...]
    return torch.einsum("ab,cd...->acbd...", small, large).reshape(shape) * scale


def _rotated(values: Mapping[str, Tensor], base: Tensor) -> Tensor:
    """R W: every block of rows turned by its own orthogonal matrix (Cayley), then rows rescaled where stated."""
    blocks = values["oft_blocks"]
    if blocks.dim() != 3:
        raise InputError("modules of the kind BOFT (oft_blocks with 4 dimensions) cannot be put into a model")
    skew = blocks - blocks.transpose(1, 2)
    most = values["alpha"] * base.shape[0]  # the constraint on the length of all blocks together; 0 is none
    length = skew.norm() + 1e-8
    skew = torch.where((most > 0) & (length > most), skew * most / length, skew)
    one = torch.eye(blocks.shape[1], device=blocks.device)
    turn = (one + skew) @ torch.linalg.inv(one - skew)
    rows = base.reshape(blocks.shape[0], blocks.shape[1], -1)
    turned = torch.einsum("knm,knc->kmc", turn, rows).reshape(base.shape)
    return turned * values["rescale"].reshape(-1, *[1] * (base.dim() - 1)) if "rescale" in values else turned


def lengths_of(weight: Tensor, scale: torch.Size) -> Tensor:
    """The lengths of a weight's rows (or columns, as the shape of a DoRA scale says), to be set beside the weight."""
    rows, columns = weight.shape[:2]
    of_rows = len(scale) == 1 or scale[0] == scale.numel() or scale.numel() == rows != columns
    others = [dimension for dimension in range(weight.dim()) if dimension != (0 if of_rows else 1)]
    return torch.linalg.vector_norm(weight, dim=others, keepdim=True)


def _rescaled(changed: Tensor, scale: Tensor) -> Tensor:
    """A weight with rows (or columns) of the stated lengths."""
    lengths = lengths_of(changed, scale.shape)
    return changed * (scale.reshape(lengths.shape) / (lengths + torch.finfo(changed.dtype).eps))


@torch.no_grad()
def merge_weights(unet: Any, text_encoder: Any, tensors: Mapping[str, Tensor], multiplier: float) -> None:
    """Add ``multiplier`` times every module's change to the layer of its name, with one rounding to the layer's dtype.

    Raises:
        InputError: modules without a layer here or with another shape; the model is then unchanged.
    """
    layers = named_layers(unet, text_encoder)
    by_module = modules_of(tensors)
    strange = sorted(set(by_module) - set(layers))
    if strange or not by_module:
        raise InputError(
            f"{len(strange)} of {len(by_module)} modules have no layer here: {shortened(strange, 3)}; the file was "
            "made for another base model, or it is not a LoRA"
        )
    changes: list[tuple[Tensor, Tensor]] = []
    for name, parts in by_module.items():
        weight, bias = layers[name].weight, layers[name].bias
        assert isinstance(weight, Tensor)
        here = {part: value.to(weight.device) for part, value in parts.items()}
        try:
            changes.append((weight, weight_change(here, weight).reshape(weight.shape)))
            added = bias_change(here)
            if added is not None:
                if not isinstance(bias, Tensor):
                    raise InputError(f"{name} changes a bias that its layer does not have")
                changes.append((bias, added.reshape(bias.shape)))
        except (RuntimeError, IndexError) as error:
            raise InputError(f"{name} does not fit this model; it was made for another base model") from error
    for value, change in changes:
        value.copy_(value.float() + multiplier * change)
