"""Defences that act on a finished LoRA file, and utility beside what they leave to read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.reconstruction.persons import PersonSet
from library.audit.reconstruction.shadow_corpus import Corpus
from library.audit.reconstruction.stacked_lora import Factors, StackedModel
from library.seeding import stream

NONE, NOISE, TRUNCATION, STOPPING, GAUGE = "none", "noise", "truncation", "early stopping", "re-gauge"


@dataclass(frozen=True)
class WeightDefence:
    """One defence on the factors and its strength.

    ``noise``: strength times the deviation of each up factor. ``truncation``: rank kept. ``early stopping``: share of
    the steps. ``re-gauge``: (G A, B G^-1) with a random G, which changes nothing but the factors.
    """

    kind: str
    strength: float = 0.0

    def title(self) -> str:
        """For tables."""
        return {
            NONE: "none",
            NOISE: f"noise on B, {self.strength:g} x its deviation",
            TRUNCATION: f"rank cut to {self.strength:g}",
            STOPPING: f"stopped after {100 * self.strength:g} % of the steps",
            GAUGE: "re-gauge",
        }[self.kind]


def published(corpus: Corpus, defence: WeightDefence) -> Factors:
    """The LoRAs of a corpus as they would be shared under a defence; draws are those of each person's own."""
    if defence.kind == STOPPING:
        step = min(corpus.at, key=lambda one: abs(one - defence.strength * corpus.recipe.steps))
        return corpus.at[step]
    keys = corpus.persons.names
    if defence.kind == NOISE:
        return noised_up(corpus.last, defence.strength, keys, corpus.recipe.seed)
    if defence.kind == TRUNCATION:
        return truncated(corpus.last, int(defence.strength))
    if defence.kind == GAUGE:
        return regauged(corpus.last, keys, corpus.recipe.seed)
    return corpus.last


def noised_up(factors: Factors, strength: float, keys: Sequence[str], seed: int) -> Factors:
    """Gaussian noise on every up factor, ``strength`` times that factor's own deviation."""
    up = {}
    for name, value in factors.up.items():
        noise = torch.stack(
            [torch.randn(value.shape[1:], generator=stream(seed, "defence noise", key, name)) for key in keys]
        )
        up[name] = value + strength * value.flatten(1).std(1)[:, None, None] * noise
    return Factors(factors.down, up, factors.scale)


def truncated(factors: Factors, rank: int) -> Factors:
    """The best change of a lower rank (singular values of B A), as factors of that rank."""
    down, up = {}, {}
    for name in factors.down:
        left, values, right = torch.linalg.svd(factors.up[name] @ factors.down[name], full_matrices=False)
        up[name] = left[:, :, :rank] * values[:, None, :rank]
        down[name] = right[:, :rank]
    return Factors(down, up, factors.scale)


def regauged(factors: Factors, keys: Sequence[str], seed: int) -> Factors:
    """(G A, B G^-1) with a random invertible G for every LoRA and module: the same change, other factors."""
    down, up = {}, {}
    for name, value in factors.down.items():
        rank = value.shape[1]
        gauges = torch.stack(
            [torch.randn(rank, rank, generator=stream(seed, "gauge", key, name)).double() for key in keys]
        )
        gauges = gauges + 2 * torch.eye(rank, dtype=torch.double)
        down[name] = (gauges @ value.double()).float()
        up[name] = (factors.up[name].double() @ torch.linalg.inv(gauges)).float()
    return Factors(down, up, factors.scale)


@torch.no_grad()
def utility(
    model: StackedModel,
    factors: Factors,
    persons: PersonSet,
    contexts: Tensor,
    seed: int,
    timesteps: Sequence[int] = (200, 450, 700),
) -> Tensor:
    """[K] share by which the denoising loss on pictures of each LoRA's own person falls, at fixed (t, eps).

    Args:
        persons: K persons, person k beside LoRA k; pictures that the LoRA saw, or others of the same person.
        contexts: [K, T, D] text states of the LoRA's own caption.
    """
    count, images = persons.latents.shape[:2]
    times = torch.tensor(list(timesteps)).repeat(images)
    result = torch.zeros(count)
    for number in range(count):
        clean = persons.latents[number].repeat_interleave(len(timesteps), 0)
        noise = torch.randn(clean.shape, generator=stream(seed, "utility", number))
        noised = model.noised(clean, noise, times)
        context = contexts[number][None].expand(len(clean), -1, -1)
        one = factors.rows([number]).changed(lambda value: value.to(model.device))
        base, own = (
            float(((model.predict(some, noised, times, context).cpu() - noise) ** 2).mean()) for some in (None, one)
        )
        result[number] = (base - own) / base
    return result
