"""Projected gradient: never outside its ball, as strong as can be worked out by hand, like its slow twin."""

import pytest
import torch
from torch import Tensor

from library.audit.robustness.perturbation import REACH, PixelBall, TextBall, strongest
from library.seeding import stream


def generators(count: int, purpose: str = "start") -> list[torch.Generator]:
    """One stream for each picture."""
    return [stream(3, purpose, number) for number in range(count)]


def linear(weights: Tensor):
    """A function whose strongest change is known, and its gradient."""

    def values(points: Tensor) -> Tensor:
        return (points * weights).flatten(1).sum(1)

    return (lambda points: (values(points), weights.expand_as(points).clone())), values


def test_a_pixel_is_held_within_its_size_and_within_the_picture() -> None:
    ball = PixelBall(torch.tensor([[[[0.5, 0.02, 0.99]]]]), 0.1)
    there = ball.projected(torch.tensor([[[[0.9, -1.0, 2.0]]]]))
    assert torch.allclose(there, torch.tensor([[[[0.6, 0.0, 1.0]]]]))


@pytest.mark.parametrize("radius", [2 / 255, 0.3, 1.0])
def test_starts_and_noise_lie_in_the_ball(radius: float) -> None:
    clean = torch.rand(3, 3, 5, 4, generator=stream(1))
    ball = PixelBall(clean, radius)
    for points in (ball.drawn(generators(3)), ball.at_the_rim(generators(3))):
        assert float((points - clean).abs().max()) <= radius + 1e-6
        assert float(points.min()) >= 0 and float(points.max()) <= 1
    texts = TextBall(torch.randn(3, 4, 6, generator=stream(2)), radius)
    lengths = (texts.at_the_rim(generators(3)) - texts.centre).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, radius * texts.centre.flatten(1).norm(dim=1), rtol=1e-4)
    assert bool(((texts.drawn(generators(3)) - texts.centre).flatten(1).norm(dim=1) <= lengths * 1.0001).all())


def test_of_a_linear_function_the_corner_is_found() -> None:
    weights = torch.randn(3, 4, 4, generator=stream(5))
    clean = torch.rand(2, 3, 4, 4, generator=stream(6)) * 0.4 + 0.3
    ball = PixelBall(clean, 0.05)
    ascent, values = linear(weights)
    found = strongest(ascent, values, ball, [ball.drawn(generators(2))], 4)
    by_hand = values(clean) + 0.05 * weights.abs().sum()
    assert torch.allclose(found.values, by_hand, atol=1e-4) and torch.allclose(found.one_step, by_hand, atol=1e-4)


def test_of_a_linear_function_of_text_states_the_direction_of_the_gradient_is_found() -> None:
    weights = torch.randn(4, 6, generator=stream(7))
    states = torch.randn(2, 4, 6, generator=stream(8))
    ball = TextBall(states, 0.2)
    ascent, values = linear(weights)
    found = strongest(ascent, values, ball, [states], 4)
    by_hand = values(states) + 0.2 * states.flatten(1).norm(dim=1) * weights.norm()
    assert torch.allclose(found.values, by_hand, rtol=1e-4)


def wavy(points: Tensor) -> Tensor:
    """A function with many hills, so that the last step is seldom the best."""
    return torch.sin(40 * points).flatten(1).sum(1)


def wavy_ascent(points: Tensor) -> tuple[Tensor, Tensor]:
    """Its value and gradient."""
    return wavy(points), 40 * torch.cos(40 * points)


def slow_twin(clean: Tensor, radius: float, starts: list[Tensor], steps: int) -> list[float]:
    """The same, pixel by pixel and picture by picture."""
    best = []
    for picture in range(len(clean)):
        highest = -float("inf")
        for start in starts:
            here = start[picture].flatten().tolist()
            for step in range(steps + 1):
                highest = max(highest, sum(float(torch.sin(torch.tensor(40 * pixel))) for pixel in here))
                if step == steps:
                    break
                moved = []
                for pixel, middle in zip(here, clean[picture].flatten().tolist(), strict=True):
                    slope = float(torch.cos(torch.tensor(40 * pixel)))
                    pixel += REACH / steps * radius * ((slope > 0) - (slope < 0))
                    moved.append(min(1.0, max(0.0, min(middle + radius, max(middle - radius, pixel)))))
                here = moved
        best.append(highest)
    return best


def test_the_best_of_all_steps_and_starts_is_kept_as_the_slow_twin_keeps_it() -> None:
    clean = torch.rand(2, 3, 2, 2, generator=stream(9))
    ball = PixelBall(clean, 0.1)
    starts = [ball.drawn(generators(2, name)) for name in ("one", "two")]
    found = strongest(wavy_ascent, wavy, ball, starts, 5)
    assert found.values.tolist() == pytest.approx(slow_twin(clean, 0.1, starts, 5), abs=1e-3)
    assert torch.allclose(wavy(found.points), found.values)


def test_more_starts_and_a_picture_alone_change_nothing_for_the_worse() -> None:
    clean = torch.rand(4, 3, 3, 3, generator=stream(10))
    ball = PixelBall(clean, 0.2)
    starts = [ball.drawn(generators(4, name)) for name in ("one", "two", "three")]
    one, three = (strongest(wavy_ascent, wavy, ball, some, 6) for some in (starts[:1], starts))
    assert bool((three.values >= one.values).all()) and bool((three.values > one.values).any())
    alone = strongest(wavy_ascent, wavy, PixelBall(clean[:1], 0.2), [start[:1] for start in starts], 6)
    assert torch.allclose(alone.values, three.values[:1])


@pytest.mark.parametrize(("steps", "starts"), [(0, 1), (3, 0)])
def test_no_step_and_no_start_are_refused(steps: int, starts: int) -> None:
    clean = torch.rand(1, 3, 2, 2, generator=stream(11))
    with pytest.raises(ValueError, match=f"got {steps} steps and {starts} starts"):
        strongest(wavy_ascent, wavy, PixelBall(clean, 0.1), [clean] * starts, steps)
