"""Names of SDXL's layers in LoRA files: the UNet as in its original layout, lora_unet_input_blocks_4_1_...

Everything else here names the UNet's layers as diffusers does. SDXL's UNet has three levels (SD 1.x and 2.x have four)
with two resnets on the way down and three on the way up, whatever its widths, so the two namings translate into each
other place by place.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

UNET, FIRST_TEXT = "lora_unet_", "lora_te1_"
LEVELS, DOWN, UP = 4, 2, 3  # levels (the fourth is SD 1.x's and 2.x's), and resnets of each on the way down and up
OF_RESNETS = {
    "norm1": "in_layers_0", "conv1": "in_layers_2", "time_emb_proj": "emb_layers_1", "norm2": "out_layers_0",
    "conv2": "out_layers_3", "conv_shortcut": "skip_connection",
}  # fmt: skip
# In kohya's names these can only be SDXL's: SD 1.x and 2.x have one text encoder without a number, and transformers of
# one block
MARKS = re.compile(
    r"lora_te[12]_|lora_unet_(input|output)_blocks_|lora_unet_middle_block_"
    r"|lora_unet_(down_blocks|up_blocks|mid_block)\w*_transformer_blocks_[1-9]"
)


def _places() -> dict[str, str]:
    """Start of a layer's name in diffusers' layout -> the same in the original one."""
    found = {
        "conv_in": "input_blocks_0_0", "conv_out": "out_2", "conv_norm_out": "out_0",
        "time_embedding_linear_1": "time_embed_0", "time_embedding_linear_2": "time_embed_2",
        "add_embedding_linear_1": "label_emb_0_0", "add_embedding_linear_2": "label_emb_0_2",
        "mid_block_resnets_0": "middle_block_0", "mid_block_attentions_0": "middle_block_1",
        "mid_block_resnets_1": "middle_block_2",
    }  # fmt: skip
    for level in range(LEVELS):
        for way, per_level, first, part in (("down", DOWN, 1, "input"), ("up", UP, 0, "output")):
            for number in range(per_level):
                for place, kind in enumerate(("resnets", "attentions")):
                    at = 3 * level + first + number
                    found[f"{way}_blocks_{level}_{kind}_{number}"] = f"{part}_blocks_{at}_{place}"
        found[f"down_blocks_{level}_downsamplers_0_conv"] = f"input_blocks_{3 * (level + 1)}_0_op"
        found[f"up_blocks_{level}_upsamplers_0_conv"] = f"output_blocks_{3 * level + 2}_2_conv"
    return found


ORIGINAL = _places()
DIFFUSERS = {original: name for name, original in ORIGINAL.items()}
DIFFUSERS["output_blocks_2_1_conv"] = "up_blocks_0_upsamplers_0_conv"  # of SD 1.x and 2.x: no attention before it
OF_ORIGINAL_RESNETS = {original: name for name, original in OF_RESNETS.items()}
START = re.compile(
    r"(down|up)_blocks_\d+_(resnets|attentions)_\d+|(down|up)_blocks_\d+_(down|up)samplers_0_conv"
    r"|mid_block_(resnets|attentions)_\d+|conv_(in|out|norm_out)|(time|add)_embedding_linear_[12]"
)
ORIGINAL_START = re.compile(
    r"input_blocks_\d+_0_op|output_blocks_(\d+_2|2_1)_conv|(input|output)_blocks_\d+_[01]|middle_block_\d+|out_[02]"
    r"|time_embed_[02]|label_emb_0_[02]"
)


def original_name(name: str) -> str:
    """A UNet layer's name behind ``lora_unet_`` in the original layout; one that follows no rule stays as it is.

    ``down_blocks_1_attentions_0_proj_in`` -> ``input_blocks_4_1_proj_in``.
    """
    return _translated(name, START, ORIGINAL, OF_RESNETS)


def diffusers_name(name: str) -> str:
    """The inverse of ``original_name``."""
    return _translated(name, ORIGINAL_START, DIFFUSERS, OF_ORIGINAL_RESNETS)


def _translated(name: str, start: re.Pattern[str], places: Mapping[str, str], resnets: Mapping[str, str]) -> str:
    found = start.match(name)
    if found is None or found[0] not in places:
        return name
    head, rest = found[0], name[found.end() :].removeprefix("_")
    is_resnet = "resnets" in head + places[head]
    rest = resnets.get(rest, rest) if is_resnet else rest
    return f"{places[head]}_{rest}" if rest else places[head]


def is_sdxl(names: Iterable[str]) -> bool:
    """Whether a file's names, once they are kohya's, can only be those of SDXL; see ``families`` for others."""
    return any(MARKS.match(name) for name in names)


def sdxl_named(module: str) -> str:
    """A module of an SDXL file as kohya names it.

    Args:
        module: by the rules of SD 1.x: the UNet's layers as in diffusers, lora_te_ for the first text encoder.
    """
    if module.startswith(UNET):
        return UNET + original_name(module.removeprefix(UNET))
    return re.sub(r"^lora_te_", FIRST_TEXT, module)


def diffusers_named(module: str) -> str:
    """A module of an SD 1.x or 2.x file as kohya names it: the UNet's layers as in diffusers."""
    return UNET + diffusers_name(module.removeprefix(UNET)) if module.startswith(UNET) else module


def all_sdxl_named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an SDXL file, their modules named by ``sdxl_named``."""
    parted = ((*name.partition("."), value) for name, value in tensors.items())
    return {f"{sdxl_named(module)}{dot}{part}": value for module, dot, part, value in parted}
