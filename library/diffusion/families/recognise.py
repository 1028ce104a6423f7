"""Which family a model belongs to: from its UNet's settings, or from the tensors of a single file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from library.diffusion.families import sdxl
from library.diffusion.families.family import UNET_PREFIX, VAE_PREFIX, Family
from library.diffusion.families.sd1 import SD1
from library.diffusion.families.sd2 import SD2
from library.diffusion.families.sdxl import SDXL
from library.errors import InputError, shortened

FAMILIES = (SD1, SD2, SDXL)
CONTEXT_KEY = f"{UNET_PREFIX}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"  # [width, context width]


def family_of_unet(config: Any) -> Family:
    """The family of a UNet, from diffusers' config of it."""
    return family_of_settings(config)


def family_of_settings(settings: Mapping[str, Any]) -> Family:
    """The family of a UNet, from its settings as they are written."""
    if settings.get("addition_embed_type") == "text_time":
        return SDXL
    return SD2 if settings.get("use_linear_projection") else SD1


def family_of_file(file: Path, checkpoint: Mapping[str, Tensor]) -> Family:
    """The family of a single file. It does not show the target: base and velocity models have the same tensors.

    Raises:
        InputError: LoRA files, inpainting models, SDXL's refiner, parts of models: what the file is, or what it lacks.
    """
    if any(name.startswith(("lora_unet_", "lora_te")) for name in checkpoint):
        raise InputError(f"'{file}' is a LoRA, not a base model; give the checkpoint that it was trained on")
    first = checkpoint.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    if first is not None and first.dim() > 1 and first.shape[1] == 9:
        raise InputError(f"'{file}' is an inpainting model (9 input channels); give the ordinary one")
    if any(name.startswith(sdxl.REFINER_PREFIX) for name in checkpoint):
        raise sdxl.refiner_refused(file)
    if sdxl.is_sdxl_file(checkpoint):
        family = SDXL
    else:
        family = SD2 if _belongs_to(SD2, checkpoint) else SD1
    parts = {UNET_PREFIX: "UNet", VAE_PREFIX: "VAE"} | {one.file_prefix: one.role for one in family.texts}
    absent = [
        f"{part} ({prefix}*)"
        for prefix, part in parts.items()
        if not any(name.startswith(prefix) for name in checkpoint)
    ]
    if absent:
        raise InputError(
            f"'{file}' is not a whole {family.name} checkpoint: it has no {', '.join(absent)}; its first tensors are "
            f"{shortened(sorted(checkpoint), 3)}"
        )
    return family


def _belongs_to(family: Family, checkpoint: Mapping[str, Tensor]) -> bool:
    """Whether a file has the family's text encoder, or a UNet that takes its text states."""
    key = checkpoint.get(CONTEXT_KEY)
    takes_its_states = key is not None and key.dim() > 0 and key.shape[-1] == family.context_width
    prefixes = tuple(one.file_prefix for one in family.texts)
    return takes_its_states or any(name.startswith(prefixes) for name in checkpoint)
