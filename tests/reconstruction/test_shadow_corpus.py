"""The corpus of shadow LoRAs: kept, resumed, private, and refused where it belongs to something else."""

import dataclasses
import json
import stat
from pathlib import Path

import pytest
import torch

from library.audit.reconstruction.kernel import fit_factors, fit_kernel
from library.audit.reconstruction.retrieval import cosine_scores, public_space, ranks_of, retrieval
from library.audit.reconstruction.shadow_corpus import RANDOM, SHARED, check_facts, corpus_facts, make_corpus
from library.audit.reconstruction.stacked_training import StepRecipe
from library.audit.reconstruction.weight_defences import NOISE, STOPPING, WeightDefence, published
from library.errors import InputError
from library.privacy.dp.accounting import Spending, epsilon_rdp
from library.tensor_files import read_tensors, write_tensors
from tests.helpers.stacked_toy import STEP, stacked_toy, toy_persons, toy_recipe, toy_states


def made(folder: Path, *, model=None, persons=None, together: int = 2, recipe=None, on_step=None, states=toy_states):
    return make_corpus(
        model or stacked_toy(), states, persons or toy_persons(5), recipe or toy_recipe(), folder,
        together=together, on_step=on_step,
    )  # fmt: skip


def states_of(corpus):
    return {f"{step} {name}": value for step, one in corpus.at.items() for name, value in one.state().items()}


def test_a_corpus_keeps_the_start_and_the_moments_of_every_lora(tmp_path: Path) -> None:
    corpus = made(tmp_path)
    assert sorted(corpus.at) == [1, 2, 3, 4, 6, 8, 10] and corpus.last.count == 5
    norms = [sum(float(v.square().sum()) for v in corpus.at[step].up.values()) for step in sorted(corpus.at)]
    assert norms == sorted(norms) and norms[0] > 0
    assert all(not value.any() for value in corpus.start.up.values())


def test_a_stopped_corpus_goes_on_and_is_the_same_however_it_was_cut(tmp_path: Path) -> None:
    steps: list[int] = []

    def stops(step, factors, batch):
        steps.append(step)
        if len(steps) == 15:  # in the second piece
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "stopped", on_step=stops)
    resumed: list[int] = []
    again = made(tmp_path / "stopped", on_step=lambda step, factors, batch: resumed.append(step))
    assert len(resumed) == 20, "the first piece was kept"
    whole = made(tmp_path / "whole", together=5)
    for name, value in states_of(again).items():
        torch.testing.assert_close(value, states_of(whole)[name], rtol=1e-3, atol=2e-5)
    further: list[int] = []
    larger = made(
        tmp_path / "stopped", persons=toy_persons(6), on_step=lambda step, factors, batch: further.append(step)
    )
    assert len(further) == 10 and larger.last.count == 6, "a larger corpus takes over the pieces of a smaller one"


def test_everything_kept_is_the_owners_alone_and_names_no_person_picture_or_word(tmp_path: Path) -> None:
    said: list[str] = []

    def listening(captions):
        said.extend(captions)
        return toy_states(captions)

    made(tmp_path / "corpora", states=listening)
    paths = [tmp_path / "corpora", *(tmp_path / "corpora").rglob("*")]
    assert len(paths) == 6
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    words = {word for caption in said for word in caption.split() if word != "portrait"}
    assert len(said) == 5 and len(words) == 10, "two unused words a person"
    content = b"".join(path.read_bytes() for path in paths if path.is_file())
    for word in [*words, *toy_persons(5).names, "portrait 0"]:
        assert word.encode() not in content


