"""One-run lower bounds on epsilon: the tables of the literature and what they must never claim."""

import numpy as np
import pytest

from library.audit.statistics.one_run_epsilon import (
    gaussian_epsilon,
    gaussian_one_run_epsilon,
    guess_p_value,
    one_run_bounds,
    one_run_epsilon,
)

CAPS = {20: (0, 0, 0.40, 0.93, 1.29, 1.82), 100: (0.05, 0.47, 0.96, 1.63, 2.17, 3.49)}
CAPS |= {200: (0.16, 0.58, 1.09, 1.80, 2.40, 4.18), 1000: (0.30, 0.73, 1.25, 2.02, 2.70, 5.76)}


@pytest.mark.parametrize("guesses", CAPS)
def test_the_bound_gives_the_published_caps(guesses):
    accuracies = (0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
    found = [one_run_epsilon(guesses, round(share * guesses), max(2 * guesses, 100)) for share in accuracies]
    assert found == pytest.approx(CAPS[guesses], abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize(("guesses", "share", "cap"), [(50, 0.7, 0.56), (200, 0.9, 3.31), (1000, 1.0, 11.05)])
def test_the_gaussian_bound_gives_the_published_caps(guesses, share, cap):
    assert gaussian_one_run_epsilon(guesses, round(share * guesses), max(2 * guesses, 100)) == pytest.approx(
        cap, abs=0.006
    )


@pytest.mark.parametrize(("delta", "cap"), [(1e-6, 3.49), (1e-5, 3.47), (1e-4, 3.20), (1e-3, 0.81)])
def test_a_large_delta_costs_most_of_the_bound(delta, cap):
    assert one_run_epsilon(100, 100, 1000, delta) == pytest.approx(cap, abs=0.006)


def test_the_p_value_agrees_with_its_slow_twin():
    from math import comb, exp

    guesses, correct, canaries, delta, epsilon = 12, 9, 40, 1e-3, 0.7
    q = exp(epsilon) / (1 + exp(epsilon))
    mass = [comb(guesses, k) * q**k * (1 - q) ** (guesses - k) for k in range(guesses + 1)]
    near = max(sum(mass[correct - i : correct]) / i for i in range(1, correct + 1))
    slow = sum(mass[correct:]) + 2 * canaries * delta * near
    assert guess_p_value(epsilon, guesses, correct, canaries, delta) == pytest.approx(slow)


def test_mu_of_a_gaussian_mechanism_turns_into_the_known_epsilon():
    assert gaussian_epsilon(0.268) == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
def test_fair_coins_certify_more_than_zero_no_more_often_than_stated():
    generator = np.random.default_rng(0)
    groups = [f"image{index}" for index in range(200)]
    alarms = sum(
        max(bound.epsilon for bound in one_run_bounds(generator.normal(size=200), generator.random(200) < 0.5, groups))
        > 0
        for _ in range(200)
    )
    assert alarms / 200 <= 0.05 + 0.03


def test_a_planted_leak_certifies_epsilon_up_to_the_ceiling():
    is_member = np.random.default_rng(1).random(200) < 0.5
    bounds = one_run_bounds(is_member.astype(float), is_member, [f"image{index}" for index in range(200)])
    assert [bound.epsilon for bound in bounds[:3]] == pytest.approx([bound.ceiling for bound in bounds[:3]])


def test_more_right_guesses_than_guesses_are_refused():
    with pytest.raises(ValueError, match="11 correct of 10 guesses"):
        one_run_epsilon(10, 11, 100)
