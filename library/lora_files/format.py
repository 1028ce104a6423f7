"""Writes a LoRA so that every client loads it: the clients' names, checks, one dtype, hashes, metadata."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from library.errors import shortened
from library.lora_files.sdxl_names import all_sdxl_named, is_sdxl
from library.tensor_files import tensor_hash, tensor_names, write_tensors

DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = re.compile(
    r"lora_unet_((down|up)_blocks_\d+_(attentions|resnets|downsamplers|upsamplers)_\d+_\w+"
    r"|mid_block_(attentions|resnets)_\d+_\w+|conv_in|conv_out|conv_norm_out|time_embedding_linear_[12])"
    r"|lora_unet_(input_blocks_0_0|(input|output)_blocks_\d+_\d+_\w+|middle_block_\d+_\w+|out_[02]|time_embed_[02]"
    r"|label_emb_0_[02])"
    r"|lora_te[12]?_text_model_(encoder_layers_\d+|embeddings|final_layer_norm)\w*"
)  # what A1111, ComfyUI and diffusers derive from the module paths of SD 1.x and 2.x, and from SDXL's original layout

# Kind -> sets of tensors that a module may consist of. Those of WITH_DORA may have a DoRA scale in addition.
KINDS: Mapping[str, tuple[frozenset[str], ...]] = {
    "LoRA": (frozenset({"lora_down.weight", "lora_up.weight", "alpha"}),),
    "LoCon with a core": (frozenset({"lora_down.weight", "lora_mid.weight", "lora_up.weight", "alpha"}),),
    "LoHa": tuple(
        frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha", *cores})
        for cores in ((), ("hada_t1", "hada_t2"))
    ),
    "LoKr": tuple(
        frozenset({"alpha", *first, *second})
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"), ("lokr_w2_a", "lokr_w2_b", "lokr_t2"))
    ),
    "full difference": (frozenset({"diff"}), frozenset({"diff", "diff_b"})),
    "GLoRA": (frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha"}),),
    "OFT": (frozenset({"oft_blocks", "alpha"}), frozenset({"oft_blocks", "rescale", "alpha"})),
    "norm": (frozenset({"w_norm"}), frozenset({"w_norm", "b_norm"})),
}
WITH_DORA = ("LoRA", "LoCon with a core", "LoHa", "LoKr")
# tensor -> dimension that is the module's rank
RANK_DIMENSIONS = {"lora_down.weight": 0, "hada_w1_b": 0, "lokr_w2_b": 0, "lokr_w1_b": 0, "a2.weight": 0}


class BrokenNetworkError(Exception):
    """Clients would misread a file with these tensors."""


def write_lora(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], save_precision: str) -> None:
    """Give the tensors the clients' names, cast and check them, add kohya's hashes and write the file.

    Args:
        state: ``state_dict()`` of the network.
        save_precision: "float", "fp16" or "bf16".

    Raises:
        BrokenNetworkError: names, shapes or values that a client would misread.
    """
    named = with_one_attention_alpha(with_client_names(state))
    tensors = {name: value.detach().to("cpu", DTYPES[save_precision]) for name, value in named.items()}
    check_lora(tensors)
    write_tensors(path, tensors, with_hashes(tensors, metadata), private=False)


def with_client_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The clients' names: ``text_model_``, which transformers 5.6 removed, and SDXL's UNet in its original layout."""
    named = {
        re.sub(r"^(lora_te[12]?_)(?!text_model_|text_projection)", r"\1text_model_", name): value
        for name, value in state.items()
    }
    return all_sdxl_named(named) if is_sdxl(named) else named


