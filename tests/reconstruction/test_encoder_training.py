"""Training of the encoder beside the shadow LoRAs: nothing reaches the LoRAs, and a stopped course goes on."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from library.audit.reconstruction.encoder import encoder_training
from library.audit.reconstruction.encoder.encoder_training import (
    EncoderCourse,
    EncoderRecipe,
    codes_of,
    encoder_loss,
    train_encoder,
    train_on_kept,
)
from library.audit.reconstruction.encoder.matrix_encoder import matrix_shapes
from library.audit.reconstruction.encoder.network_encoder import EncoderSize, NetworkEncoder
from library.audit.reconstruction.persons import PersonSet
from library.audit.reconstruction.shadow_corpus import RANDOM, CorpusRecipe, make_corpus, untrained
from library.audit.reconstruction.stacked_lora import StackedModel, attention_layers
from library.audit.reconstruction.stacked_training import StepRecipe, train_stack
from library.errors import InputError
from library.seeding import stream
from tests.helpers.tiny import SCHEDULE, build_parts

RULES = EncoderRecipe(learning_rate=1e-2, weight_decay=5e-4, kl_weight=0.0, together=2, passes=1, seed=3)
STEP = StepRecipe(learning_rate=3e-3, weight_decay=0.01, clip=1.0, batch=2)
RECIPE = CorpusRecipe(
    rank=2, scale=1.0, steps=3, pictures=2, step=STEP, start=RANDOM, class_word="portrait", triggers=2, seed=5
)
SIZE = EncoderSize(8, 1, 2, "gelu", False, 4, 16)


@pytest.fixture(scope="module")
def model() -> StackedModel:
    unet = build_parts(514)[0].requires_grad_(False).eval()
    return StackedModel(unet, attention_layers(unet), DDIMScheduler(**SCHEDULE).alphas_cumprod.float(), "tiny")


@pytest.fixture(scope="module")
def persons() -> PersonSet:
    latents = torch.randn(4, 2, 4, 8, 8, generator=stream(1, "latents"))
    return PersonSet([f"p{n}" for n in range(4)], latents, [[f"{n}a", f"{n}b"] for n in range(4)])


def states_of(captions: list[str]) -> Tensor:
    return torch.randn(len(captions), 3, 16, generator=stream("states"))


def new_encoder(model: StackedModel, persons: PersonSet) -> NetworkEncoder:
    torch.manual_seed(7)
    return NetworkEncoder(matrix_shapes(untrained(model, persons, RECIPE)), SIZE)


def test_the_loras_are_the_same_with_and_without_an_encoder_beside_them(model, persons, tmp_path) -> None:
    course = EncoderCourse(new_encoder(model, persons), model, RULES, {})
    start, contexts = untrained(model, persons, RECIPE), states_of([""] * 4)

    def learn(step: int, factors, batch) -> None:
        course.learn(factors, torch.full((4,), step), persons.latents, step)

    given = (model, start, persons.latents, contexts, 3, STEP, persons.names)
    alone, beside = train_stack(*given, seed=5)[3], train_stack(*given, seed=5, on_step=learn)[3]
    assert len(course.losses) == 3
    assert all(torch.equal(one, other) for one, other in zip(alone.tensors(), beside.tensors(), strict=True))


def test_the_encoder_s_loss_leaves_no_gradient_in_lora_or_unet(model, persons) -> None:
    encoder = new_encoder(model, persons)
    factors = untrained(model, persons, RECIPE).changed(lambda value: (value + 0.1).requires_grad_())
    steps = torch.full((4,), 2)
    encoder_loss(encoder, model, factors, steps, persons.latents, 0.0, stream(2)).backward()
    assert all(value.grad is None for value in [*factors.tensors(), *model.unet.parameters()])
    assert any(value.grad is not None and value.grad.any() for value in encoder.matrices.parameters())


def test_the_divergence_is_added_with_its_weight(model, persons) -> None:
    encoder, factors = new_encoder(model, persons), untrained(model, persons, RECIPE)
    given = (encoder, model, factors, torch.full((4,), 2), persons.latents)
    with torch.no_grad():
        without, with_it = (float(encoder_loss(*given, weight, stream(2))) for weight in (0.0, 0.5))
        matrices = encoder_training.matrices_of(factors, encoder.shapes)
        divergence = float(encoder(matrices, torch.full((4,), 2)).divergence())
    assert with_it == pytest.approx(without + 0.5 * divergence, rel=1e-5)


def test_every_step_of_every_lora_is_one_example(model, persons, tmp_path) -> None:
    course = train_encoder(new_encoder(model, persons), model, states_of, persons, RECIPE, RULES, tmp_path / "e")
    assert len(course.losses) == 3 * 2  # steps x stacks of two
    assert (tmp_path / "e").stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_stopped_course_ends_with_the_same_encoder(model, persons, tmp_path, monkeypatch) -> None:
    whole = train_encoder(new_encoder(model, persons), model, states_of, persons, RECIPE, RULES, tmp_path / "a")
    saved = EncoderCourse.save

    def stop(course: EncoderCourse, file: Path) -> None:
        saved(course, file)
        raise KeyboardInterrupt

    given: tuple[Callable, ...] = (model, states_of, persons, RECIPE, RULES, tmp_path / "b")
    monkeypatch.setattr(EncoderCourse, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train_encoder(new_encoder(model, persons), *given)
    monkeypatch.setattr(EncoderCourse, "save", saved)
    torch.manual_seed(0)
    resumed = train_encoder(NetworkEncoder(new_encoder(model, persons).shapes, SIZE), *given)
    assert resumed.losses == pytest.approx(whole.losses)
    states = resumed.encoder.state_dict(), whole.encoder.state_dict()
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-6) for name in states[0])


def test_a_course_of_other_rules_is_not_taken_over(model, persons, tmp_path) -> None:
    given = (model, states_of, persons, RECIPE)
    train_encoder(new_encoder(model, persons), *given, RULES, tmp_path / "e")
    other = dataclasses.replace(RULES, learning_rate=1e-3)
    with pytest.raises(InputError, match="encoder of another base, corpus, size or rules"):
        train_encoder(new_encoder(model, persons), *given, other, tmp_path / "e")


def test_a_loss_that_is_not_finite_stops_the_course(model, persons) -> None:
    course = EncoderCourse(new_encoder(model, persons), model, RULES, {})
    with pytest.raises(InputError, match="learning rate 0.01 is too high"):
        course.learn(untrained(model, persons, RECIPE), torch.full((4,), 1), persons.latents * torch.nan, 1)


@pytest.mark.slow
def test_an_encoder_on_a_kept_corpus_learns_what_helps_the_victims_model(model, persons, tmp_path) -> None:
    corpus = make_corpus(model, states_of, persons, RECIPE, tmp_path / "shadows", together=4)
    rules = dataclasses.replace(RULES, together=8, learning_rate=3e-2)
    given = (model, corpus, rules)
    train_on_kept(new_encoder(model, persons), *given, 40, tmp_path / "kept")
    course = train_on_kept(new_encoder(model, persons), *given, 150, tmp_path / "kept")  # goes on where it stood
    straight = train_on_kept(new_encoder(model, persons), *given, 150, tmp_path / "straight")
    assert len(course.losses) == 150 and course.losses == pytest.approx(straight.losses, abs=1e-5)
    chance = stream(9)
    everything = corpus.last.rows([0, 1, 2, 3] * 40)
    asked = (model, everything, torch.full((160,), 3), persons.latents.repeat(40, 1, 1, 1, 1), 0.0)
    with torch.no_grad():
        after = encoder_loss(course.encoder, *asked, chance)
        before = encoder_loss(new_encoder(model, persons), *asked, stream(9))
    assert after < before - 0.01
    assert codes_of(course.encoder, corpus.last, 3).shape == (4, 4, 16)
