"""The layers of UNet and text encoder that take a LoRA, their names in the file, and the block of each."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from library.diffusion.families.family import Family
from library.diffusion.families.recognise import family_of_unet
from library.diffusion.latent_diffusion import in_a_list
from library.errors import InputError

UNET_PREFIX = "lora_unet"
TEXT_LAYERS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
NORMS = (nn.LayerNorm, nn.GroupNorm)
LAYERS_PER_TRANSFORMER = 10  # of a transformer block: 2 attentions of 4, and 2 of the feed-forward
LOCON_PARTS = ("resnets", "downsamplers", "upsamplers")
PLACE = re.compile(rf"{UNET_PREFIX}_(down|up)_blocks_(\d+)_(attentions|resnets|downsamplers|upsamplers)_(\d+)_")
ORIGINAL_PLACE = re.compile(rf"{UNET_PREFIX}_(input|output|middle)_blocks?_(\d+)_")


@dataclass(frozen=True)
class Blocks:
    """kohya's blocks of a UNet: SD 1.x and 2.x have 12 down (the first without LoRA), 1 mid and 12 up.

    SDXL has 9, 3 and 9, between a block for the embeddings and one for the output, which have no LoRA.
    """

    per_level: int  # blocks a level: its resnets and one sampler
    down: int
    up: int
    mid: int = 1
    outside: int = 0  # blocks before the first and behind the last, without LoRA

    @property
    def total(self) -> int:
        """The number of all blocks."""
        return self.outside + self.down + self.mid + self.up + self.outside

    def index_of(self, lora_name: str) -> int:
        """Block of a UNet module, 0 .. total - 1; layers before all blocks count as the first, conv_out as the last."""
        original = ORIGINAL_PLACE.match(lora_name)
        if original is not None:
            before = {"input": 0, "middle": self.down, "output": self.down + self.mid}[original[1]]
            return self.outside + before + int(original[2])
        found = PLACE.match(lora_name)
        if found is None:
            if lora_name.startswith(f"{UNET_PREFIX}_mid_block_"):
                return self.down
            return self.total - 1 if lora_name.startswith((f"{UNET_PREFIX}_conv_out", f"{UNET_PREFIX}_out_")) else 0
        way, level, part, number = found[1], int(found[2]), found[3], int(found[4])
        within = self.per_level * level + (self.per_level - 1 if part.endswith("samplers") else number)
        return 1 + within if way == "down" else self.down + 1 + within

    def summary(self) -> str:
        """The counts, for messages that ask for one value per block."""
        around = ", and one before and one behind them" if self.outside else ""
        return f"{self.down} down, {self.mid} mid, {self.up} up{around}"


def blocks_of(unet: Any) -> Blocks:
    """The blocks of a UNet from its config: conv_in, then layers_per_block and a sampler for each level."""
    per_level = int(unet.config.layers_per_block) + 1
    levels = len(unet.config.block_out_channels)
    if family_of_unet(unet.config).blocks_by_number:
        return Blocks(per_level, per_level * levels, per_level * levels, mid=3, outside=1)
    return Blocks(per_level, per_level * levels, per_level * levels)


def unet_targets(unet: Any) -> dict[str, nn.Module]:
    """Linear layers and 1x1 convolutions inside the UNet's transformers, by their names in the file."""
    name = unet_namer(unet)
    return {
        name(path): layer
        for path, layer in unet.named_modules()
        if "attentions" in path.split(".") and _is_linear_like(layer)
    }


def locon_targets(unet: Any) -> dict[str, nn.Module]:
    """The layers that LoCon adds: convolutions and time projections of resnets and samplers (86 in SD 1.5)."""
    name = unet_namer(unet)
    return {
        name(path): layer
        for path, layer in unet.named_modules()
        if set(LOCON_PARTS) & set(path.split(".")) and isinstance(layer, (nn.Linear, nn.Conv2d))
    }


def text_targets(text_encoder: Any, prefix: str) -> dict[str, nn.Module]:
    """The text encoder's attention and MLP layers; names come from a table, whatever the module tree is called.

    Args:
        prefix: the family's, before the number of a layer.
    """
    inner = getattr(text_encoder, "text_model", text_encoder)
    return {
        f"{prefix}_{index}_{path.replace('.', '_')}": layer.get_submodule(path)
        for index, layer in enumerate(inner.encoder.layers)
        for path in TEXT_LAYERS
    }


def all_text_targets(family: Family, text_encoder: Any) -> dict[str, nn.Module]:
    """``text_targets`` of every text encoder of a model.

    Args:
        text_encoder: one, or a list of several.
    """
    found: dict[str, nn.Module] = {}
    for one, part in zip(in_a_list(text_encoder), family.texts, strict=True):
        found |= text_targets(one, part.lora_prefix)
    return found


