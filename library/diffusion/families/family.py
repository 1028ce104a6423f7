"""What a model family is: everything that differs between Stable Diffusion's generations, in one value each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from library.diffusion.conditioning import Conditioning
from library.diffusion.text import encode_text

UNET_PREFIX = "model.diffusion_model."  # of a single file in the original layout; the same in every family here
VAE_PREFIX = "first_stage_model."


class Version(NamedTuple):
    """How a LoRA's metadata names the base model."""

    base_model: str  # kohya's ss_base_model_version
    architecture: str  # modelspec.architecture
    implementation: str = "diffusers"  # modelspec.implementation


@dataclass(frozen=True)
class TextPart:
    """One text encoder of a family, with its tokenizer."""

    role: str  # for messages
    folder: str  # in diffusers layout
    tokenizer: str
    kind: Any  # class of transformers
    file_prefix: str  # of its tensors in a single file
    lora_prefix: str  # of its LoRA layers, before the layer's number
    tensors: Callable[[Any, Mapping[str, Tensor]], dict[str, Tensor]]
    """(text encoder, tensors of a single file) -> its tensors under transformers' names."""

    @property
    def lora_norm_prefix(self) -> str:
        """Of its other layers, before their path."""
        return self.lora_prefix.removesuffix("_encoder_layers")


def encode_one(text_encoder: Any, tokens: Tensor, clip_skip: int, token_weights: Tensor | None) -> Conditioning:
    """The states of a family with one text encoder."""
    return Conditioning(encode_text(text_encoder, tokens, clip_skip, token_weights))


def diffusers_layer_name(path: str) -> str:
    """A UNet layer's name behind ``lora_unet_``: its path in diffusers."""
    return path.replace(".", "_")


@dataclass(frozen=True)
class Family:
    """One generation of models that this suite trains."""

    name: str  # for messages
    v2: bool  # what the option v2 must say
    size: int  # pixels of a side that it was trained at
    settings: Path  # dimensions, schedule and tokenizer, which a single file comes without
    vocabulary: Path  # the tokenizer's folder that holds the word list
    texts: tuple[TextPart, ...]
    context_width: int  # of the text states
    version: Version  # of models that predict noise
    velocity_version: Version | None  # of models that predict velocity; None: the family has none
    pipeline: str  # diffusers' class
    pipeline_options: Mapping[str, Any]  # beside the parts
    reads_clip_skip: bool = True
    blocks_by_number: bool = False  # kohya counts all of the UNet's blocks, embeddings and output included
    encode: Callable[[Any, Tensor, int, Tensor | None], Conditioning] = encode_one
    """(text encoders as kohya passes them, tokens, clip_skip, token weights or None) -> states without a framing."""
    layer_name: Callable[[str], str] = diffusers_layer_name
    """Path of a UNet layer in diffusers -> its name in a LoRA file, behind ``lora_unet_``."""

    def version_of(self, *, velocity: bool) -> Version:
        """The metadata's names for a model of this family."""
        return (velocity and self.velocity_version) or self.version


WITHOUT_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
