"""LoRA files of every naming (kohya, diffusers old and new, attn_procs, peft) under kohya's tensor names."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from library.errors import InputError
from library.lora_files.adapter_config import AdapterConfig, configs_in_header
from library.lora_files.families import made_for_sdxl
from library.lora_files.sdxl_names import diffusers_named, sdxl_named

# How a tensor's name may end -> kohya's ending. The first that fits is taken.
ENDINGS = (
    (re.compile(r"\.lora_A(\.default)?\.weight"), "lora_down.weight"),
    (re.compile(r"\.lora_B(\.default)?\.weight"), "lora_up.weight"),
    (re.compile(r"(\.lora|\.lora_linear_layer|_lora)\.(?P<way>down|up)\.weight"), "lora_{way}.weight"),
    (re.compile(r"\.lora_magnitude_vector(\.default)?(\.weight)?"), "dora_scale"),
    (re.compile(r"\.(?P<way>(lora_(down|mid|up)|[ab][12])\.weight)"), "{way}"),
    (re.compile(r"\.(?P<way>(hada|lokr)_\w+?)(\.default)?"), "{way}"),
    (re.compile(r"\.(?P<way>alpha|dora_scale|oft_blocks|rescale|diff|diff_b|w_norm|b_norm)"), "{way}"),
)
LONGEST_ENDING = 48
PARTS = {"unet.": "lora_unet_", "text_encoder.": "lora_te_", "text_encoder_2.": "lora_te2_"}
COMFYUIS = {  # it names parts as its own model does, the UNet in the original layout
    "diffusion_model.": "unet.",
    "model.diffusion_model.": "unet.",
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "text_encoders.clip_h.transformer.": "text_encoder.",
    "text_encoders.clip_g.transformer.": "text_encoder_2.",
}
UNET_PATH = re.compile(r"(down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding)\.")
TEXT_PATH = re.compile(r"(text_model\.)?encoder\.layers\.")
TRANSFORMERS = ("transformer.", "lora_transformer_", "lora_unet_double_blocks_", "lora_unet_single_blocks_",
                "lora_unet_joint_blocks_", "text_encoder_3.", "lora_te3_", "diffusion_model.double_",
                "diffusion_model.single_", "diffusion_model.joint_")  # fmt: skip


def kohya_named(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a file under kohya's names, with the alphas that its header states.

    Raises:
        InputError: a header that is not as diffusers writes it; two tensors of one name.
    """
    headers = configs_in_header(metadata)
    configs = {prefix: headers[part[:-1]] for part, prefix in PARTS.items() if part[:-1] in headers}
    return renamed(weights, configs, metadata)


def renamed(
    weights: Mapping[str, Tensor], configs: Mapping[str, AdapterConfig], metadata: Mapping[str, str]
) -> dict[str, Tensor]:
    """The same tensors under kohya's names; a name that follows no rule stays, for a later check to report.

    Args:
        configs: what is stated about the parts, by the values of ``PARTS``.
        metadata: of the file, which may say for which family it is.

    Raises:
        InputError: two tensors of one name; names of two families, or of none in particular.
    """
    placed = {name: place_of(name) for name in weights}
    known = {f"{module}.{part}": weights[name] for name, (module, part, _) in placed.items() if part}
    named_in_family = sdxl_named if made_for_sdxl(known, weights, metadata) else diffusers_named
    found: dict[str, Tensor] = {}
    paths: dict[str, str] = {}  # of modules, with dots, as peft's patterns know them
    for name, value in weights.items():
        module, part, path = placed[name]
        module = named_in_family(module) if part else module
        full = f"{module}.{part}" if part else module
        if full in found:
            raise InputError(f"two tensors are called {full}, one of them {name}; the file was joined from two")
        if part == "dora_scale" and "lora_magnitude_vector" in name:  # peft: one number a row, [out] or [1, out, 1, 1]
            value = value.reshape(-1, *[1] * max(value.dim() - 1, 1))
        found[full] = value
        paths[module] = path
    return _with_stated_alphas(found, paths, configs)


