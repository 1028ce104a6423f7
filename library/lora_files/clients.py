"""Which clients will load a LoRA file, from its names, its kinds and its family."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from library.lora_files.families import FAMILIES, context_width
from library.lora_files.format import NAMES, kind_of, modules_of
from library.lora_files.other_names import COMFYUIS, place_of
from library.lora_files.sdxl_names import is_sdxl

CLIENTS = ("A1111", "Forge", "ComfyUI", "diffusers", "InvokeAI")
EVERY = frozenset({"LoRA", "LoCon with a core", "LoHa", "LoKr", "full difference", "norm", "GLoRA", "OFT", "DoRA"})
# Kinds that a client puts into a model; docs/lora_tools.md names the versions that were read
KINDS_OF = {
    "A1111": EVERY - {"DoRA"},  # 1.8 passes a DoRA scale over
    "Forge": EVERY,
    "ComfyUI": EVERY,
    "diffusers": frozenset({"LoRA"}),
    "InvokeAI": EVERY - {"GLoRA", "OFT"},
}
FORGE_ALLOWS = 12  # names without a match; with more it leaves the whole file out
KOHYA = re.compile(r"lora_(unet|te1?|te2)_")
WITHOUT_LEVEL = re.compile(r"lora_te[12]?_encoder_layers_")  # as transformers 5.6 and later name their modules
WIDTH_OF = ("attn2_to_k", "attn2_to_v", "self_attn_")  # where InvokeAI looks for the family


@dataclass(frozen=True)
class Verdict:
    """What one client does with a file."""

    client: str
    loads: bool  # wholly, as it was trained
    reason: str  # empty where it loads


def verdicts_of(raw: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> list[Verdict]:
    """A verdict for each client.

    Args:
        raw: tensors under the names in the file.
        named: the same under kohya's names.
    """
    modules = modules_of(named)
    kinds = {kind_of(frozenset(parts)) or "unknown" for parts in modules.values()}
    kinds |= {"DoRA"} if any("dora_scale" in parts for parts in modules.values()) else set()
    unknown = {name for name in modules if not NAMES.fullmatch(name)}
    found = []
    for client in CLIENTS:
        reasons = [*_about_names(client, raw, unknown, of_sdxl=is_sdxl(named)), *_about_kinds(client, kinds)]
        if client == "InvokeAI" and not _shows_its_family(named):
            reasons.append("it is not recognised: no layer shows the width of the text states of a known family")
        found.append(Verdict(client, not reasons, "; ".join(reasons)))
    return found


def _about_names(client: str, raw: Mapping[str, Tensor], unknown: set[str], *, of_sdxl: bool) -> list[str]:
    """What is wrong with the names for one client."""
    foreign = {place_of(name)[2] for name in raw if not KOHYA.match(name)}
    if foreign and client in ("A1111", "InvokeAI"):
        return [f"{len(foreign)} modules have names of diffusers, peft or ComfyUI, which it does not know"]
    comfyuis = {place_of(name)[2] for name in raw if name.startswith(tuple(COMFYUIS))}
    if client == "diffusers" and comfyuis:
        return [f"{len(comfyuis)} modules have ComfyUI's names, which it does not know"]
    if client == "diffusers":
        return [f"{len(unknown)} names are of no layer, and it refuses the whole file"] if unknown else []
    unmatched = unknown | {name.partition(".")[0] for name in raw if WITHOUT_LEVEL.match(name)}
    if client == "A1111" and not of_sdxl:
        unmatched |= {name.partition(".")[0] for name in raw if name.startswith("lora_te1_")}
    if not unmatched:
        return []
    what = f"{len(unmatched)} modules have names that match no layer"
    if client == "Forge":
        whole = len(unmatched) > FORGE_ALLOWS
        return [f"{what}; {'it leaves the whole file out' if whole else 'they are left out'}"]
    return [f"{what}; {'it refuses the file' if client == 'InvokeAI' else 'they are left out'}"]


def _about_kinds(client: str, kinds: set[str]) -> list[str]:
    """Which kinds of modules a client does not take."""
    others = sorted(kinds - KINDS_OF[client])
    if not others:
        return []
    if others == ["DoRA"]:
        return ["the scale of DoRA is passed over: the file acts as another LoRA"]
    return [f"it does not read modules of the kind {' and '.join(others)}"]


def _shows_its_family(named: Mapping[str, Tensor]) -> bool:
    shows = context_width(named) in FAMILIES or is_sdxl(named)
    return shows and any(part in name for name in named for part in WIDTH_OF)
