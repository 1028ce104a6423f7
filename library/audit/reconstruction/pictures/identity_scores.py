"""How near an attack's pictures come to a person: cosines in a space fitted on public pictures, and ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COMPONENTS = 32  # of the public pictures' principal components
SHRINKAGE = 0.02  # of the spread within persons towards the same in every direction (Ledoit and Wolf, 2004)


@dataclass(frozen=True)
class IdentitySpace:
    """A linear view of pictures, made from public ones alone: x -> (x - mean) basis."""

    name: str  # for tables: what the features are, and whether it is whitened
    mean: Tensor  # [F]
    basis: Tensor  # [F, d]

    def project(self, features: Tensor) -> Tensor:
        """[..., F] -> [..., d]."""
        if features.shape[-1] != len(self.mean):
            raise ValueError(f"{self.name}: {len(self.mean)} features a picture are needed, got {features.shape[-1]}")
        return (features.float() - self.mean) @ self.basis


def fit_space(
    name: str, features: Tensor, persons: Sequence[str], *, components: int = COMPONENTS, whitened: bool
) -> IdentitySpace:
    """Principal components of public pictures; whitened, what differs between pictures of one person counts less.

    Whitening divides by the covariance within persons (as in linear discriminant analysis), so that background and
    clothes do not drown the person.

    Args:
        features: [N, F] of public pictures.
        persons: [N] who is in each.

    Raises:
        ValueError: fewer pictures than components, a person named for no picture, or nobody with two pictures.
    """
    if len(features) != len(persons):
        raise ValueError(f"{name}: {len(features)} public pictures, but {len(persons)} names of persons")
    if len(features) <= components:
        raise ValueError(f"{name}: {components} components need more public pictures than that, got {len(features)}")
    centred = features.double() - features.double().mean(0)
    _, _, rows = torch.linalg.svd(centred, full_matrices=False)
    basis = rows[:components].T  # [F, d]
    if whitened:
        basis = basis @ _whitening(centred @ basis, name, persons)
    return IdentitySpace(name, features.float().mean(0), basis.float())


def _whitening(coordinates: Tensor, name: str, persons: Sequence[str]) -> Tensor:
    """[d, d] inverse square root of the covariance within persons, shrunk towards its mean variance."""
    _, position = np.unique(np.asarray(persons, dtype=str), return_inverse=True)
    place = torch.from_numpy(position)
    counts = torch.bincount(place).double()
    if int((counts > 1).sum()) == 0:
        raise ValueError(f"{name}: whitening needs persons with at least two public pictures each, got none")
    means = torch.zeros(len(counts), coordinates.shape[1], dtype=torch.double)
    means = means.index_add(0, place, coordinates) / counts[:, None]
    within = coordinates - means[place]
    freedom = len(coordinates) - len(counts)
    covariance = within.T @ within / freedom
    even = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.double)
    values, vectors = torch.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * even)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


def best_output_cosines(outputs: Tensor, pictures: Tensor, owners: Tensor, sets: int) -> Tensor:
    """[V, N]: for each picture of set n the cosine with the closest output of attack v, averaged over the set.

    Args:
        outputs: [V, S, d] projected outputs, S for each victim.
        pictures: [P, d] projected pictures of all sets.
        owners: [P] to which set a picture belongs, 0 .. N - 1.

    Raises:
        ValueError: outputs that are not finite, or a set without a picture.
    """
    bad = ~outputs.isfinite().flatten(1).all(1)
    if bad.any():
        raise ValueError(f"{int(bad.sum())} of {len(outputs)} victims have outputs that are not finite; none is scored")
    counts = torch.bincount(owners, minlength=sets)
    if int(counts.min()) == 0 or len(counts) != sets:
        raise ValueError(f"each of the {sets} sets needs a picture, got {counts.tolist()}")
    unit, shown = torch.nn.functional.normalize(outputs, dim=-1), torch.nn.functional.normalize(pictures, dim=-1)
    nearest = torch.einsum("vsd,pd->vsp", unit, shown).amax(1)  # [V, P]
    sums = torch.zeros(len(outputs), sets).index_add(1, owners, nearest)
    return sums / counts


def own_above_others(scores: Tensor, own: Sequence[int]) -> Tensor:
    """[V] score of the true set minus the mean of the others': 0 where nothing of the person is in the outputs."""
    mine = scores[torch.arange(len(scores)), torch.as_tensor(own)]
    others = (scores.sum(1) - mine) / (scores.shape[1] - 1)
    return mine - others
