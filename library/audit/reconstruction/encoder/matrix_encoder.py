"""One small encoder for each LoRA matrix: convolutions along its long side, then a linear map to one token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from library.audit.reconstruction.stacked_lora import Factors
from library.errors import Faults

CONVOLUTIONS, KERNEL = 8, 3  # four stages of two; the last one leaves one channel
SLOPE = 0.01  # of LeakyReLU, torch's own


@dataclass(frozen=True)
class MatrixShape:
    """One factor of one module, its short side first."""

    module: str
    part: str  # "down" or "up"
    rank: int
    width: int  # the long side


def matrix_shapes(factors: Factors) -> tuple[MatrixShape, ...]:
    """Both factors of every module, in the order of their names: SD 1.x with ``to_q`` and ``to_v`` has 128."""
    return tuple(
        MatrixShape(name, part, *shape)
        for name in sorted(factors.down)
        for part, shape in (
            ("down", tuple(factors.down[name].shape[1:])),
            ("up", tuple(factors.up[name].shape[:0:-1])),
        )
    )


def matrices_of(factors: Factors, shapes: Sequence[MatrixShape], start: Factors | None = None) -> list[Tensor]:
    """[K, r, w] of every matrix, in the order of ``shapes``, without a gradient.

    Args:
        start: the untrained factors, which are subtracted: only for an attacker who knows A0, a stronger setting.

    Raises:
        InputError: modules that are missing or too many, other ranks or sides, values that are not finite.
    """
    faults, found = Faults(), []
    strange = sorted(set(factors.down) - {shape.module for shape in shapes})
    if strange:
        faults.add(f"{len(strange)} modules are unknown to this encoder, for example {strange[0]}")
    for shape in shapes:
        value = (factors.down if shape.part == "down" else factors.up).get(shape.module)
        if value is None:
            faults.add(f"{shape.module} is missing; the encoder was trained with {len(shapes)} matrices")
            continue
        if start is not None:
            value = value - (start.down if shape.part == "down" else start.up)[shape.module]
        value = (value if shape.part == "down" else value.transpose(1, 2)).detach()
        if value.shape[1:] != (shape.rank, shape.width):
            faults.add(
                f"{shape.module}.{shape.part} is {tuple(value.shape[1:])} (rank, long side), the encoder was trained "
                f"with {(shape.rank, shape.width)}; give a LoRA of that base and rank, or train another encoder"
            )
        elif not value.isfinite().all():
            faults.add(f"{shape.module}.{shape.part} holds NaN or infinity; the LoRA is damaged")
        found.append(value)
    faults.raise_if_any()
    return found


class EqualMatrices(nn.Module):
    """The encoders of G matrices of one shape, nothing shared between them (grouped convolutions do all at once).

    Of each: 4 stages of (LeakyReLU but in the first one, InstanceNorm, Conv 3, LeakyReLU, InstanceNorm, Conv 3), the
    last convolution to one channel; tanh; Linear(w -> h). As released with arXiv 2409.08482. InstanceNorm has no
    weights and takes away the mean and the scale of every row, so the size of the weights is not seen.
    """

    def __init__(self, count: int, rank: int, width: int, hidden: int) -> None:
        super().__init__()
        self.count = count
        outputs = [rank] * (CONVOLUTIONS - 1) + [1]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(count * rank, count * out, KERNEL, padding=KERNEL // 2, groups=count) for out in outputs
        )
        bound = 1 / math.sqrt(width)  # torch's own start of a linear layer
        self.weight = nn.Parameter(torch.empty(count, width, hidden).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, hidden).uniform_(-bound, bound))

    def forward(self, matrices: Tensor) -> Tensor:
        """[K, G, r, w] -> tokens [K, G, h]."""
        here = matrices.flatten(1, 2)  # [K, G * r, w]
        for place, convolution in enumerate(self.convolutions):
            if place:
                here = functional.leaky_relu(here, SLOPE)
            here = convolution(functional.instance_norm(here))
        return torch.einsum("kgw,gwh->kgh", here.tanh(), self.weight) + self.bias


class MatrixEncoder(nn.Module):
    """Every matrix of a LoRA as one token, in the order of ``shapes``."""

    def __init__(self, shapes: Sequence[MatrixShape], hidden: int) -> None:
        super().__init__()
        kinds = sorted({(shape.rank, shape.width) for shape in shapes})
        self.places = [[i for i, one in enumerate(shapes) if (one.rank, one.width) == kind] for kind in kinds]
        self.of_shape = nn.ModuleList(
            EqualMatrices(len(places), *kind, hidden) for kind, places in zip(kinds, self.places, strict=True)
        )

    def forward(self, matrices: Sequence[Tensor]) -> Tensor:
        """[K, r, w] of each of M matrices -> tokens [K, M, h]."""
        found: dict[int, Tensor] = {}
        for places, encoder in zip(self.places, self.of_shape, strict=True):
            tokens = encoder(torch.stack([matrices[place] for place in places], dim=1))
            found |= {place: tokens[:, index] for index, place in enumerate(places)}
        return torch.stack([found[place] for place in range(len(found))], dim=1)
