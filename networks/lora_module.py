"""One low-rank layer beside a frozen one: what it computes, its dropouts, its norm."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from networks.lora_args import Dropouts


class LoRAModule(nn.Module):
    """One low-rank correction: layer(x) + up(down(x)) * alpha / rank * multiplier (arXiv 2106.09685 eq. 3)."""

    def __init__(
        self, lora_name: str, layer: nn.Module, *, rank: int, alpha: float, dropouts: Dropouts, multiplier: float
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
            kernel, stride = cast("tuple[int, int]", layer.kernel_size), cast("tuple[int, int]", layer.stride)
            padding = cast("str | tuple[int, int]", layer.padding)
            self.lora_down: nn.Conv2d | nn.Linear = nn.Conv2d(
                layer.in_channels, rank, kernel, stride, padding, bias=False
            )
            self.lora_up: nn.Conv2d | nn.Linear = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
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
        self.dropouts = dropouts
        self._drops = dropouts != Dropouts(0.0, 0.0, 0.0)
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
        if self._drops and self.training:
            return self._forward_with_dropouts(inputs, outputs)
        # The scale meets the rank-wide activation, not the output: the same product with less to multiply
        return outputs + self.lora_up(self.lora_down(inputs) * (self.scale * self.multiplier))

    def _forward_with_dropouts(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """As in kohya: a module may be left out; ranks left out for a picture scale the others up.

        The draws come from torch's global generator, which the trainer seeds for each step.
        """
        chances = self.dropouts
        if chances.module and torch.rand(1) < chances.module:
            return outputs
        low = self.lora_down(inputs)
        if chances.neuron:
            low = nn.functional.dropout(low, chances.neuron)
        if chances.rank:
            kept = torch.rand(low.shape[0], self.rank, device=low.device) > chances.rank  # [B, r]
            spread = {2: kept, 3: kept[:, None], 4: kept[:, :, None, None]}[low.dim()]
            low = low * spread / (1 - chances.rank)
        return outputs + self.lora_up(low * (self.scale * self.multiplier))

    @torch.no_grad()
    def change_norm(self) -> Tensor:
        """Frobenius norm [] of up @ down * scale, from the r x r Gram matrices: |UD|^2 = sum(U'U * DD')."""
        up, down = self.lora_up.weight.flatten(1), self.lora_down.weight.flatten(1)  # [out, r], [r, in]
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * self.scale

    @torch.no_grad()
    def shrink(self, ratio: float) -> None:
        """Multiply the product of the factors by ``ratio``, half of it (as a power) on each."""
        self.lora_up.weight.mul_(ratio**0.5)
        self.lora_down.weight.mul_(ratio**0.5)
