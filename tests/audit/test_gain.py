"""What a LoRA learnt, on held-out pictures: values by hand, and an interval that covers."""

import math

import numpy as np
import pytest

from library.audit.statistics.gain import gain_with_interval, gains, log_falls


def test_a_fall_is_the_mean_logarithm_over_timesteps() -> None:
    falls = log_falls(np.array([[0.5, 0.25]]), np.array([[1.0, 1.0]]))
    assert falls.tolist() == pytest.approx([math.log(8) / 2])
    assert log_falls(np.zeros((1, 1)), np.zeros((1, 1))).tolist() == [0.0]


def test_gains_of_both_sides_and_what_is_between_them() -> None:
    off = np.ones((6, 2))
    on = np.array([[0.8] * 2] * 3 + [[0.6] * 2] * 3)
    told = gains(on, off, np.arange(6) >= 3, [str(number) for number in range(6)])
    assert told["held_out_gain"] == pytest.approx(0.2) and told["held_out_pictures"] == 3
    assert told["held_out_gain_low"] == pytest.approx(0.2) == told["held_out_gain_high"]
    assert told["member_gain"] == pytest.approx(0.4) and told["learnt_by_heart"] == pytest.approx(0.2)


def test_one_group_gives_no_interval() -> None:
    assert gain_with_interval(np.array([0.1, 0.3]), ["a", "a"])[1:] == (float("-inf"), 1.0)


@pytest.mark.parametrize("size", [1, 4])
def test_the_interval_covers_with_and_without_groups(size: int) -> None:
    """Groups whose pictures share most of their fall: 95 of 100 intervals hold the truth, within luck."""
    chance = np.random.default_rng(size)
    groups = [str(number // size) for number in range(40 * size)]
    held = 0
    for _ in range(300):
        shared = np.repeat(chance.normal(0.2, 0.1, 40), size)
        _, low, high = gain_with_interval(shared + chance.normal(0, 0.05, 40 * size), groups)
        held += low <= 1 - math.exp(-0.2) <= high
    assert 270 <= held <= 297
