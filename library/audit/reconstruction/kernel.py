"""The gauge-invariant kernel: LoRAs are compared by what they add to the weights, never by their factors.

(B, A) and (B G^-1, G A) are the same LoRA. Whoever reads B and A themselves reads the random start as well; the inner
product of the changes B A is the same under every G and needs no forward pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.reconstruction.stacked_lora import Factors
from library.errors import InputError, shortened

BLOCK = 64  # LoRAs a block of rows, which bounds memory
RIDGE = 0.1  # share of the kernel's mean diagonal


def module_kernels(first: Factors, second: Factors) -> dict[str, Tensor]:
    """<scale B_i A_i, scale B_j A_j>_F of every module, [n, m] each: sum((B_i^T B_j) * (A_i A_j^T)).

    The change itself is never formed, and the ranks of the two sides may differ.

    Raises:
        InputError: modules that one side lacks.
    """
    other = sorted(set(first.down) ^ set(second.down))
    if other:
        raise InputError(
            f"{len(other)} modules are on one side alone: {shortened(other, 3)}; LoRA and shadow LoRAs must have the "
            "same layers"
        )
    kernels = {}
    for name in first.down:
        scale = first.scale_of(name) * second.scale_of(name)
        rows = [
            _block(first.up[name][start : start + BLOCK], first.down[name][start : start + BLOCK],
                   second.up[name], second.down[name])
            for start in range(0, first.count, BLOCK)
        ]  # fmt: skip
        kernels[name] = torch.cat(rows) * scale
    return kernels


def _block(up_i: Tensor, down_i: Tensor, up_j: Tensor, down_j: Tensor) -> Tensor:
    """[n, m] for up [n, d_out, r] and down [n, r, d_in], [m, ...] of the other side."""
    (n, width, r), (m, _, s) = up_i.shape, up_j.shape
    left = up_i.double().transpose(1, 2).reshape(n * r, width) @ up_j.double().transpose(1, 2).reshape(m * s, width).T
    right = down_i.double().reshape(n * r, -1) @ down_j.double().reshape(m * s, -1).T
    return (left * right).reshape(n, r, m, s).sum((1, 3))


@dataclass(frozen=True)
class KernelRidge:
    """Ridge regression from LoRAs to public coefficients, in the kernel's dual form. Fitted on shadows alone."""

    shadows: Factors
    scales: Mapping[str, float]  # c_m: mean over the shadows of k_m(i, i)
    weights: Tensor  # [n, C]
    mean: Tensor  # [C] of the targets
    lengths: Mapping[str, Tensor] | None  # [n] sqrt(k_m(i, i)) with the cosine form

    def predict(self, factors: Factors) -> Tensor:
        """[V, C]: mean Y + k(v, shadows) W."""
        kernels = module_kernels(factors, self.shadows)
        if self.lengths is None:
            total = sum(kernel / self.scales[name] for name, kernel in kernels.items())
        else:
            own = own_lengths(factors)
            total = sum(
                kernel / (own[name][:, None] * self.lengths[name]).clamp(min=1e-30) for name, kernel in kernels.items()
            )
        assert isinstance(total, Tensor)
        return (self.mean + total @ self.weights).float()


def own_lengths(factors: Factors) -> dict[str, Tensor]:
    """Frobenius norm [n] of every change."""
    lengths = {}
    for name, down in factors.down.items():
        up, low = factors.up[name].double(), down.double()
        squares = ((up.transpose(1, 2) @ up) * (low @ low.transpose(1, 2))).sum((1, 2)).clamp(min=0)
        lengths[name] = squares.sqrt() * abs(factors.scale_of(name))
    return lengths


def fit_kernel(shadows: Factors, targets: Tensor, ridge: float = RIDGE, *, cosine: bool = False) -> KernelRidge:
    """W = (K + ridge * mean(diag K) * I)^-1 (Y - mean Y) with K = sum over modules of k_m / c_m.

    Args:
        shadows: n LoRAs of public persons.
        targets: [n, C] coefficients of each one's mean picture.
        cosine: k_m / (|i| |j|) in place of k_m / c_m, which ignores how far a LoRA was trained.

    Raises:
        InputError: shadows that all change nothing.
    """
    if len(targets) != shadows.count:
        raise ValueError(f"{shadows.count} LoRAs, but {len(targets)} targets")
    kernels, lengths = module_kernels(shadows, shadows), own_lengths(shadows)
    scales = {name: float(kernel.diagonal().mean()) for name, kernel in kernels.items()}
    trained = [name for name, scale in scales.items() if scale > 0]
    if not trained:
        raise InputError("the shadow LoRAs change nothing, so nothing can be learnt from them; train them longer")
    scales = {name: scale if scale > 0 else 1.0 for name, scale in scales.items()}
    if cosine:
        parts = [k / (lengths[n][:, None] * lengths[n]).clamp(min=1e-30) for n, k in kernels.items()]
    else:
        parts = [kernel / scales[name] for name, kernel in kernels.items()]
    weights, mean = dual_ridge(torch.stack(parts).sum(0), targets, ridge)
    return KernelRidge(shadows, scales, weights, mean, lengths if cosine else None)


def dual_ridge(gram: Tensor, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """((gram + ridge * mean(diag) * I)^-1 (Y - mean Y) [n, C], mean Y [C]) of a Gram matrix [n, n], targets [n, C]."""
    mean = targets.double().mean(0)
    size = gram.diagonal().mean().clamp(min=1e-30)
    system = gram + ridge * size * torch.eye(len(gram), dtype=torch.double)
    return torch.linalg.solve(system, targets.double() - mean), mean


def fit_factors(shadows: Factors, targets: Tensor, ridge: float = RIDGE) -> "FactorRidge":
    """Ridge on the raw factors, which is no attack on LoRAs with starts of their own: it shows what the gauge hides."""
    rows = raw_rows(shadows)
    centre = rows.mean(0)
    weights, mean = dual_ridge((rows - centre) @ (rows - centre).T, targets, ridge)
    return FactorRidge(rows - centre, centre, weights, mean)


@dataclass(frozen=True)
class FactorRidge:
    """See ``fit_factors``."""

    rows: Tensor  # [n, F] less their mean
    centre: Tensor  # [F]
    weights: Tensor  # [n, C]
    mean: Tensor  # [C]

    def predict(self, factors: Factors) -> Tensor:
        """[V, C]."""
        return (self.mean + (raw_rows(factors) - self.centre) @ self.rows.T @ self.weights).float()


def raw_rows(factors: Factors) -> Tensor:
    """[K, F] all up factors, flat; the down factors hardly move."""
    return torch.cat([value.flatten(1).double() for value in factors.up.values()], dim=1)
