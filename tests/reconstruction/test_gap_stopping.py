"""Gap stopping keeps the last moment before a LoRA knows its own pictures better than strangers' by a limit."""

import dataclasses

import pytest
import torch

from library.audit.reconstruction.gap_stopping import TIMESTEPS, stopped_at_gap
from library.audit.reconstruction.shadow_corpus import Corpus, make_corpus
from library.errors import InputError
from library.seeding import stream
from tests.helpers.stacked_toy import STEP, stacked_toy, toy_persons, toy_recipe, toy_states


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    persons, recipe = toy_persons(3, spread=0.1), toy_recipe(steps=30, step=dataclasses.replace(STEP, clip=1.0))
    return make_corpus(stacked_toy(), toy_states, persons, recipe, tmp_path_factory.mktemp("corpora"), together=3)


def states(corpus: Corpus):
    return toy_states([corpus.recipe.caption(name) for name in corpus.persons.names])


STRANGERS = toy_persons(2, first=10).latents.flatten(0, 1)


@torch.no_grad()
def slow_gap(corpus: Corpus, number: int, step: int) -> float:
    """One picture and one timestep at a time."""
    model, own = stacked_toy(), corpus.persons.latents[number]
    pictures = [*own, *STRANGERS]
    chance = stream(corpus.recipe.seed, "gap checks", corpus.persons.names[number])
    noises = torch.randn(len(pictures), len(TIMESTEPS), 4, 8, 8, generator=chance)
    context, one = states(corpus)[number : number + 1], corpus.at[step].rows([number])
    totals = torch.zeros(2, 2)  # side, base or LoRA
    for place, picture in enumerate(pictures):
        for which, timestep in enumerate(TIMESTEPS):
            noise, times = noises[place, which][None], torch.tensor([timestep])
            noised = model.noised(picture[None], noise, times)
            for kind, factors in enumerate((None, one)):
                error = (model.predict(factors, noised, times, context) - noise).square().mean()
                totals[int(place >= len(own)), kind] += error
    falls = 1 - totals[:, 1] / totals[:, 0]
    return float(falls[0] - falls[1])


def test_each_lora_ends_at_the_last_moment_before_its_own_gap_exceeds_the_limit(corpus: Corpus) -> None:
    gaps = [{step: slow_gap(corpus, number, step) for step in sorted(corpus.at)} for number in range(3)]
    limit = 0.5 * max(gap for one in gaps for gap in one.values())
    expected = []
    for one in gaps:
        below = []
        for step, gap in one.items():
            if gap > limit:
                break
            below.append(step)
        expected.append(below[-1] if below else min(one))
    assert min(expected) < corpus.recipe.steps, "the limit must bite"
    found, steps = stopped_at_gap(stacked_toy(), corpus, states(corpus), STRANGERS, limit)
    assert steps == expected
    for number, step in enumerate(steps):
        for name, value in found.state().items():
            assert torch.equal(value[number], corpus.at[step].state()[name][number])


def test_a_limit_that_nothing_exceeds_keeps_the_last_moment_and_one_that_all_exceed_the_first(corpus: Corpus) -> None:
    assert stopped_at_gap(stacked_toy(), corpus, states(corpus), STRANGERS, 1e3)[1] == [30, 30, 30]
    early = {number: slow_gap(corpus, number, 3) for number in range(3)}
    tiny = stopped_at_gap(stacked_toy(), corpus, states(corpus), STRANGERS, 1e-9)[1]
    assert all(tiny[number] == 3 for number, gap in early.items() if gap > 1e-9)


def test_a_limit_of_nothing_is_refused(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="must be above 0, got 0"):
        stopped_at_gap(stacked_toy(), corpus, states(corpus), STRANGERS, 0.0)
