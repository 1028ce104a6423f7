"""``network_args`` of networks.lora: reads texts into a checked plan of ranks, dropouts and learning rates."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from library.errors import Faults, did_you_mean
from networks.lora_targets import Blocks

RANKS = ("conv_dim", "conv_alpha", "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas")
LEARNING = (
    "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio", "down_lr_weight",
    "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold",
)  # fmt: skip
DROPOUTS = ("dropout", "rank_dropout", "module_dropout")
KNOWN = (*RANKS, *DROPOUTS, *LEARNING)
OF_LYCORIS = {
    name: 'it belongs to network_module = "lycoris.kohya"' for name in ("algo", "preset", "factor", "dora_wd")
}

CURVES: Mapping[str, Callable[[float], float]] = {
    "sine": lambda place: math.sin(math.pi / 2 * place),
    "cosine": lambda place: math.sin(math.pi / 2 * (1 - place)),
    "linear": lambda place: place,
    "reverse_linear": lambda place: 1 - place,
    "zeros": lambda place: 0.0,
}


@dataclass(frozen=True)
class Dropouts:
    """Probabilities (0..1) that a part of a module is dropped in a forward pass; 0 = never."""

    neuron: float  # an entry of the low-rank activation
    rank: float  # one rank, for one picture
    module: float  # the whole module


@dataclass(frozen=True)
class LearningPlan:
    """Factors of the learning rates of one network."""

    unet_up_ratio: float | None  # LoRA+ (arXiv 2402.12354): rate of the up factors over that of the down factors
    text_up_ratio: float | None
    block_weights: list[float] | None  # of each UNet block; 0 = no LoRA there


@dataclass(frozen=True)
class RankPlan:
    """Rank and alpha of every layer; a layer of rank 0 has no LoRA."""

    text: tuple[int, float]
    linear: list[tuple[int, float]]  # of each UNet block: linear layers and 1x1 convolutions
    conv: list[tuple[int, float]] | None  # of each UNet block: other convolutions; None = no LoCon


class ArgumentReader:
    """Reads texts as numbers and lists of numbers, and collects faults."""

    def __init__(self, given: Mapping[str, Any], faults: Faults) -> None:
        self.given = {name: str(value).strip() for name, value in given.items() if value is not None}
        self.faults = faults

    def refuse(self, names: tuple[str, ...], reason: str) -> None:
        """Add a fault for each of the names that is given."""
        for name in names:
            if name in self.given:
                self.faults.add(f"network_args: {name} {reason}")

    def number(self, name: str, *, least: float, most: float = math.inf, whole: bool = False) -> float | None:
        """One number; None if it is not given or wrong."""
        if name not in self.given:
            return None
        values = self._numbers(name, self.given[name], least=least, most=most, whole=whole)
        if values is not None and len(values) != 1:
            self.faults.add(f"network_args: {name} takes one number, got {self.given[name]!r}")
            return None
        return values[0] if values else None

    def per_block(self, name: str, blocks: Blocks, *, whole: bool = False) -> list[float] | None:
        """One number for each block of the UNet."""
        if name not in self.given:
            return None
        values = self._numbers(name, self.given[name], least=0, most=math.inf, whole=whole)
        if values is not None and len(values) != blocks.total:
            self.faults.add(
                f"network_args: {name} needs {blocks.total} values for this UNet ({blocks.summary()}), "
                f"got {len(values)}"
            )
            return None
        return values

    def weights(self, name: str, count: int) -> list[float] | None:
        """``count`` weights, or a curve by name ("cosine+.25" adds a base)."""
        if name not in self.given:
            return None
        text = self.given[name]
        curve, plus, base = text.partition("+")
        if curve in CURVES and count > 1:
            added = self._numbers(name, base, least=0, most=math.inf) if plus else [0.0]
            return [CURVES[curve](i / (count - 1)) + added[0] for i in range(count)] if added else None
        if "," not in text and not _is_number(text):
            words = f"one of {', '.join(CURVES)} (with '+0.25' for a base) or " if count > 1 else ""
            self.faults.add(
                f"network_args: {name} must be {words}{count} numbers, got {text!r}{did_you_mean(curve, CURVES)}"
            )
            return None
        values = self._numbers(name, text, least=0, most=math.inf)
        if values is not None and len(values) != count:
            self.faults.add(f"network_args: {name} needs {count} values for this UNet, got {len(values)}")
            return None
        return values

    def _numbers(self, name: str, text: str, *, least: float, most: float, whole: bool = False) -> list[float] | None:
        try:
            values = [float(piece or 0) for piece in text.split(",")]  # kohya reads an empty entry as 0
        except ValueError:
            self.faults.add(f"network_args: {name} must be numbers, separated by commas, got {text!r}")
            return None
        wrong = [value for value in values if not least <= value <= most or math.isinf(value)]
        wrong += [value for value in values if whole and not wrong and not value.is_integer()]
        if wrong or not text:
            kind = "whole numbers" if whole else "numbers"
            bound = f"at least {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
            self.faults.add(f"network_args: {name} must be {kind} of {bound}, got {text!r}")
            return None
        return values


def check_known(given: Mapping[str, Any], known: tuple[str, ...], module: str, faults: Faults) -> None:
    """Add a fault for each key that the module does not have."""
    for name in given:
        if name not in known:
            hint = f"; {OF_LYCORIS[name]}" if name in OF_LYCORIS else did_you_mean(name, known)
            faults.add(f"network_args: {module} has no '{name}'{hint}")


def check_numbers(reader: ArgumentReader) -> None:
    """Add a fault for each number that no model takes; how many numbers a block-wise list needs, the model says."""
    reader.number("conv_dim", least=1, whole=True)
    reader.number("conv_alpha", least=0)
    for name in ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"):
        reader.number(name, least=1e-3)


def read_dropouts(reader: ArgumentReader, neuron_dropout: float | None) -> Dropouts:
    """Probabilities from network_args; ``dropout`` there and network_dropout are the same."""
    stated = reader.number("dropout", least=0, most=0.95)
    if stated and neuron_dropout and stated != neuron_dropout:
        reader.faults.add(
            f"network_args: dropout {stated:g} and network_dropout {neuron_dropout:g} set the same probability; leave "
            "one out"
        )
    return Dropouts(
        stated or neuron_dropout or 0.0,
        reader.number("rank_dropout", least=0, most=0.95) or 0.0,
        reader.number("module_dropout", least=0, most=0.95) or 0.0,
    )


def read_learning(reader: ArgumentReader, blocks: Blocks) -> LearningPlan:
    """LoRA+ ratios and the learning-rate weights of the blocks; parts without weights have 1."""
    both, unet, text = (
        reader.number(name, least=1e-3)
        for name in ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
    )
    parts = [
        (name, reader.weights(name, count), count)
        for name, count in (("down_lr_weight", blocks.down), ("mid_lr_weight", blocks.mid), ("up_lr_weight", blocks.up))
    ]
    threshold = reader.number("block_lr_zero_threshold", least=0) or 0.0
    if not any(name in reader.given for name, _, _ in parts):
        reader.refuse(
            ("block_lr_zero_threshold",), "acts on block weights; give down_lr_weight, mid_lr_weight or up_lr_weight"
        )
        return LearningPlan(unet or both, text or both, None)
    outside = [1.0] * blocks.outside
    listed = [*outside, *(weight for _, weights, count in parts for weight in (weights or [1.0] * count)), *outside]
    return LearningPlan(unet or both, text or both, [weight if weight > threshold else 0.0 for weight in listed])


def read_ranks(
    reader: ArgumentReader, network_dim: int, network_alpha: float, blocks: Blocks, weights: list[float] | None
) -> RankPlan:
    """Rank and alpha of each kind of layer in each block.

    Args:
        weights: learning-rate weights of the blocks; a block of weight 0 has no LoRA.
    """
    dims = reader.per_block("block_dims", blocks, whole=True) or [network_dim] * blocks.total
    alphas = reader.per_block("block_alphas", blocks) or [network_alpha] * blocks.total
    conv_dim, conv_alpha = reader.number("conv_dim", least=1, whole=True), reader.number("conv_alpha", least=0)
    conv_dims = reader.per_block("conv_block_dims", blocks, whole=True)
    conv_alphas = reader.per_block("conv_block_alphas", blocks)
    if not {"conv_dim", "conv_block_dims"} & set(reader.given):
        reader.refuse(("conv_alpha", "conv_block_alphas"), "scales the convolutions' LoRA; give conv_dim as well")
    if conv_dims is None and conv_dim is not None:
        conv_dims = [conv_dim] * blocks.total
    if conv_alphas is None:
        conv_alphas = [1.0 if conv_alpha is None else conv_alpha] * blocks.total
    kept = [1 if weights is None or weight > 0 else 0 for weight in (weights or [1.0] * blocks.total)]
    return RankPlan(
        (network_dim, network_alpha),
        [(int(dim) * keep, alpha) for dim, alpha, keep in zip(dims, alphas, kept, strict=True)],
        None
        if conv_dims is None
        else [(int(dim) * keep, alpha) for dim, alpha, keep in zip(conv_dims, conv_alphas, kept, strict=True)],
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
