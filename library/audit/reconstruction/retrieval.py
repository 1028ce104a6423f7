"""How well predictions find the true set among others, and the controls without which no row may be shown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from library.audit.statistics.intervals import clopper_pearson
from library.seeding import numpy_stream

Ranks = NDArray[np.int64]
DRAWS = 4000  # bootstrap samples of victims
COMPONENTS = 32  # of the public space
PERMUTED, NOTHING, OTHERS, CEILING = "permuted pairing", "base alone", "LoRA of other persons", "true set mean"
CONTROLS = (PERMUTED, NOTHING, OTHERS, CEILING)
BELOW = (PERMUTED, NOTHING, OTHERS)  # what an attack must beat; the ceiling is what it cannot


class MissingControls(ValueError):
    """A row without the controls that say what its figures mean."""


@dataclass(frozen=True)
class PublicSpace:
    """Principal components of public latents: what is compared is fitted on nothing private."""

    mean: Tensor  # [D]
    basis: Tensor  # [D, C] orthonormal columns

    def coefficients(self, latents: Tensor) -> Tensor:
        """[B, C] of flat latents [B, D]."""
        return (latents - self.mean) @ self.basis

    def directions(self, differences: Tensor) -> Tensor:
        """[..., C] of differences of latents [..., D], whose mean is not taken off."""
        return differences @ self.basis


def public_space(latents: Tensor, components: int = COMPONENTS) -> PublicSpace:
    """The space of public pictures [M, 4, h, w]; at most M - 1 components."""
    flat = latents.flatten(1).double()
    mean = flat.mean(0)
    _, _, directions = torch.linalg.svd(flat - mean, full_matrices=False)
    return PublicSpace(mean.float(), directions[: min(components, len(flat) - 1)].T.float().contiguous())


def cosine_scores(predicted: Tensor, candidates: Tensor, centre: Tensor) -> Tensor:
    """[V, N] cosine of predictions [V, C] and candidates [N, C], both less ``centre`` [C]; 0 for a zero prediction."""
    return direction_scores(predicted - centre, candidates - centre)


def direction_scores(directions: Tensor, candidates: Tensor) -> Tensor:
    """[V, N] cosine of directions and centred candidates; 0 where either is zero."""
    first, second = (
        one / one.norm(dim=1, keepdim=True).clamp(min=torch.finfo(one.dtype).tiny) for one in (directions, candidates)
    )
    return first @ second.T


def ranks_of(scores: Tensor, true: Sequence[int]) -> Ranks:
    """[V] rank of each victim's own set, 1 = first. A tie counts against the attacker.

    Args:
        scores: [V, N], higher = more alike.
        true: [V] column of the own set.

    Raises:
        ValueError: scores that are not finite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("scores hold NaN or infinity")
    own = scores[torch.arange(len(scores)), torch.as_tensor(true)]
    return np.asarray((scores >= own[:, None]).sum(1).tolist(), dtype=np.int64)


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_figure(values: NDArray[np.float64]) -> Figure:
    """Mean of [V] values with a bootstrap interval over victims."""
    drawn = values[resampled(len(values))].mean(1)
    return spread(float(values.mean()), drawn)


def resampled(count: int, seed: int = 0) -> NDArray[np.int64]:
    """[DRAWS, V] rows of so many victims, drawn with replacement."""
    return numpy_stream(seed, "bootstrap").integers(0, count, (DRAWS, count))


