"""An attacker on weights who knows neither rank nor length of the trainings: the shadows have several of both."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.leak_experiment import Experiment
from library.audit.reconstruction.retrieval import checked_rows, row_json
from library.audit.reconstruction.shadow_corpus import Corpus
from library.audit.reconstruction.stacked_lora import Factors, joined, padded
from library.audit.reconstruction.weight_attacks import (
    PRIVATE_SET,
    RAW,
    PublicKnowledge,
    asked,
    fitted_readers,
    reader_rows,
)

MOMENTS = 4  # of each rank, the latest ones that a corpus keeps


def mixed_shadows(run: Experiment, shadows: Corpus, ranks: Sequence[int]) -> tuple[Factors, Tensor]:
    """Shadows of several ranks, each stopped at one of the last ``MOMENTS``, as factors of the largest rank.

    Args:
        shadows: the corpus of the experiment's own rank, which is used as it is.

    Returns:
        The LoRAs, and [n, C * h * w] the mean picture of each one's person, flat.
    """
    parts, means = [], []
    for place, rank in enumerate(ranks):
        rows = list(range(place, len(run.shadows), len(ranks)))
        persons = run.shadows.some(rows)
        if rank == run.recipe.rank:
            at = {step: one.rows(rows) for step, one in shadows.at.items()}
        else:
            recipe = dataclasses.replace(run.recipe, rank=rank)
            at = run.corpus(persons, f"shadows of rank {rank}: LoRAs", recipe).at
        moments = sorted(at)[-MOMENTS:]
        for row in range(len(rows)):
            parts.append(padded(at[moments[row % len(moments)]].rows([row]), max(ranks)))
        means.append(persons.means())
    return joined(parts), torch.cat(means)


def unknown_recipe_rows(
    run: Experiment,
    shadows: Corpus,
    known: PublicKnowledge,
    sets: Mapping[str, Tensor],
    ranks: Sequence[int],
    victims: int,
) -> list[dict[str, Any]]:
    """Victims of each rank, for one attacker whose shadows are of all these ranks and several lengths.

    Args:
        known: its shadows and means are replaced by the mixed ones.
        sets: candidates by what is ranked, [N, C].
        victims: how many of other ranks than the experiment's own.
    """
    mixture, means = mixed_shadows(run, shadows, ranks)
    mixed = dataclasses.replace(known, shadows=mixture, means=known.space.coefficients(means))
    answers = asked(run.base.stack, mixture, mixed, "probes of mixed shadows").answers
    readers = [one for one in fitted_readers(mixed, answers, cosine=True) if one.attack != RAW]
    rows = []
    for rank in ranks:
        recipe = dataclasses.replace(run.recipe, rank=rank)
        persons = run.victims if rank == run.recipe.rank else run.victims.some(range(victims))
        made = [run.corpus(one, f"rank {rank}: LoRAs", recipe).last for one in (persons, run.others)]
        own, others = (asked(run.base.stack, one, mixed) for one in made)
        found = reader_rows(readers, own, others, sets, sets[PRIVATE_SET][: len(persons)], range(len(persons)), mixed)
        rows += [{"rank": rank, **row_json(row)} for row in checked_rows(found)]
    return rows
