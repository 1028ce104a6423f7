"""Sampling: DDIM, along the fine-tuning's direction, and from a guess."""

import pytest
import torch
from torch import Tensor

from library.audit.reconstruction.pictures.samplers import Course, ddim, edited, guided, sampled, shared_noise
from library.seeding import stream

ALPHAS = torch.linspace(0.9999, 0.01, 1000)
COURSE = Course(ALPHAS, 10, 980, None)
SHAPE = (4, 2, 2)


def knows(clean: Tensor):
    """A perfect model of one picture: the noise that was added to it."""

    def predict(noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        alpha = ALPHAS[timesteps][:, None, None, None]
        return (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()

    return predict


def says(value: float):
    """A model that predicts one number everywhere."""
    return lambda noisy, timesteps, context: torch.full_like(noisy, value)


def test_a_perfect_model_paints_its_picture() -> None:
    clean = torch.randn(3, *SHAPE, generator=stream(1))
    painted = ddim(knows(clean), torch.randn(3, *SHAPE, generator=stream(2)), torch.zeros(3, 1, 1), COURSE)
    assert torch.allclose(painted, clean, atol=1e-4)


def test_one_step_is_the_clean_latent_by_hand() -> None:
    course = Course(torch.tensor([1.0, 0.64]), 1, 1, None)
    painted = ddim(says(0.5), torch.full((1, *SHAPE), 1.1), torch.zeros(1, 1, 1), course)
    assert torch.allclose(painted, torch.full((1, *SHAPE), (1.1 - 0.6 * 0.5) / 0.8))


def test_a_limit_bounds_what_is_painted() -> None:
    course = Course(ALPHAS, 10, 980, 2.0)
    painted = ddim(says(-1.0), torch.ones(1, *SHAPE), torch.zeros(1, 1, 1), course)
    assert painted.abs().max() <= 2.0 + 1e-5


def test_guidance_goes_from_the_base_along_the_fine_tuning() -> None:
    noisy, timesteps, context = torch.zeros(1, *SHAPE), torch.tensor([5]), torch.zeros(1, 1, 1)
    for weight, value in ((0.0, 1.0), (1.0, 3.0), (5.0, 11.0)):
        assert guided(says(1.0), says(3.0), weight)(noisy, timesteps, context).unique().item() == value


def test_every_victim_starts_from_the_same_noise_and_has_its_own_prompt() -> None:
    seen: list[Tensor] = []

    def predict(noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        seen.append(context)
        return noisy + context[:, 0, 0, None, None, None]

    prompts = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    painted = sampled(predict, prompts, shared_noise(2, SHAPE, 4), COURSE)
    assert painted.shape == (3, 2, *SHAPE) and seen[0].flatten().tolist() == [0, 0, 0, 0, 1, 1]
    assert torch.equal(painted[0], painted[1]) and not torch.equal(painted[0], painted[2])
    assert not torch.equal(painted[0, 0], painted[0, 1])


def test_shared_noise_is_a_matter_of_the_seed_and_not_of_the_number() -> None:
    assert torch.equal(shared_noise(3, SHAPE, 1)[:2], shared_noise(2, SHAPE, 1))
    assert not torch.equal(shared_noise(1, SHAPE, 1), shared_noise(1, SHAPE, 2))


def test_an_edit_begins_at_the_guess() -> None:
    guess = torch.randn(2, *SHAPE, generator=stream(3))
    painted = edited(knows(guess.repeat_interleave(2, 0)), guess, torch.zeros(2, 1, 1), shared_noise(2, SHAPE, 1),
                     COURSE.started_at(300, 5))  # fmt: skip
    assert torch.allclose(painted, guess[:, None].expand_as(painted), atol=1e-4)


@pytest.mark.parametrize(("steps", "first"), [(0, 10), (11, 10), (5, 1000)])
def test_a_course_outside_of_the_schedule_is_refused(steps: int, first: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}, first={first}"):
        Course(ALPHAS, steps, first, None)