def with_one_attention_alpha(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weight changes with one alpha, if attention layers of the UNet have several; up factors are rescaled.

    diffusers 0.42 reads the alphas of convolutions and feed-forwards, but not those of an attention's projections, for
    which it uses the most frequent alpha of the file (measured). Files with one alpha are unchanged.
    """
    unet = {name: value for name, value in tensors.items() if name.startswith("lora_unet_")}
    modules = {name: parts for name, parts in modules_of(unet).items() if set(parts) == next(iter(KINDS["LoRA"]))}
    alphas = {name: float(parts["alpha"]) for name, parts in modules.items()}
    attention = {alpha for name, alpha in alphas.items() if re.search(r"attn[12]_to_", name)}
    if not attention:
        return dict(tensors)
    common = Counter(alphas.values()).most_common(1)[0][0]
    if attention == {common}:
        return dict(tensors)
    changed = dict(tensors)
    for name, alpha in alphas.items():
        changed[f"{name}.lora_up.weight"] = tensors[f"{name}.lora_up.weight"] * (alpha / common)
        changed[f"{name}.alpha"] = torch.full_like(tensors[f"{name}.alpha"], common)
    return changed


def modules_of(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors by module, under their last names ("lora_down.weight", "alpha", ...)."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        module, _, part = name.partition(".")
        modules.setdefault(module, {})[part] = value
    return modules


def kind_of(parts: frozenset[str]) -> str | None:
    """Kind of a module from the names of its tensors; None for an unknown set."""
    plain = parts - {"dora_scale"}
    for kind, sets in KINDS.items():
        if plain in sets and (plain == parts or kind in WITH_DORA):
            return kind
    return None


def kinds_in(path: Path) -> set[str]:
    """Kinds of a file's modules, with "DoRA" if a module has its scale; only the header is read."""
    parts: dict[str, set[str]] = {}
    for name in tensor_names(path):
        module, _, part = name.partition(".")
        parts.setdefault(module, set()).add(part)
    kinds = {kind_of(frozenset(found)) or "unknown" for found in parts.values()}
    return kinds | ({"DoRA"} if any("dora_scale" in found for found in parts.values()) else set())


def check_lora(tensors: Mapping[str, Tensor]) -> None:
    """Check that modules have known kinds and names; that alphas are 0-dim; that all values are floating and finite.

    Raises:
        BrokenNetworkError: the first few modules or tensors that are wrong.
    """
    modules = modules_of(tensors)
    wrong = [f"{name} ({', '.join(sorted(parts))})" for name, parts in modules.items() if not kind_of(frozenset(parts))]
    wrong += [name for name in modules if not NAMES.fullmatch(name)]
    wrong += [name for name, parts in modules.items() if not factors_agree(parts)]
    wrong += [name for name, value in tensors.items() if not value.is_floating_point()]
    wrong += [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    wrong += [name for name, value in tensors.items() if name.endswith(".alpha") and value.dim() != 0]
    if not modules:
        raise BrokenNetworkError("the LoRA was not written: it has no module")
    if wrong:
        raise BrokenNetworkError(
            f"the LoRA was not written: {len(wrong)} tensors are missing, misnamed, misshapen or not finite, e.g. "
            f"{shortened(wrong, 3)}"
        )


def factors_agree(parts: Mapping[str, Tensor]) -> bool:
    """Whether the factors of a module can be multiplied; those around a core are not compared."""
    pairs = [("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")] if "hada_t1" not in parts else []
    pairs += [("lora_up.weight", "lora_down.weight")] if "lora_mid.weight" not in parts else []
    pairs += [("lokr_w2_a", "lokr_w2_b")] if "lokr_t2" not in parts else []
    pairs += [("lokr_w1_a", "lokr_w1_b"), ("a1.weight", "a2.weight"), ("b1.weight", "b2.weight")]
    return all(
        parts[left].dim() >= 2 and parts[right].dim() >= 1 and parts[left].shape[1] == parts[right].shape[0]
        for left, right in pairs
        if left in parts and right in parts
    )


def stated_ranks(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    """ss_network_dim and ss_network_alpha of a file, without wider convolutions; "Dynamic" for several."""
    ranks: set[str] = set()
    alphas: set[str] = set()
    for parts in modules_of(tensors).values():
        if any(value.dim() == 4 and value.shape[2:] != (1, 1) for value in parts.values()):
            continue
        ranks |= {str(parts[name].shape[at]) for name, at in RANK_DIMENSIONS.items() if name in parts}
        if "alpha" in parts:
            alphas.add(str(float(parts["alpha"])))
    return tuple(found.pop() if len(found) == 1 else "Dynamic" for found in (ranks, alphas))  # type: ignore[return-value]


def with_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with sshs_model_hash (tensor bytes) and sshs_legacy_hash (kohya's 8 hex), unless minimal."""
    if "modelspec.sai_model_spec" not in metadata:
        return dict(metadata)
    plain = {name: value.contiguous() for name, value in tensors.items()}
    old = save(plain, {name: text for name, text in metadata.items() if name.startswith("ss_")})
    return {
        **metadata,
        "sshs_model_hash": tensor_hash(tensors),
        "sshs_legacy_hash": hashlib.sha256(old[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
    }
