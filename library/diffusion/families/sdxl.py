"""SDXL base: CLIP-L and OpenCLIP-bigG side by side, 2,048 numbers a token, and conditions on caption and framing.

arXiv 2307.01952. The base model predicts noise; models that were tuned to velocity have the same tensors.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from library.diffusion.conditioning import Conditioning
from library.diffusion.families.family import Family, TextPart, Version
from library.diffusion.families.sd1 import SD1
from library.diffusion.text import joined_pieces
from library.errors import InputError
from library.incoming.files import is_file, is_folder
from library.lora_files.sdxl_names import original_name
from library.tensor_files import tensor_names

FILE_PREFIX = "conditioner.embedders."  # of the text encoders' tensors in a single file
REFINER_PREFIX = "conditioner.embedders.0.model."  # its only text encoder is bigG
CLIP_PREFIX, OPEN_CLIP_PREFIX = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
ARCHITECTURE = "stable-diffusion-xl-v1-base/lora"
IMPLEMENTATION = "https://github.com/Stability-AI/generative-models"
VELOCITY_MARK = "v_pred"  # a tensor by which a single file says that it predicts velocity


def encode_both(text_encoders: Any, tokens: Tensor, clip_skip: int, token_weights: Tensor | None) -> Conditioning:
    """The last but one states of both encoders without their final norm, side by side, and bigG's caption state.

    Args:
        text_encoders: CLIP-L, bigG.
        tokens: [B, 2, pieces, 77], the ids for each encoder.
        clip_skip: not read: SDXL was trained on these states, and kohya takes no others.
        token_weights: [B, pieces, 77], factors of the states, not renormalised; None = all 1.
    """
    states, outputs = [], []
    for text_encoder, ids in zip(text_encoders, tokens.unbind(1), strict=True):
        batch, pieces, length = ids.shape
        outputs.append(text_encoder(ids.reshape(batch * pieces, length), output_hidden_states=True))
        states.append(joined_pieces(outputs[-1].hidden_states[-2], (batch, pieces), token_weights))
    pooled = outputs[-1].text_embeds.reshape(batch, pieces, -1)[
        :, 0
    ]  # of a long caption the first piece's, as in kohya
    return Conditioning(torch.cat(states, dim=-1), pooled)


def first_tensors(text_encoder: Any, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP-L's tensors under transformers' names."""
    return dict(convert_ldm_clip_checkpoint({k: v for k, v in checkpoint.items() if k.startswith(CLIP_PREFIX)}))


def second_tensors(text_encoder: Any, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """bigG's tensors under transformers' names."""
    return dict(convert_open_clip_checkpoint(text_encoder, dict(checkpoint), prefix=OPEN_CLIP_PREFIX))


def layer_name(path: str) -> str:
    """kohya's SDXL files name the UNet's layers as the original layout does."""
    return original_name(path.replace(".", "_"))


SDXL = Family(
    name="SDXL",
    v2=False,
    size=1024,
    settings=Path(__file__).parent / "sdxl",
    vocabulary=SD1.vocabulary,  # the same word list for both; the second tokenizer pads with id 0 ("!")
    texts=(
        TextPart(
            role="text encoder",
            folder="text_encoder",
            tokenizer="tokenizer",
            kind=CLIPTextModel,
            file_prefix=CLIP_PREFIX,
            lora_prefix="lora_te1_text_model_encoder_layers",
            tensors=first_tensors,
        ),
        TextPart(
            role="second text encoder",
            folder="text_encoder_2",
            tokenizer="tokenizer_2",
            kind=CLIPTextModelWithProjection,
            file_prefix=OPEN_CLIP_PREFIX,
            lora_prefix="lora_te2_text_model_encoder_layers",
            tensors=second_tensors,
        ),
    ),
    context_width=2048,
    version=Version("sdxl_base_v1-0", ARCHITECTURE, IMPLEMENTATION),
    velocity_version=Version("sdxl_base_v1-0", ARCHITECTURE, IMPLEMENTATION),  # kohya has no other name for it
    pipeline="StableDiffusionXLPipeline",
    pipeline_options={"add_watermarker": False, "force_zeros_for_empty_prompt": False},
    reads_clip_skip=False,
    blocks_by_number=True,
    encode=encode_both,
    layer_name=layer_name,
)


def is_sdxl_file(names: Iterable[str]) -> bool:
    """Whether the tensors of a single file, by name, are those of SDXL, base or refiner."""
    return any(name.startswith(FILE_PREFIX) for name in names)


def refiner_refused(where: object) -> InputError:
    """What is said of SDXL's refiner."""
    return InputError(
        f"'{where}' is SDXL's refiner, which goes on from what the base model drew, with one of the two text "
        "encoders; give the base model (sd_xl_base)"
    )


def is_sdxl_place(place: Path) -> bool | None:
    """Whether a base model's file or folder is one of SDXL, tensors unopened; None where that is not seen."""
    if is_folder(place / "unet"):
        return is_folder(place / "text_encoder_2")
    if place.suffix.lower() != ".safetensors" or not is_file(place):
        return None
    try:
        return is_sdxl_file(tensor_names(place))
    except InputError:  # opening the model says what is wrong with it
        return None