def place_of(name: str) -> tuple[str, str, str]:
    """Module and ending of a tensor under kohya's names, and the module's path; an unknown name has no ending."""
    inner = re.sub(r"^(base_model\.model\.)+", "", name)
    for pattern, kohya in ENDINGS:
        at = re.search(rf"{pattern.pattern}$", inner[-LONGEST_ENDING:])
        if at is None:
            continue
        head = inner[: len(inner) - len(at[0])]
        path = f"{head}_lora" if at[0].startswith("_lora") else head
        ending = kohya.format(**{"way": at.groupdict().get("way")})
        module, dotted = module_of(path)
        return module, ending, dotted
    return name, "", name


def module_of(path: str) -> tuple[str, str]:
    """kohya's name of a module path, and the path without what names the part."""
    if path.startswith(("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")):
        return _with_text_level(re.sub("^lora_te1_", "lora_te_", path)), path
    for prefix, part in COMFYUIS.items():
        path = f"{part}{path.removeprefix(prefix)}" if path.startswith(prefix) else path
    part = next((prefix for prefix in PARTS if path.startswith(prefix)), "")
    inner = path.removeprefix(part)
    if not part:
        part = "unet." if UNET_PATH.match(inner) else "text_encoder." if TEXT_PATH.match(inner) else ""
    if not part:
        return path.replace(".", "_"), path
    inner = _without_processors(inner, text=part != "unet.")
    return _with_text_level(PARTS[part] + inner.replace(".", "_")), inner


def _without_processors(path: str, *, text: bool) -> str:
    """Old attention processors: ``processor.to_q_lora`` is ``to_q``, ``to_out_lora`` is ``to_out.0``."""
    path = re.sub(r"\.processor\.(to_(q|k|v|out)_lora)$", r".\1", path)
    found = re.fullmatch(r"(.*)\.to_(q|k|v|out)_lora", path)
    if found is None:
        return path
    if text:
        return f"{found[1]}.{found[2]}_proj"
    return f"{found[1]}.to_out.0" if found[2] == "out" else f"{found[1]}.to_{found[2]}"


def _with_text_level(module: str) -> str:
    return re.sub(r"^(lora_te2?_)(?!text_model_|text_projection)", r"\1text_model_", module)


def _with_stated_alphas(
    tensors: dict[str, Tensor], paths: Mapping[str, str], configs: Mapping[str, AdapterConfig]
) -> dict[str, Tensor]:
    """Add the alphas that a configuration states to modules without one of their own."""
    filled = dict(tensors)
    for module, path in paths.items():
        part = module.replace("lora_te1_", "lora_te_", 1)
        config = next((config for prefix, config in configs.items() if part.startswith(prefix)), None)
        if config is None or f"{module}.alpha" in tensors:
            continue
        rank = rank_of(tensors, module)
        if rank is not None:
            alpha = config.alpha_of(path, float(rank))
            if alpha is not None:
                filled[f"{module}.alpha"] = torch.tensor(alpha)
        elif f"{module}.lokr_w1" in tensors and f"{module}.lokr_w2" in tensors:
            # kohya's clients give two whole factors the scale 1, peft gives them alpha / rank
            stated = config.rank_of(path)
            alpha = config.alpha_of(path, stated or 1.0)
            if alpha is not None and stated is not None:
                filled[f"{module}.lokr_w2"] = tensors[f"{module}.lokr_w2"].float() * (alpha / stated)
    return filled


# Tensor -> dimension that is its module's rank
RANKS = {"lora_down.weight": 0, "hada_w1_b": 0, "lokr_w1_b": 0, "lokr_w2_b": 0, "a2.weight": 0}


def rank_of(tensors: Mapping[str, Tensor], module: str) -> int | None:
    """The rank of a module, from the first of its tensors that shows it."""
    for part, dimension in RANKS.items():
        value = tensors.get(f"{module}.{part}")
        if value is not None and value.dim() > dimension:
            return int(value.shape[dimension])
    return None


def other_family(names: Mapping[str, Tensor]) -> str | None:
    """The family of a file whose names can only be another's; None where they are those of a family here."""
    if any(name.removeprefix("base_model.model.").startswith(TRANSFORMERS) for name in names):
        return "a model with a transformer in place of the UNet (SD 3, Flux and others)"
    return None
