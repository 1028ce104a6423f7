"""Merges LoRA files into the base model before its use, in training, audit and shadow runs."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.errors import Faults, InputError
from library.lora_files.families import check_width
from library.lora_files.lora_file import read_lora
from library.tensor_files import tensor_hash
from networks.weight_change import merge_weights


def merge_base_weights(model: Any, files: Sequence[str], multipliers: Sequence[str]) -> None:
    """Merge LoRA files into UNet and text encoder; the model's fingerprint then identifies the merged model.

    Args:
        model: with ``unet``, ``text_encoder`` and ``fingerprint``.
        multipliers: strength of each file; missing ones are 1.

    Raises:
        InputError: every file that cannot be read or does not fit.
    """
    faults = Faults()
    if len(multipliers) > len(files):
        faults.add(f"base_weights_multiplier has {len(multipliers)} numbers for {len(files)} base_weights")
    strengths = []
    for text in multipliers:
        try:
            strengths.append(float(text))
        except ValueError:
            faults.add(f"base_weights_multiplier must be numbers, got {text!r}")
    faults.raise_if_any()
    for file, strength in zip(files, [*strengths, *[1.0] * (len(files) - len(strengths))], strict=True):
        try:
            tensors = read_lora(Path(file)).tensors
            check_width(file, tensors, model.unet.config.cross_attention_dim, model.family.name)
        except InputError as error:
            for message in error.messages:
                faults.add(f"base_weights {message}")
            continue
        try:
            merge_weights(model.unet, model.text_encoder, tensors, strength)
        except InputError as error:
            faults.add(f"base_weights '{file}': {error}")
            continue
        words = f"{model.fingerprint} + {strength!r} * {tensor_hash(tensors)}"
        model.fingerprint = hashlib.sha256(words.encode()).hexdigest()
    faults.raise_if_any()
