"""One model under several LoRAs: none, the whole one, and the same cut to lower ranks by its singular values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from library.errors import InputError
from library.lora_files.format import modules_of
from networks.lora_targets import named_layers
from networks.low_rank import Decomposition, Factors, decomposed_factors
from networks.weight_change import merge_weights


@dataclass(frozen=True)
class Variant:
    """What the base is asked with."""

    name: str  # base, full, rank 4, half strength
    rank: int  # 0 for the base
    kept_energy: float  # share of the squared norm of the whole LoRA's change
    tensors: Mapping[str, Tensor] | None  # None for the base


def variants_of(weights: Mapping[str, Tensor], modules: Mapping[str, Factors], ranks: Sequence[int]) -> list[Variant]:
    """The base, the LoRA as it is, its cuts in descending order, and their control: the LoRA at half strength.

    A cut is a weaker LoRA. What the weakening alone does is seen in the control, which keeps all directions.

    Args:
        weights: the LoRA's tensors under kohya's names.
        modules: its factors by the name of the layer.
        ranks: of ``cut_ranks``.
    """
    found = {name: decomposed_factors(factors) for name, factors in modules.items()}
    whole = Variant("full", max(factors.rank for factors in modules.values()), 1.0, weights)
    cuts = [_cut(modules, found, rank) for rank in ranks]
    return [Variant("base", 0, 0.0, None), whole, *cuts, _weakened(whole, 0.5)]


def cut_ranks(modules: Mapping[str, Factors], asked: Sequence[int]) -> list[int]:
    """The ranks to cut to, in descending order; without any asked for: the LoRA's own halved down to 1.

    Raises:
        InputError: a rank that is not below the LoRA's own, which would cut nothing.
    """
    own = max(factors.rank for factors in modules.values())
    if not asked:
        halves = [own >> place for place in range(1, own.bit_length())]
        return [rank for rank in halves if rank >= 1]
    above = [rank for rank in asked if rank >= own]
    if above:
        raise InputError(
            f"robustness_ranks must be below {own}, the rank of the LoRA, got {', '.join(map(str, above))}; the whole "
            "LoRA is measured anyway"
        )
    return sorted(set(asked), reverse=True)


def _cut(modules: Mapping[str, Factors], found: Mapping[str, Decomposition], rank: int) -> Variant:
    """Every layer at most of that rank."""
    tensors, whole, lost = {}, 0.0, 0.0
    for name, one in found.items():
        for part, value in one.cut(rank, modules[name].shape).parts().items():
            tensors[f"{name}.{part}"] = value
        whole, lost = whole + float(one.values.square().sum()), lost + one.lost(rank) ** 2
    return Variant(f"rank {rank}", rank, 1 - lost / whole if whole else 1.0, tensors)


def _weakened(whole: Variant, strength: float) -> Variant:
    """All directions at a share of their strength: every alpha is multiplied by it."""
    assert whole.tensors is not None
    tensors = {name: value * strength if name.endswith(".alpha") else value for name, value in whole.tensors.items()}
    return Variant("half strength", whole.rank, strength**2, tensors)


class Exchangeable:
    """A base whose changed weights can be exchanged; the base's own values come back bit for bit."""

    def __init__(self, unet: Any, text_encoder: Any, weights: Mapping[str, Tensor]) -> None:
        self.unet, self.text_encoder = unet, text_encoder
        layers, names = named_layers(unet, text_encoder), modules_of(weights)
        self._kept = [
            (part, part.detach().clone())
            for name in names
            if name in layers
            for part in (layers[name].weight, layers[name].bias)
            if isinstance(part, Tensor)
        ]

    @torch.no_grad()
    def put(self, variant: Variant) -> None:
        """Make the model that of a variant."""
        for part, kept in self._kept:
            part.copy_(kept)
        if variant.tensors is not None:
            merge_weights(self.unet, self.text_encoder, variant.tensors, 1.0)
