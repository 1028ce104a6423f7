"""Attacks that read the weights of LoRAs of single persons, fitted on shadow LoRAs of public persons alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.reconstruction.kernel import fit_factors, fit_kernel
from library.audit.reconstruction.probes import Probes, fit_probes, probe_answers, zero_shot
from library.audit.reconstruction.retrieval import (
    PublicSpace,
    RetrievalRow,
    cosine_scores,
    direction_scores,
    row_of,
)
from library.audit.reconstruction.stacked_lora import Factors, StackedModel
from library.errors import InputError

WEIGHTS, BASE, PUBLIC, RECIPE = "weights", "base", "public pictures", "recipe"
KERNEL, RAW, PROBES, ZERO_CENTRED, ZERO_SHOT = "kernel", "raw factors", "probes", "zero-shot, centred", "zero-shot"
PRIVATE_SET, HELD_OUT = "private set", "held-out pictures of the same person"


@dataclass(frozen=True)
class PublicKnowledge:
    """All that an attack is fitted on: public pictures, and LoRAs of public persons."""

    space: PublicSpace
    probes: Probes
    shadows: Factors | None  # None: an attacker without a corpus
    means: Tensor  # [n, C] coefficients of each shadow's mean picture; without shadows those of public persons

    @property
    def centre(self) -> Tensor:
        """[C] of the mean public person."""
        return self.means.mean(0)


@dataclass(frozen=True)
class Reader:
    """A fitted attack: from LoRAs to directions [K, C] in the public space, and what it knows."""

    attack: str
    title: str
    knows: Sequence[str]
    shadows: int
    direct: Callable[[Factors, Tensor], Tensor]  # (LoRAs, their probe answers [K, P, C]) -> [K, C]


def shadow_free_readers() -> list[Reader]:
    """What one file and the base are enough for."""
    return [
        Reader(
            ZERO_SHOT,
            "probes, zero-shot",
            (WEIGHTS, BASE, PUBLIC),
            0,
            lambda factors, answers: zero_shot(answers),
        )
    ]


def fitted_readers(known: PublicKnowledge, answers: Tensor, *, cosine: bool = False) -> list[Reader]:
    """Every attack that learns from shadow LoRAs.

    Args:
        answers: [m, P, C] probe answers of the first m shadows, for the attacks that ask the model.
        cosine: the kernel ignores how far a LoRA was trained: for a target that was trained longer than the shadows.
    """
    if known.shadows is None:
        raise InputError("these attacks learn from shadow LoRAs; give a public folder")
    count, centre, all_of_it = known.shadows.count, known.centre, (WEIGHTS, BASE, PUBLIC, RECIPE)
    kernel, raw = fit_kernel(known.shadows, known.means, cosine=cosine), fit_factors(known.shadows, known.means)
    probes, common = fit_probes(answers, known.means[: len(answers)]), zero_shot(answers).mean(0)
    return [
        Reader(
            KERNEL,
            "invariant kernel on BA",
            (WEIGHTS, PUBLIC, RECIPE, BASE),
            count,
            lambda factors, _: kernel.predict(factors) - centre,
        ),
        Reader(
            PROBES, "probes with ridge", all_of_it, len(answers), lambda _, answers: probes.predict(answers) - centre
        ),
        Reader(
            ZERO_CENTRED,
            "probes, zero-shot less the shadows' mean",
            all_of_it,
            len(answers),
            lambda _, answers: zero_shot(answers) - common,
        ),
        Reader(
            RAW,
            "ridge on the raw factors B",
            (WEIGHTS, PUBLIC, RECIPE),
            count,
            lambda factors, _: raw.predict(factors) - centre,
        ),
    ]


@dataclass(frozen=True)
class Asked:
    """Some LoRAs with their probe answers."""

    factors: Factors
    answers: Tensor  # [K, P, C]


def asked(model: StackedModel, factors: Factors, known: PublicKnowledge, name: str = "probes") -> Asked:
    """Ask LoRAs the public probes."""
    return Asked(factors, probe_answers(model, factors, known.probes, known.space, name=name))


def emptied(some: Asked) -> Asked:
    """The same LoRAs with B = 0: the base alone."""
    return Asked(
        Factors(some.factors.down, {n: torch.zeros_like(v) for n, v in some.factors.up.items()}, some.factors.scale),
        torch.zeros_like(some.answers),
    )


def repeated(some: Asked, count: int) -> Asked:
    """``count`` LoRAs, the same ones again and again."""
    rows = [place % some.factors.count for place in range(count)]
    return Asked(some.factors.rows(rows), some.answers[rows])


def reader_rows(
    readers: Sequence[Reader],
    victims: Asked,
    others: Asked,
    candidates: Mapping[str, Tensor],
    private: Tensor,
    true: Sequence[int],
    known: PublicKnowledge,
) -> list[RetrievalRow]:
    """One row for every attack and every kind of candidate set, each beside its controls.

    Args:
        candidates: by what is ranked, [N, C] coefficients of the mean picture of every set.
        private: [V, C] of the victims' own private sets: the ceiling of one prediction, and read by nothing else.
        true: [V] column of each victim's own set.
    """
    nothing, strangers = emptied(victims), repeated(others, victims.factors.count)
    rows = []
    for reader in readers:
        found, empty, other = (reader.direct(one.factors, one.answers).float() for one in (victims, nothing, strangers))
        for target, sets in candidates.items():
            centred = sets - known.centre
            rows.append(
                row_of(
                    attack=reader.attack,
                    title=reader.title,
                    knows=reader.knows,
                    target=target,
                    shadows=reader.shadows,
                    scores=direction_scores(found, centred),
                    true=true,
                    nothing=direction_scores(empty, centred),
                    others=direction_scores(other, centred),
                    ceiling=cosine_scores(private, sets, known.centre),
                )
            )
    return rows
