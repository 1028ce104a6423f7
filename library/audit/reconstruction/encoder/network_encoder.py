"""From a LoRA's matrices to a prompt embedding: the network encoder of arXiv 2409.08482, at the size of a config."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from library.audit.reconstruction.encoder.matrix_encoder import MatrixEncoder, MatrixShape
from library.errors import InputError

LONGEST = 10_000.0  # period of the slowest wave of the step's embedding


@dataclass(frozen=True)
class EncoderSize:
    """How large an encoder is; ``demo_size`` and ``paper_size`` are the two that are used."""

    hidden: int
    layers: int
    heads: int
    activation: str  # of the body's feed-forward layers
    frozen_body: bool  # the body is CLIP's and is not trained
    context_tokens: int
    context_width: int


def demo_size(context_width: int) -> EncoderSize:
    """The demo's: no CLIP of that size exists, so its transformer is trained."""
    return EncoderSize(64, 2, 4, "gelu", False, 8, context_width)


def paper_size(context_width: int = 768) -> EncoderSize:
    """Stable Diffusion's: the body of CLIP ViT-B/32's text encoder, frozen; 77 tokens."""
    return EncoderSize(512, 12, 8, "quick_gelu", True, 77, context_width)


def step_embedding(steps: Tensor, width: int) -> Tensor:
    """[K, width] cosines and sines of the number of steps a LoRA was trained for (arXiv 1706.03762 section 3.5)."""
    half = width // 2
    periods = torch.exp(-math.log(LONGEST) * torch.arange(half, device=steps.device) / half)
    angles = steps[:, None].float() * periods
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def new_body(size: EncoderSize) -> Any:
    """Layers and final norm of a CLIP text encoder with random weights; it has no word or position embedding."""
    from transformers import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPEncoder

    config = CLIPTextConfig(
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        hidden_act=size.activation,
        attn_implementation="sdpa",
    )
    return nn.ModuleDict({"encoder": CLIPEncoder(config), "final_layer_norm": nn.LayerNorm(size.hidden)})


def body_of_clip(text_encoder: Any) -> Any:
    """The same parts of a pretrained ``CLIPTextModel``."""
    inner = getattr(text_encoder, "text_model", text_encoder)  # transformers below 5.6 nests the model once more
    return nn.ModuleDict({"encoder": inner.encoder, "final_layer_norm": inner.final_layer_norm})


@dataclass(frozen=True)
class Code:
    """What the encoder says of K LoRAs: a normal distribution of prompt embeddings."""

    mean: Tensor  # [K, T, D]
    log_variance: Tensor  # [K, T, D]

    def drawn(self, noise: Tensor) -> Tensor:
        """mean + exp(log variance / 2) noise, [K, T, D]: what the decoder is trained with."""
        return self.mean + (self.log_variance / 2).exp() * noise

    def divergence(self) -> Tensor:
        """KL to the standard normal, [], mean over LoRAs and numbers (arXiv 1312.6114 appendix B)."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance).mean()


class NetworkEncoder(nn.Module):
    """Tokens [task; training step; one of each matrix] -> transformer -> mean and log variance of an embedding.

    The body sees all positions from both sides, and the first ``context_tokens`` of its answers are read.
    """

    def __init__(self, shapes: Sequence[MatrixShape], size: EncoderSize, body: Any = None) -> None:
        """
        Args:
            body: of ``body_of_clip``; None: random weights of that size.

        Raises:
            InputError: more context tokens than positions.
        """
        super().__init__()
        if size.context_tokens > len(shapes) + 2:
            raise InputError(
                f"{size.context_tokens} context tokens are read, but {len(shapes)} matrices give only "
                f"{len(shapes) + 2} positions; choose fewer context tokens"
            )
        self.shapes, self.size = tuple(shapes), size
        self.matrices = MatrixEncoder(shapes, size.hidden)
        self.task = nn.Parameter(torch.randn(size.hidden) / math.sqrt(size.hidden))
        self.step = nn.Sequential(nn.Linear(size.hidden, size.hidden), nn.SiLU(), nn.Linear(size.hidden, size.hidden))
        self.first_norm = nn.LayerNorm(size.hidden)
        self.body = new_body(size) if body is None else body
        self.body.requires_grad_(not size.frozen_body)
        self.mean = nn.Linear(size.hidden, size.context_width)
        self.log_variance = nn.Linear(size.hidden, size.context_width)

    def forward(self, matrices: Sequence[Tensor], steps: Tensor) -> Code:
        """
        Args:
            matrices: [K, r, w] of each, in the order of ``shapes``; see ``matrices_of``.
            steps: [K] how many steps each LoRA was trained for: not the timestep of the diffusion.
        """
        tokens = self.matrices(matrices)  # [K, M, h]
        task = self.task.expand(len(tokens), 1, -1)
        step = self.step(step_embedding(steps.to(tokens.device), self.size.hidden))[:, None]
        here = self.first_norm(torch.cat([task, step, tokens], dim=1))  # [K, M + 2, h]
        here = self.body["encoder"](inputs_embeds=here).last_hidden_state
        here = self.body["final_layer_norm"](here)[:, : self.size.context_tokens]
        return Code(self.mean(here), self.log_variance(here))

    def trained_parameters(self) -> list[nn.Parameter]:
        """All but a frozen body."""
        return [value for value in self.parameters() if value.requires_grad]
