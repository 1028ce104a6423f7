"""SD 2.x: OpenCLIP-H as text encoder, 1,024 numbers a token; 512 models predict noise, 768-v models velocity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from torch import Tensor
from transformers import CLIPTextModel

from library.diffusion.families.family import WITHOUT_CHECKER, Family, TextPart, Version
from library.diffusion.families.sd1 import SD1

OPEN_CLIP_PREFIX = "cond_stage_model.model."


def text_encoder_tensors(text_encoder: Any, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text encoder's tensors under transformers' names.

    A file holds all 24 layers of OpenCLIP-H; the model was trained on the 23rd's output, so the 24th is left out.
    """
    return dict(convert_open_clip_checkpoint(text_encoder, dict(checkpoint), prefix=OPEN_CLIP_PREFIX))


SD2 = Family(
    name="SD 2.x",
    v2=True,
    size=512,
    settings=Path(__file__).parent / "sd2",
    vocabulary=SD1.vocabulary,  # the same word list; SD 2.x pads with id 0 ("!") instead of the end token
    texts=(
        TextPart(
            role="text encoder",
            folder="text_encoder",
            tokenizer="tokenizer",
            kind=CLIPTextModel,
            file_prefix=OPEN_CLIP_PREFIX,
            lora_prefix="lora_te_text_model_encoder_layers",
            tensors=text_encoder_tensors,
        ),
    ),
    context_width=1024,
    version=Version("sd_v2", "stable-diffusion-v2-512/lora"),
    velocity_version=Version("sd_v2_v", "stable-diffusion-v2-768-v/lora"),
    pipeline="StableDiffusionPipeline",
    pipeline_options=WITHOUT_CHECKER,
)
