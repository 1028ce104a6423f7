"""Writing a LoRA so that every client loads it: acceptance checks, one dtype, hashes, metadata."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from library.tensor_files import tensor_hash, write_tensors

DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class BrokenNetworkError(Exception):
    """The network's tensors would make a file that clients misread."""


def write_lora(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str], save_precision: str) -> None:
    """Check the tensors, cast them, add kohya's hashes and write the file whole.

    Args:
        state: ``state_dict()`` of the network, under kohya's names.
        save_precision: "float", "fp16" or "bf16".

    Raises:
        BrokenNetworkError: names, shapes or values that a client would misread.
    """
    tensors = {name: value.detach().to("cpu", DTYPES[save_precision]) for name, value in state.items()}
    check_lora(tensors)
    write_tensors(path, tensors, with_hashes(tensors, metadata))


def check_lora(tensors: Mapping[str, Tensor]) -> None:
    """Three tensors a module under a known prefix, alpha 0-dim and floating, everything finite.

    Raises:
        BrokenNetworkError: the first few that are not so.
    """
    modules = {name.split(".", 1)[0] for name in tensors}
    wanted = {f"{name}.{part}" for name in modules for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    wrong = sorted(wanted ^ set(tensors))
    wrong += [name for name in modules if not name.startswith(("lora_unet_", "lora_te_text_model_encoder_layers_"))]
    wrong += [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    wrong += [name for name, value in tensors.items() if name.endswith(".alpha") and value.dim() != 0]
    wrong += [name for name, value in tensors.items() if not value.is_floating_point()]
    if wrong or not modules:
        raise BrokenNetworkError(
            f"the LoRA was not written: {len(wrong)} tensors are missing, misnamed or not finite, e.g. {wrong[:3]}"
        )


def with_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with sshs_model_hash (tensor bytes) and sshs_legacy_hash (kohya's old 8 hex); minimum stays so."""
    if "modelspec.sai_model_spec" not in metadata:
        return dict(metadata)
    plain = {name: value.contiguous() for name, value in tensors.items()}
    old = save(plain, {name: text for name, text in metadata.items() if name.startswith("ss_")})
    return {
        **metadata,
        "sshs_model_hash": tensor_hash(tensors),
        "sshs_legacy_hash": hashlib.sha256(old[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
    }
