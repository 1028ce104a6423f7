"""LoRA files of diffusers and peft under kohya's tensor names; values are unchanged."""

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from library.lora_files.format import with_client_names

FACTORS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight",
    "lora_B.default.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight",
    "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight",
    "lora_linear_layer.up.weight": "lora_up.weight",
    "alpha": "alpha",
}
PARTS = {"unet.": "lora_unet_", "text_encoder.": "lora_te_"}


def is_diffusers(weights: Mapping[str, Tensor]) -> bool:
    """Whether tensor names follow diffusers (unet.*, text_encoder.*) and not kohya (lora_unet_*)."""
    return any(name.startswith(tuple(PARTS)) for name in weights)


def kohya_named(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The same tensors under kohya's names; alpha from the file, its peft configuration, or the rank.

    Text-encoder names without ``text_model_`` are completed, as when a training starts from such a file.
    """
    if not is_diffusers(weights):
        return with_client_names(weights)
    stated = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        part = next((prefix for prefix in PARTS if name.startswith(prefix)), "")
        path = re.sub(r"\.processor\.(to_\w+?)_lora\.", r".\1.lora.", name[len(part) :])
        for ending, kohya_ending in FACTORS.items():
            if part and path.endswith("." + ending):
                module = PARTS[part] + path[: -len(ending) - 1].replace(".", "_")
                renamed[f"{module}.{kohya_ending}"] = value
                alpha = stated.get(f"{part}lora_alpha")
                if alpha is not None and kohya_ending == "lora_down.weight":
                    renamed.setdefault(f"{module}.alpha", torch.tensor(float(alpha)))
                break
        else:
            renamed[name.replace(".", "_")] = value  # a later check reports it
    return renamed