def test_another_base_recipe_or_set_of_pictures_gets_a_corpus_of_its_own(tmp_path: Path) -> None:
    first = made(tmp_path)
    others = [
        made(tmp_path, model=stacked_toy(seed=1)),
        made(tmp_path, recipe=toy_recipe(seed=4)),
        made(tmp_path, recipe=toy_recipe(step=dataclasses.replace(STEP, learning_rate=2e-2))),
        made(tmp_path, persons=toy_persons(5, first=1)),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_a_corpus_that_was_put_in_anothers_place_is_refused_and_left_alone(tmp_path: Path) -> None:
    corpus = made(tmp_path)
    place = next(tmp_path.iterdir())
    facts = json.loads((place / "corpus.json").read_text())
    assert facts == json.loads(json.dumps(corpus_facts(stacked_toy(), toy_recipe())))
    (place / "corpus.json").write_text(json.dumps({**facts, "base": "another", "recipe": {}}))
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(InputError, match="another base and recipe; nothing was changed"):
        made(tmp_path)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    check_facts(tmp_path / "nowhere", facts)
    assert corpus.recipe == toy_recipe()


def test_a_damaged_or_foreign_piece_is_refused_by_name(tmp_path: Path) -> None:
    made(tmp_path)
    file = sorted(next(tmp_path.iterdir()).glob("*.safetensors"))[0]
    tensors, metadata = read_tensors(file)
    write_tensors(file, tensors, {"corpus": "another"})
    with pytest.raises(InputError, match=f"{file.name}' belongs to another corpus"):
        made(tmp_path)
    name = next(iter(tensors))
    write_tensors(file, {**tensors, name: torch.full_like(tensors[name], torch.nan)}, metadata)
    with pytest.raises(InputError, match="is damaged"):
        made(tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError):
        made(tmp_path)


def test_wrong_recipes_are_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 3 pictures a person, got 4"):
        made(tmp_path, recipe=toy_recipe(pictures=3))
    with pytest.raises(InputError, match="'random' or 'shared', got 'fixed'"):
        made(tmp_path, recipe=toy_recipe(start="fixed"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="rank must be from 1"):
        made(tmp_path, recipe=toy_recipe(rank=500))


def test_a_training_that_diverges_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learning rate 1e\\+30 is too high"):
        made(tmp_path, recipe=toy_recipe(step=dataclasses.replace(STEP, learning_rate=1e30)))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_public_start_is_the_same_for_all_and_a_random_one_is_not(tmp_path: Path) -> None:
    shared, drawn = (made(tmp_path, recipe=toy_recipe(start=start)).start for start in (SHARED, RANDOM))
    for name in shared.down:
        assert torch.equal(shared.down[name][0], shared.down[name][1])
        assert not torch.equal(drawn.down[name][0], drawn.down[name][1])


def test_early_stopping_is_an_earlier_moment(tmp_path: Path) -> None:
    corpus = made(tmp_path)
    assert published(corpus, WeightDefence(STOPPING, 0.3)) is corpus.at[3]
    assert published(corpus, WeightDefence("none")) is corpus.last


@pytest.fixture(scope="module")
def trained_corpora(tmp_path_factory: pytest.TempPathFactory):
    """Corpora of 110 persons with starts of their own and with one public start; 90 are shadows, 20 victims."""
    persons = toy_persons(110, spread=0.1)
    space = public_space(persons.some(range(90)).latents.flatten(0, 1), components=12)
    recipe = toy_recipe(steps=40, step=StepRecipe(1e-2, 0.01, 1.0, 2), rank=2)
    place = tmp_path_factory.mktemp("corpora")
    corpora = {
        start: made(place, persons=persons, recipe=dataclasses.replace(recipe, start=start), together=55)
        for start in (RANDOM, SHARED)
    }
    means, sets = (space.coefficients(persons.some(rows).means()) for rows in (range(90), range(90, 110)))

    def found(fit, factors, victims=None):
        shadows, attacked = factors.rows(range(90)), (victims or factors).rows(range(90, 110))
        scores = cosine_scores(fit(shadows, means).predict(attacked), sets, means.mean(0))
        return retrieval(ranks_of(scores, range(20)), 20)

    return corpora, found


@pytest.mark.slow
def test_the_two_corpora_differ_in_what_the_gauge_hides(trained_corpora) -> None:
    """Raw factors say nothing where each LoRA has a start of its own, and much where all share a public one."""
    corpora, found = trained_corpora
    drawn, shared = corpora[RANDOM].last, corpora[SHARED].last
    assert found(fit_factors, drawn).top_1.value <= 3 / 20
    assert found(fit_factors, shared).auc.low > 0.6
    assert found(fit_kernel, drawn).auc.low > 0.6


@pytest.mark.slow
def test_leakage_rises_with_training_and_falls_with_noise(trained_corpora) -> None:
    corpora, found = trained_corpora
    corpus = corpora[RANDOM]
    course = [found(fit_kernel, corpus.at[step]).auc.value for step in (4, 12, 24, 40)]
    assert course[0] < course[-1] and min(course[2:]) > 0.6
    noisy = [
        found(fit_kernel, corpus.last, published(corpus, WeightDefence(NOISE, strength))).auc.value
        for strength in (1.0, 30.0)
    ]
    assert course[-1] >= noisy[0] - 0.05 and noisy[1] < noisy[0]


@pytest.mark.slow
def test_the_noise_of_a_private_recipe_is_that_of_the_table_in_the_spec() -> None:
    """n 4, b 2, 60 steps, delta 1e-3: Renyi accounting, Poisson sampling; at 50 the newer conversion is tighter."""
    for epsilon, noise, apart in ((1, 11.3, 0.03), (5, 3.09, 0.03), (10, 1.89, 0.03), (50, 0.77, 0.12)):
        assert epsilon_rdp(Spending(noise, 0.5, 1e-3), 60) == pytest.approx(epsilon, rel=apart)
