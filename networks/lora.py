"""LoRA behind kohya's module protocol: low-rank layers, where they go, and their names in the file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from library.check import InputError, shortened
from library.tensor_files import read_tensors

UNET_PREFIX = "lora_unet"
TEXT_PREFIX = "lora_te_text_model_encoder_layers"
TEXT_LAYERS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
LAYERS_PER_BLOCK = 10  # of a transformer block: 2 attentions of 4, and 2 of the feed-forward


class LoRAModule(nn.Module):
    """One low-rank correction: layer(x) + up(down(x)) * alpha / rank * multiplier (arXiv 2106.09685 eq. 3)."""

    def __init__(
        self, lora_name: str, layer: nn.Module, *, rank: int, alpha: float, dropout: float, multiplier: float
    ) -> None:
        """
        Args:
            layer: Linear or Conv2d; it is not registered as a child.
            alpha: 0 means alpha = rank.
        """
        super().__init__()
        self.lora_name = lora_name
        self.rank = rank
        self.multiplier = multiplier
        if isinstance(layer, nn.Conv2d):
            self.lora_down: nn.Module = nn.Conv2d(
                layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, bias=False
            )
            self.lora_up: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        elif isinstance(layer, nn.Linear):
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            raise TypeError(f"{lora_name}: a {type(layer).__name__} takes no LoRA")
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor(float(alpha or rank)))
        self.scale = float(alpha or rank) / rank
        self.dropout = dropout
        self._layer = [layer]  # in a list, so that it is no child
        self._original_forward = layer.forward

    def apply_to(self) -> None:
        """Take the layer's place in the model."""
        self._layer[0].forward = self.forward  # type: ignore[method-assign, assignment]

    def remove(self) -> None:
        """Give the layer its own forward back."""
        self._layer[0].forward = self._original_forward  # type: ignore[method-assign]

    def forward(self, inputs: Tensor) -> Tensor:
        """Layer output plus the correction; with multiplier 0 the layer's own output bit for bit."""
        outputs = self._original_forward(inputs)
        if self.multiplier == 0:
            return outputs
        low = self.lora_down(inputs)
        if self.dropout and self.training:
            low = nn.functional.dropout(low, self.dropout)
        return outputs + self.lora_up(low) * (self.scale * self.multiplier)


