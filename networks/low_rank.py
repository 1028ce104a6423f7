"""Arithmetic of low-rank matrices: singular values, cuts to a rank, sums of LoRAs without a rounding of their own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.errors import InputError
from library.lora_files.format import kind_of

METHODS = ("sv_ratio", "sv_fro", "sv_cumulative")
NOTHING = 1e-6  # a change whose largest singular value is below it is none, as in kohya


@dataclass(frozen=True)
class Factors:
    """A weight change: scale * up @ down."""

    up: Tensor  # [out, r]
    down: Tensor  # [r, in * k * k]
    scale: float  # alpha / r
    shape: tuple[int, ...]  # of the weight: (out, in) or (out, in, k, k)

    @property
    def rank(self) -> int:
        """The number of directions."""
        return self.up.shape[1]

    @property
    def is_wide(self) -> bool:
        """Whether the layer is a convolution wider than 1 x 1."""
        return len(self.shape) == 4 and self.shape[2:] != (1, 1)

    def product(self) -> Tensor:
        """The change; [*shape], fp32."""
        return (self.up.float() @ self.down.float() * self.scale).reshape(self.shape)

    def parts(self) -> dict[str, Tensor]:
        """The tensors of a LoRA module by their last names; the scale goes into alpha."""
        kernel = [1] * (len(self.shape) - 2)
        return {
            "lora_down.weight": self.down.reshape(self.rank, *self.shape[1:]),
            "lora_up.weight": self.up.reshape(self.shape[0], self.rank, *kernel),
            "alpha": torch.tensor(self.rank * self.scale, dtype=torch.float32),
        }


def factors_of(parts: Mapping[str, Tensor]) -> Factors | None:
    """The factors of a LoRA or LoCon module, a core between them taken into the lower one; None for other kinds.

    up core down: sum_ij up[o,i] core[i,j,h,w] down[j,c] is up times the convolution sum_j core[i,j,h,w] down[j,c].
    """
    kind = kind_of(frozenset(parts))
    if "dora_scale" in parts or kind not in ("LoRA", "LoCon with a core"):
        return None
    up, down = parts["lora_up.weight"], parts["lora_down.weight"]
    scale = float(parts["alpha"]) / down.shape[0]
    if kind == "LoCon with a core":
        core, inner = parts["lora_mid.weight"].float(), down.float().flatten(1)
        down = torch.einsum("ijhw,jc->ichw", core, inner)
    return Factors(up.flatten(1), down.flatten(1), scale, (up.shape[0], *down.shape[1:]))


def concatenated(terms: Sequence[tuple[Factors, float]]) -> Factors:
    """The sum of ratio * change over several LoRAs of one layer: the ranks add up, and no product is rounded.

    The largest of the strengths ratio * scale goes into alpha, and the others, divided by it, into their upper factors.
    Factors of one strength are therefore kept bit for bit. Source: [u1 u2] [d1; d2] = u1 d1 + u2 d2.

    Raises:
        InputError: layers of different shapes.
    """
    sizes = {(len(one.up), one.down.shape[1]) for one, _ in terms}
    if len(sizes) > 1:
        raise InputError(f"the files change a layer of different sizes, {' and '.join(map(str, sorted(sizes)))}")
    strengths = [ratio * one.scale for one, ratio in terms]
    common = max(abs(strength) for strength in strengths)
    ups = [
        one.up if strength == common else one.up.float() * (strength / common)
        for (one, _), strength in zip(terms, strengths, strict=True)
    ]
    dtype = torch.promote_types(ups[0].dtype, ups[-1].dtype)
    for up in ups:
        dtype = torch.promote_types(dtype, up.dtype)
    shape = max((one.shape for one, _ in terms), key=len)
    up = torch.cat([up.to(dtype) for up in ups], dim=1)
    return Factors(up, torch.cat([one.down.to(dtype) for one, _ in terms]), common, shape)


@dataclass(frozen=True)
class Decomposition:
    """A matrix as up @ down, sorted by singular value; each pair of a column and a row shares its value evenly."""

    up: Tensor  # [m, k]
    values: Tensor  # [k] singular values, descending, fp64
    down: Tensor  # [k, n]

    def cut(self, rank: int, shape: tuple[int, ...]) -> Factors:
        """The nearest matrix of a rank (Eckart and Young); alpha is the rank."""
        return Factors(self.up[:, :rank].float(), self.down[:rank].float(), 1.0, shape)

    def kept_energy(self, rank: int) -> float:
        """Share of the squared norm in the first directions; 1 for a change that is none."""
        whole = float(self.values.square().sum())
        return float(self.values[:rank].square().sum()) / whole if whole else 1.0

    def lost(self, rank: int) -> float:
        """The norm of the discarded singular values: the Frobenius norm of the error."""
        return float(torch.linalg.vector_norm(self.values[rank:]))


def decomposed(matrix: Tensor) -> Decomposition:
    """Singular values and directions of a matrix [m, n], from the smaller of its two Gram matrices in fp64.

    M M' = U S^2 U' and M = U (U' M): the product of all directions is M itself, whatever the small eigenvalues lost.
    A layer of 1,280 by 23,040 takes the eigenvectors of 1,280 by 1,280.
    """
    exact = matrix.double()
    if exact.shape[0] > exact.shape[1]:
        turned = decomposed(matrix.T)
        return Decomposition(turned.down.T, turned.values, turned.up.T)
    _, vectors = torch.linalg.eigh(exact @ exact.T)
    left = vectors.flip(1)  # ascending -> descending
    rows = left.T @ exact
    values, order = torch.linalg.vector_norm(rows, dim=1).sort(descending=True)
    root = values.sqrt()
    inverse = torch.where(values > 0, 1 / root.clamp_min(torch.finfo(root.dtype).tiny), 0.0)
    return Decomposition(left[:, order] * root, values, rows[order] * inverse[:, None])


def decomposed_factors(factors: Factors) -> Decomposition:
    """The same of a product of factors, at the cost of their rank: QR of both, then the r x r core between them."""
    left, upper = torch.linalg.qr(factors.up.double())  # [m, r] [r, r]
    right, lower = torch.linalg.qr(factors.down.double().T)  # [n, r] [r, r]
    vectors, values, others = torch.linalg.svd(upper @ lower.T * factors.scale, full_matrices=False)
    root = values.sqrt()
    return Decomposition(left @ vectors * root, values, root[:, None] * (others @ right.T))


@dataclass(frozen=True)
class RankChoice:
    """How many directions to keep: at most ``rank``, and with a method as many as it asks for."""

    rank: int
    method: str | None = None  # of METHODS
    param: float | None = None

    def of(self, values: Tensor) -> int:
        """The rank for singular values in descending order; at least 1.

        sv_ratio: those above the largest / param. sv_cumulative: the shortest prefix whose sum is the share param of
        all. sv_fro: the shortest prefix whose norm is the share param of the whole.
        """
        most = min(self.rank, len(values))
        if self.method is None or self.param is None:
            return most
        if float(values[0]) <= NOTHING:
            return 1
        if self.method == "sv_ratio":
            wanted = int((values > values[0] / self.param).sum())
        else:
            power = 1 if self.method == "sv_cumulative" else 2
            sums = (values**power).cumsum(0)
            wanted = int((sums < self.param**power * sums[-1] * (1 - 1e-12)).sum()) + 1
        return max(1, min(wanted, most))


def clamped(factors: Factors, quantile: float) -> Factors:
    """Both factors held within the quantile of their values, as kohya's extraction does; it costs exactness."""
    values = torch.cat([factors.up.flatten(), factors.down.flatten()]).abs().sort().values
    most = float(values[min(len(values) - 1, math.floor(quantile * len(values)))])
    return Factors(factors.up.clamp(-most, most), factors.down.clamp(-most, most), factors.scale, factors.shape)
