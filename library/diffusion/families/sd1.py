"""SD 1.x: CLIP-L as text encoder, 768 numbers a token, noise prediction."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint
from torch import Tensor
from transformers import CLIPTextModel

from library.diffusion.families.family import WITHOUT_CHECKER, Family, TextPart, Version

CLIP_PREFIX = "cond_stage_model.transformer."  # very old files continue without "text_model."
SETTINGS = Path(__file__).parent / "sd15"


def text_encoder_tensors(text_encoder: Any, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder's tensors under transformers' names."""
    return dict(convert_ldm_clip_checkpoint(dict(checkpoint)))


SD1 = Family(
    name="SD 1.x",
    v2=False,
    size=512,
    settings=SETTINGS,
    vocabulary=SETTINGS / "tokenizer",
    texts=(
        TextPart(
            role="text encoder",
            folder="text_encoder",
            tokenizer="tokenizer",
            kind=CLIPTextModel,
            file_prefix=f"{CLIP_PREFIX}text_model.",
            lora_prefix="lora_te_text_model_encoder_layers",
            tensors=text_encoder_tensors,
        ),
    ),
    context_width=768,
    version=Version("sd_v1", "stable-diffusion-v1/lora"),
    velocity_version=None,
    pipeline="StableDiffusionPipeline",
    pipeline_options=WITHOUT_CHECKER,
)