def unet_namer(unet: Any) -> Callable[[str], str]:
    """A function from a module path of the UNet to kohya's name."""
    layer_name = family_of_unet(unet.config).layer_name
    return lambda path: f"{UNET_PREFIX}_{layer_name(path)}"


def checked_targets(unet: Any, text_encoder: Any, *, with_locon: bool) -> tuple[dict[str, nn.Module], ...]:
    """Targets of UNet and text encoder, after a check of their counts against the configs.

    Raises:
        InputError: a part with another count, with both numbers.
    """
    locon = locon_targets(unet) if with_locon else {}
    text = all_text_targets(family_of_unet(unet.config), text_encoder)
    depth = sum(one.config.num_hidden_layers for one in in_a_list(text_encoder))
    for count, expected, part in (
        (len(unet_targets(unet)), expected_transformer_count(unet), "UNet"),
        (len(locon), expected_locon_count(unet) if with_locon else 0, "UNet (LoCon)"),
        (len(text), depth * len(TEXT_LAYERS), "text encoder"),
    ):
        if count != expected:
            raise InputError(f"the {part} has {count} layers for LoRA, but its config implies {expected}")
    both = unet_targets(unet) | locon
    name = unet_namer(unet)
    order = [name(path) for path, _ in unet.named_modules()]
    return {name: both[name] for name in order if name in both}, text


def expected_transformer_count(unet: Any) -> int:
    """2 layers for each transformer and 10 for each of its blocks, from the model's config."""
    config = unet.config
    levels, per_block = len(config.block_out_channels), config.layers_per_block
    stated = config.transformer_layers_per_block
    depths = [stated] * levels if isinstance(stated, int) else list(stated)

    def layers(kinds: Sequence[str], depth_of: Sequence[int], count: int) -> int:
        each = zip(kinds, depth_of, strict=True)
        return sum(count * (2 + LAYERS_PER_TRANSFORMER * depth) for kind, depth in each if kind.startswith("CrossAttn"))

    down = layers(config.down_block_types, depths, per_block)
    up = layers(config.up_block_types, depths[::-1], per_block + 1)
    return down + 2 + LAYERS_PER_TRANSFORMER * depths[-1] + up


def expected_locon_count(unet: Any) -> int:
    """3 layers for each resnet, a shortcut if its channels change (always on the way up), 1 for each sampler."""
    config = unet.config
    channels, per_block = list(config.block_out_channels), config.layers_per_block
    levels = len(channels)
    down, up = levels * per_block, levels * (per_block + 1)
    entries = zip([channels[0], *channels], channels, strict=False)
    shortcuts = sum(before != after for before, after in entries) + up
    return 3 * (down + 2 + up) + shortcuts + 2 * (levels - 1)


def all_layers(unet: Any, text_encoder: Any) -> dict[str, nn.Module]:
    """Every Linear and Conv2d that a kohya file can name."""
    name = unet_namer(unet)
    layers = {name(path): layer for path, layer in unet.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    return layers | all_text_targets(family_of_unet(unet.config), text_encoder)


def named_layers(unet: Any, text_encoder: Any) -> dict[str, nn.Module]:
    """Every layer that a file of any kind can name: those of ``all_layers``, and norms with a weight."""
    name = unet_namer(unet)
    norms = {name(path): layer for path, layer in unet.named_modules() if isinstance(layer, NORMS)}
    for one, part in zip(in_a_list(text_encoder), family_of_unet(unet.config).texts, strict=True):
        inner = getattr(one, "text_model", one)
        norms |= {
            f"{part.lora_norm_prefix}_{path.replace('.', '_')}": layer
            for path, layer in inner.named_modules()
            if isinstance(layer, NORMS)
        }
    return all_layers(unet, text_encoder) | {name: layer for name, layer in norms.items() if layer.weight is not None}


def _is_linear_like(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def shaped_like_layers(tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors with the factors of LoRA modules in the dimensions of their layers.

    Other writers keep the factors of a convolution as matrices, or those of a linear layer as 1 x 1 convolutions.
    """
    shaped = dict(tensors)
    for name, value in tensors.items():
        module, _, part = name.partition(".")
        weight = getattr(layers.get(module), "weight", None)
        if part not in ("lora_down.weight", "lora_up.weight") or weight is None or value.dim() < 2:
            continue
        if part == "lora_down.weight":
            wanted = (value.shape[0], *weight.shape[1:])
        else:
            wanted = (weight.shape[0], value.shape[1], *[1] * (weight.dim() - 2))
        if value.shape[0] == wanted[0] and value.flatten(1).shape[1] == math.prod(wanted[1:]):
            shaped[name] = value.reshape(wanted)
    return shaped
