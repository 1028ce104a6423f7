"""Distances between two sets of pictures in any feature space: Frechet and kernel."""

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Features = NDArray[np.float64]


def frechet_distance(first: Features, second: Features) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets [n, F]: FID where the space is Inception's.

    With centred rows A and B over the roots of their counts less one, tr (S1 S2)^(1/2) is the sum of the singular
    values of A B^T, which stays exact where there are fewer pictures than features.
    """
    for rows in (first, second):
        if len(rows) < 2:
            raise ValueError(f"a Frechet distance needs two pictures on each side, got {len(rows)}")
    means = [rows.mean(0) for rows in (first, second)]
    parts = [(rows - mean) / np.sqrt(len(rows) - 1) for rows, mean in zip((first, second), means, strict=True)]
    spread = sum(float((part**2).sum()) for part in parts)
    small = [linalg.qr(part, mode="r")[0][: part.shape[1]] if len(part) > part.shape[1] else part for part in parts]
    shared = float(linalg.svdvals(small[0] @ small[1].T).sum())
    return float(((means[0] - means[1]) ** 2).sum()) + spread - 2 * shared


def kernel_distance(first: Features, second: Features) -> float:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3: KID (arXiv 1801.01401) where the space is Inception's."""
    if min(len(first), len(second)) < 2:
        raise ValueError("a kernel distance needs two pictures on each side")

    def kernel(left: Features, right: Features) -> Features:
        return (left @ right.T / left.shape[1] + 1) ** 3

    inside = []
    for rows in (first, second):
        values = kernel(rows, rows)
        inside.append((values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1)))
    return float(inside[0] + inside[1] - 2 * kernel(first, second).mean())
