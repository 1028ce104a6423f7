"""Which family of models a LoRA file was made for: from all of its names, what its layers read, and its header."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from library.errors import InputError, shortened
from library.lora_files.format import modules_of
from library.lora_files.sdxl_names import UNET, is_sdxl

FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}  # by the width of the text states
# Layers that only one of them has, by kohya's prefix and the names of either layout
OF_SDXL_ALONE = re.compile(rf"lora_te2_|{UNET}\w+_transformer_blocks_[1-9]")
OF_OTHERS_ALONE = re.compile(
    rf"{UNET}((down|up)_blocks_3_|down_blocks_0_attentions_|up_blocks_2_attentions_)"
    rf"|{UNET}((input|output)_blocks_(9|1\d)_|input_blocks_[12]_1_|output_blocks_[678]_1_(proj|transformer|norm))"
)
ORIGINAL = re.compile(rf"{UNET}(input_blocks|middle_block|output_blocks|out|time_embed|label_emb)_")
STATED = {True: re.compile(r"sdxl|stable-diffusion-xl"), False: re.compile(r"\bsd_v[12]|stable-diffusion-v[12]")}
STATE_IT = "state it in the file's metadata (ss_base_model_version = sdxl_base_v1-0, sd_v1 or sd_v2)"


def made_for_sdxl(named: Mapping[str, Tensor], raw: Iterable[str], metadata: Mapping[str, str]) -> bool:
    """Whether a file was made for SDXL, and not for SD 1.x or 2.x.

    What only one family has decides; else what the header says; else kohya's habits: it numbers the text encoders
    (lora_te1_) and names the UNet as in the original layout for SDXL alone. diffusers' converter writes lora_te1_ for
    SD 1.x too, beside a UNet in its own names.

    Args:
        named: tensors with kohya's prefixes and endings, the first text encoder as lora_te_, the UNet in either layout.
        raw: the names in the file.

    Raises:
        InputError: what is SDXL's alone beside what SDXL cannot have; names that fit both and nothing that says which.
    """
    widths = _context_widths(named)
    ours = [name for name in named if OF_SDXL_ALONE.match(name)] + widths.get(2048, [])
    others = widths.get(768, []) + widths.get(1024, [])
    if ours and others:
        raise InputError(
            f"it mixes layers of two families: {shortened(ours, 1)} is SDXL's, {shortened(others, 1)} is not; it was "
            "joined from two files, or made for a model that is not read here"
        )
    if ours or others or any(OF_OTHERS_ALONE.match(name) for name in named):
        return bool(ours)
    words = f"{metadata.get('ss_base_model_version')} {metadata.get('modelspec.architecture')}".lower()
    stated = next((family for family, pattern in STATED.items() if pattern.search(words)), None)
    if stated is not None:
        return stated
    raw = [re.sub(r"^(base_model\.model\.)+", "", name) for name in raw]
    in_original = [name for name in named if ORIGINAL.match(name)]
    if in_original and not any(name.startswith(("lora_unet_", "lora_te1_")) for name in raw):
        raise InputError(
            f"its names fit SD 1.x, SD 2.x and SDXL alike ({shortened(sorted(raw), 2)}), and no layer shows which; "
            f"{STATE_IT}"
        )
    in_diffusers = any(name.startswith(UNET) for name in named) and not in_original
    return bool(in_original) or (not in_diffusers and any(name.startswith("lora_te1_") for name in raw))


def _context_widths(named: Mapping[str, Tensor]) -> dict[int, list[str]]:
    """Modules of cross-attentions by the width of the text states that they read."""
    found: dict[int, list[str]] = {}
    for name, parts in modules_of(named).items():
        if re.search("attn2_to_[kv]$", name) and (width := input_width(parts)) is not None:
            found.setdefault(width, []).append(name)
    return found


def context_width(tensors: Mapping[str, Tensor]) -> int | None:
    """Width of the text states that a file's layers read: of its cross-attentions, else of its text encoder.

    SDXL's text encoders are narrower than its text states; a file of these alone shows no width.
    """
    patterns = ["attn2_to_k", "attn2_to_v"]
    if not is_sdxl(tensors):
        patterns += ["self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj"]
    for pattern in patterns:
        for name, parts in modules_of(tensors).items():
            if name.endswith(pattern):
                width = input_width(parts)
                if width is not None:
                    return width
    return None


def family_name(tensors: Mapping[str, Tensor]) -> str:
    """The family of a file under kohya's names, for messages; empty where neither names nor widths show one."""
    return "SDXL" if is_sdxl(tensors) else FAMILIES.get(context_width(tensors) or 0, "")


def input_width(parts: Mapping[str, Tensor]) -> int | None:
    """Number of inputs of the layer that a module is for; None where its kind does not show it."""
    for part in ("lora_down.weight", "hada_w1_b", "a2.weight", "diff"):
        if part in parts and parts[part].dim() >= 2:
            return int(parts[part].shape[1])
    sides = [parts.get(whole, parts.get(f"{whole}_b")) for whole in ("lokr_w1", "lokr_w2")]
    widths = [side.shape[1] for side in sides if side is not None and side.dim() >= 2]
    return int(widths[0] * widths[1]) if len(widths) == 2 else None


def check_width(file: object, tensors: Mapping[str, Tensor], here: int, family: str = "") -> None:
    """Raises: InputError when a LoRA is of another family, or its layers read text states of another width.

    Args:
        here: width that the base model's UNet takes.
        family: name of the base model's family; SDXL's files show theirs by their names.
    """
    width, of_file = context_width(tensors), family_name(tensors)
    is_other = bool(family) and is_sdxl(tensors) != (family == "SDXL") and bool(modules_of(tensors))
    if is_other and all(name.startswith(("lora_te_", "lora_te1_")) for name in tensors):
        shared = "lora_te1_, kohya's for SDXL" if of_file == "SDXL" else "lora_te_, kohya's for SD 1.x and 2.x"
        raise InputError(
            f"'{file}' changes one text encoder alone, under names ({shared}) of another family than this base model's "
            f"({family}); if it was made for this one, {STATE_IT}"
        )
    if (width is not None and width != here) or is_other:
        names = [f" ({one})" if one else "" for one in (of_file, family or FAMILIES.get(here, ""))]
        read = "" if width is None else f": its layers read text states of width {width}{names[0]}"
        raise InputError(
            f"'{file}' was made for another base model{read or names[0]}, this base model has {here}{names[1]}"
        )