class LoRANetwork(nn.Module):
    """All LoRA modules of a model, under kohya's names, so that ``state_dict()`` is the file's content."""

    def __init__(self, unet_loras: list[LoRAModule], text_encoder_loras: list[LoRAModule]) -> None:
        super().__init__()
        self.unet_loras = unet_loras
        self.text_encoder_loras = text_encoder_loras

    def apply_to(self, text_encoder: Any, unet: Any, apply_text_encoder: bool, apply_unet: bool) -> None:
        """Inject into the parts asked for; the other part gets no LoRA and none in the file."""
        self.text_encoder_loras = self.text_encoder_loras if apply_text_encoder else []
        self.unet_loras = self.unet_loras if apply_unet else []
        for lora in self.modules_of_both():
            lora.apply_to()
            self.add_module(lora.lora_name, lora)

    def modules_of_both(self) -> list[LoRAModule]:
        """Text-encoder modules, then UNet modules, in the order of the file."""
        return self.text_encoder_loras + self.unet_loras

    def remove(self) -> None:
        """Take every module out of the model again."""
        for lora in self.modules_of_both():
            lora.remove()

    def set_multiplier(self, multiplier: float) -> None:
        """Strength of the whole network; 0 gives the base model's own output."""
        for lora in self.modules_of_both():
            lora.multiplier = multiplier

    def enable_gradient_checkpointing(self) -> None:
        """Part of the protocol; the model does the checkpointing."""

    def prepare_optimizer_params(
        self, text_encoder_lr: float | None, unet_lr: float | None, learning_rate: float
    ) -> list[dict[str, Any]]:
        """Parameter groups with their learning rates; a rate of 0 leaves its group out."""
        groups: list[dict[str, Any]] = []
        for loras, rate in ((self.text_encoder_loras, text_encoder_lr), (self.unet_loras, unet_lr)):
            used = learning_rate if rate is None else rate
            parameters = [parameter for lora in loras for parameter in lora.parameters()]
            if parameters and used > 0:
                groups.append({"params": parameters, "lr": used})
        return groups

    def prepare_grad_etc(self, text_encoder: Any, unet: Any) -> None:
        """Make every factor trainable."""
        self.requires_grad_(True)

    def on_epoch_start(self, text_encoder: Any, unet: Any) -> None:
        """Training mode, in which dropout acts."""
        self.train()

    def get_trainable_params(self) -> list[nn.Parameter]:
        """The factors, for clipping."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def create_network(
    multiplier: float,
    network_dim: int | None,
    network_alpha: float | None,
    vae: Any,
    text_encoder: Any,
    unet: Any,
    neuron_dropout: float | None = None,
) -> LoRANetwork:
    """A fresh LoRA for the attention, feed-forward and projection layers of the UNet and for the text encoder.

    Raises:
        InputError: when the number of layers found differs from the number that the model's config implies.
    """
    rank = 4 if network_dim is None else network_dim
    alpha = 1.0 if network_alpha is None else network_alpha
    parts = []
    for targets, expected, part in (
        (unet_targets(unet), _expected_unet_count(unet), "UNet"),
        (text_targets(text_encoder), text_encoder.config.num_hidden_layers * len(TEXT_LAYERS), "text encoder"),
    ):
        if len(targets) != expected:
            raise InputError(f"{part}: {len(targets)} layers for LoRA were found, its config implies {expected}")
        parts.append(
            [
                LoRAModule(name, layer, rank=rank, alpha=alpha, dropout=neuron_dropout or 0.0, multiplier=multiplier)
                for name, layer in targets.items()
            ]
        )
    return LoRANetwork(parts[0], parts[1])


def create_network_from_weights(
    multiplier: float,
    file: str | Path | None,
    vae: Any,
    text_encoder: Any,
    unet: Any,
    weights_sd: Mapping[str, Tensor] | None = None,
    for_inference: bool = False,
) -> tuple[LoRANetwork, dict[str, Tensor]]:
    """A network with the ranks and alphas of a kohya file, not yet filled; and the file's tensors.

    Convolutions (LoCon) are taken as they come.

    Raises:
        InputError: tensors that fit no layer of this model, or that are not finite.
    """
    if weights_sd is None and file is None:
        raise ValueError("create_network_from_weights needs a file or its tensors")
    weights = dict(weights_sd) if weights_sd is not None else read_tensors(Path(str(file)))[0]
    bad = [name for name, value in weights.items() if not torch.isfinite(value.float()).all()]
    if bad:
        raise InputError(f"'{file}' has NaN or Inf in {len(bad)} tensors: {shortened(sorted(bad), 3)}; it is broken")
    layers = _all_layers(unet, text_encoder)
    names = sorted({name.split(".")[0] for name in weights})
    strange = [name for name in names if name not in layers or f"{name}.lora_down.weight" not in weights]
    if strange or not names:
        raise InputError(
            f"'{file}' does not fit this model: {len(strange)} of {len(names)} modules have no layer here: "
            f"{shortened(strange, 3)}; it was made for another base model, or is no LoRA"
        )
    unet_loras: list[LoRAModule] = []
    text_loras: list[LoRAModule] = []
    for name in names:
        down = weights[f"{name}.lora_down.weight"]
        alpha = float(weights[f"{name}.alpha"]) if f"{name}.alpha" in weights else float(down.shape[0])
        lora = LoRAModule(name, layers[name], rank=down.shape[0], alpha=alpha, dropout=0.0, multiplier=multiplier)
        if lora.lora_down.weight.shape != down.shape:
            raise InputError(
                f"'{file}' does not fit this model: {name} is {tuple(down.shape)}, the layer here takes "
                f"{tuple(lora.lora_down.weight.shape)}; it was made for another base model"
            )
        weights.setdefault(f"{name}.alpha", torch.tensor(alpha))
        (unet_loras if name.startswith(UNET_PREFIX) else text_loras).append(lora)
    return LoRANetwork(unet_loras, text_loras), weights


def unet_targets(unet: Any) -> dict[str, nn.Module]:
    """Linear layers and 1x1 convolutions inside the UNet's transformers, by their names in the file."""
    return {
        f"{UNET_PREFIX}_{path.replace('.', '_')}": layer
        for path, layer in unet.named_modules()
        if "attentions" in path.split(".") and _takes_lora(layer)
    }


def text_targets(text_encoder: Any) -> dict[str, nn.Module]:
    """The text encoder's attention and MLP layers; names come from a table, whatever the module tree is called."""
    inner = getattr(text_encoder, "text_model", text_encoder)
    return {
        f"{TEXT_PREFIX}_{index}_{path.replace('.', '_')}": layer.get_submodule(path)
        for index, layer in enumerate(inner.encoder.layers)
        for path in TEXT_LAYERS
    }


def _takes_lora(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))


def _expected_unet_count(unet: Any) -> int:
    """12 layers for each transformer of one block, from the model's config."""
    config = unet.config
    depth = config.transformer_layers_per_block
    if not isinstance(depth, int):
        raise InputError("transformer_layers_per_block of the UNet differs from level to level; only SD 1.x is trained")
    per_block = config.layers_per_block
    down = sum(per_block for kind in config.down_block_types if kind.startswith("CrossAttn"))
    up = sum(per_block + 1 for kind in config.up_block_types if kind.startswith("CrossAttn"))
    return (down + up + 1) * (2 + LAYERS_PER_BLOCK * depth)


def _all_layers(unet: Any, text_encoder: Any) -> dict[str, nn.Module]:
    """Every Linear and Conv2d that a kohya file may name."""
    layers = {
        f"{UNET_PREFIX}_{path.replace('.', '_')}": layer
        for path, layer in unet.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }
    return layers | text_targets(text_encoder)
