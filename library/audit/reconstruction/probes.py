"""Functional probes: what a LoRA changes in the answers to fixed public questions. No gauge can hide that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.reconstruction.kernel import dual_ridge
from library.audit.reconstruction.retrieval import PublicSpace
from library.audit.reconstruction.stacked_lora import Factors, StackedModel
from library.errors import InputError
from library.progress import counted
from library.seeding import stream

PROBES = 24
TIMESTEPS = (300, 999)  # of 1000, the upper one exclusive: where the picture's whole is decided
RIDGES = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Probes:
    """P noised public latents, the same for every LoRA, under the class prompt."""

    noised: Tensor  # [P, 4, h, w]
    timesteps: Tensor  # [P]
    context: Tensor  # [T, D] text states of the class prompt


def public_probes(model: StackedModel, latents: Tensor, context: Tensor, seed: int, count: int = PROBES) -> Probes:
    """Probes from public latents [M, 4, h, w]. Raises: InputError for fewer pictures than probes."""
    if len(latents) < count:
        raise InputError(f"{count} public pictures are needed as probes, got {len(latents)}; give a larger folder")
    chance, total = stream(seed, "probes"), len(model.alphas_cumprod)
    chosen = latents[torch.randperm(len(latents), generator=chance)[:count]]
    low, high = (round(bound * total / 1000) for bound in TIMESTEPS)
    timesteps = torch.randint(low, high, (count,), generator=chance)
    noise = torch.randn(chosen.shape, generator=chance)
    return Probes(model.noised(chosen, noise, timesteps), timesteps, context)


@torch.no_grad()
def probe_answers(
    model: StackedModel, factors: Factors, probes: Probes, space: PublicSpace, together: int = 8, name: str = "probes"
) -> Tensor:
    """[K, P, C] prediction with each LoRA minus that of the base, in public components; exactly 0 for B = 0."""
    device, count = model.device, len(probes.timesteps)
    context = probes.context[None].expand(count, -1, -1)
    base = model.predict(None, probes.noised, probes.timesteps, context)
    answers = []
    bar = counted(factors.count, name, "LoRAs", silent=factors.count < together)
    for first in range(0, factors.count, together):
        some = factors.rows(range(first, min(first + together, factors.count))).changed(lambda value: value.to(device))
        times = some.count
        given = (probes.noised.repeat(times, 1, 1, 1), probes.timesteps.repeat(times), context.repeat(times, 1, 1))
        moved = model.predict(some, *given).unflatten(0, (times, count)) - base
        moved = torch.where(some.changes_something()[:, None, None, None, None], moved, 0.0)
        answers.append(space.directions(moved.flatten(2).cpu()))
        bar.update(times)
    bar.close()
    return torch.cat(answers)


def zero_shot(answers: Tensor) -> Tensor:
    """[K, C] direction of the pictures, without a shadow: minus the mean change of the predicted noise."""
    return -answers.mean(1)


@dataclass(frozen=True)
class ProbeRidge:
    """Dual ridge from standardised probe answers to public coefficients. Fitted on shadows alone."""

    centre: Tensor  # [F]
    spread: Tensor  # [F]
    rows: Tensor  # [n, F]
    weights: Tensor  # [n, C]
    mean: Tensor  # [C]
    ridge: float  # as chosen

    def predict(self, answers: Tensor) -> Tensor:
        """[V, C] of answers [V, P, C]."""
        rows = (answers.flatten(1).double() - self.centre) / self.spread
        return (self.mean + rows @ self.rows.T @ self.weights).float()


def fit_probes(answers: Tensor, targets: Tensor, ridges: Sequence[float] = RIDGES) -> ProbeRidge:
    """The ridge of ``ridges`` with the least error on the last quarter of the shadows, fitted again on all of them.

    Args:
        answers: [n, P, C] of the shadows.
        targets: [n, C] coefficients of each one's mean picture.
    """
    if len(answers) < 8:
        raise InputError(f"8 shadow LoRAs are needed to fit probes, got {len(answers)}; give more public persons")
    kept = len(answers) - len(answers) // 4

    def error(ridge: float) -> float:
        fitted = _fitted(answers[:kept], targets[:kept], ridge)
        return float(((fitted.predict(answers[kept:]) - targets[kept:]) ** 2).mean())

    return _fitted(answers, targets, min(ridges, key=error))


def _fitted(answers: Tensor, targets: Tensor, ridge: float) -> ProbeRidge:
    rows = answers.flatten(1).double()
    centre, spread = rows.mean(0), rows.std(0).clamp(min=1e-12)
    rows = (rows - centre) / spread
    weights, mean = dual_ridge(rows @ rows.T, targets, ridge)
    return ProbeRidge(centre, spread, rows, weights, mean, ridge)
