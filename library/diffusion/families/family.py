"""What a model family is: everything that differs between Stable Diffusion's generations, in one value each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

UNET_PREFIX = "model.diffusion_model."  # of a single file in the original layout; the same in every family here
VAE_PREFIX = "first_stage_model."


class Version(NamedTuple):
    """How a LoRA's metadata names the base model."""

    base_model: str  # kohya's ss_base_model_version
    architecture: str  # modelspec.architecture


@dataclass(frozen=True)
class Family:
    """One generation of models that this suite trains."""

    name: str  # for messages
    v2: bool  # what the option v2 must say
    settings: Path  # dimensions, schedule and tokenizer, which a single file comes without
    vocabulary: Path  # the tokenizer's folder that holds the word list
    text_prefix: str  # of the text encoder's tensors in a single file
    context_width: int  # of the text states
    linear_projections: bool  # in the UNet's transformers; else they are 1x1 convolutions
    lora_text_prefix: str  # of the text encoder's LoRA layers, before the layer's number
    version: Version  # of models that predict noise
    velocity_version: Version | None  # of models that predict velocity; None: the family has none
    text_encoder_tensors: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]
    """(text encoder, tensors of a single file) -> its tensors under transformers' names."""

    def version_of(self, *, velocity: bool) -> Version:
        """The metadata's names for a model of this family."""
        return (velocity and self.velocity_version) or self.version