def spread(value: float, drawn: NDArray[np.float64]) -> Figure:
    """A figure with the 95 % interval of its bootstrap samples [DRAWS]."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(value, float(low), float(high))


@dataclass(frozen=True)
class Retrieval:
    """Ranks of the true sets of V victims among N candidates."""

    victims: int
    candidates: int
    top_1: Figure  # chance 1 / N
    top_5: Figure  # chance 5 / N
    median_rank: Figure
    mean_rank: Figure  # chance (N + 1) / 2
    auc: Figure  # mean of 1 - (rank - 1) / (N - 1); chance .5


def standing(ranks: Ranks, candidates: int) -> NDArray[np.float64]:
    """[V] 1 for the first rank, 0 for the last."""
    return np.asarray(1 - (ranks - 1) / (candidates - 1), dtype=np.float64)


def retrieval(ranks: Ranks, candidates: int, seed: int = 0) -> Retrieval:
    """All figures of some ranks; shares by Clopper and Pearson, the others by a bootstrap over victims.

    Raises:
        ValueError: fewer than two candidates, or ranks outside 1 .. N.
    """
    if candidates < 2 or len(ranks) == 0 or ranks.min() < 1 or ranks.max() > candidates:
        raise ValueError(f"ranks must lie in 1 .. {candidates} (at least two candidates), got {ranks.tolist()[:5]}")
    drawn = ranks[resampled(len(ranks), seed)]  # [DRAWS, V]

    def share(most: int) -> Figure:
        found = int((ranks <= most).sum())
        return Figure(found / len(ranks), *clopper_pearson(found, len(ranks)))

    return Retrieval(
        victims=len(ranks),
        candidates=candidates,
        top_1=share(1),
        top_5=share(5),
        median_rank=spread(float(np.median(ranks)), np.median(drawn, axis=1)),
        mean_rank=spread(float(ranks.mean()), drawn.mean(1)),
        auc=spread(float(standing(ranks, candidates).mean()), standing(drawn, candidates).mean(1)),
    )


@dataclass(frozen=True)
class RetrievalRow:
    """One attack with what it knows and the controls it is read against."""

    attack: str  # short name
    title: str
    knows: Sequence[str]  # of: weights, base, public pictures, recipe, private pictures as candidates
    target: str  # what is ranked: the private set, or held-out pictures of the same person
    shadows: int
    ranks: Ranks  # [V]
    candidates: int
    controls: Mapping[str, Ranks]

    def figures(self) -> Retrieval:
        """Of the attack itself."""
        return retrieval(self.ranks, self.candidates)

    def advantage(self) -> tuple[str, Figure]:
        """The strongest control below the ceiling, and how far the attack's AUC is above it: paired by victim."""
        own = standing(self.ranks, self.candidates)
        below = {name: standing(self.controls[name], self.candidates) for name in BELOW if name in self.controls}
        name = max(below, key=lambda one: below[one].mean())
        return name, mean_figure(own - below[name])

    def reads_the_weights(self) -> bool:
        """Whether the attack is credited: better than every control, by an interval that excludes 0."""
        return self.advantage()[1].low > 0


def checked_rows(rows: Sequence[RetrievalRow]) -> list[RetrievalRow]:
    """The rows, if every one stands beside all of its controls.

    Raises:
        MissingControls: what is missing, by row.
    """
    gaps = {row.title: [name for name in CONTROLS if name not in row.controls] for row in rows}
    named = [f"'{title}' lacks {', '.join(missing)}" for title, missing in gaps.items() if missing]
    if named:
        raise MissingControls("a row is not shown without its controls: " + "; ".join(named))
    return list(rows)


def row_of(  # noqa: PLR0913  one call is one row of a table
    *, attack: str, title: str, knows: Sequence[str], target: str, shadows: int, scores: Tensor, true: Sequence[int],
    nothing: Tensor, others: Tensor, ceiling: Tensor,
) -> RetrievalRow:  # fmt: skip
    """A row and its controls from scores [V, N] of the attack, and of the same attack on other weights.

    Args:
        nothing: [V, N] scores for LoRAs that change nothing (B = 0).
        others: [V, N] scores for LoRAs of persons who are no candidate.
        ceiling: [V, N] scores for the true set mean as the prediction.
    """
    turned = [true[(place + 1) % len(true)] for place in range(len(true))]  # everybody against the next one's set
    controls = {
        PERMUTED: ranks_of(scores, turned),
        NOTHING: ranks_of(nothing, true),
        OTHERS: ranks_of(others, true),
        CEILING: ranks_of(ceiling, true),
    }
    return RetrievalRow(attack, title, tuple(knows), target, shadows, ranks_of(scores, true), scores.shape[1], controls)


def row_json(row: RetrievalRow) -> dict[str, Any]:
    """A row as plain numbers, with its controls beside it."""
    control, advantage = row.advantage()
    return {
        "attack": row.attack,
        "title": row.title,
        "knows": list(row.knows),
        "target": row.target,
        "shadows": row.shadows,
        "figures": asdict(row.figures()),
        "controls": {name: asdict(retrieval(ranks, row.candidates)) for name, ranks in row.controls.items()},
        "strongest_control": control,
        "advantage": asdict(advantage),
        "reads_the_weights": row.reads_the_weights(),
        "ranks": row.ranks.tolist(),
    }


def rank_p(rank: int, candidates: int) -> float:
    """One LoRA's p-value: the chance that its own set ranks so high among N that are all alike to the attacker."""
    return rank / candidates


def share_text(figure: Figure) -> str:
    """``62 % [49, 74]``."""
    return f"{100 * figure.value:.0f} % [{100 * figure.low:.0f}, {100 * figure.high:.0f}]"
