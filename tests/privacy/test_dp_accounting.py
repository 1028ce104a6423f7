"""Epsilon of DP-SGD against a formula, an own convolution, and the looser accountant."""

import logging
import math

import numpy as np
import pytest
from scipy.stats import norm

from library.errors import InputError
from library.privacy.dp.accounting import (
    Accountant,
    Spending,
    calibrated_noise,
    default_delta,
    epsilon_pld,
    epsilon_rdp,
    require_delta,
)

CASES = [(1.0, 0.25, 50, 1e-4), (2.0, 0.5, 60, 1e-4), (1.0, 0.02, 500, 1e-5), (4.0, 1.0, 30, 1e-3)]


def convolved(spending: Spending, steps: int, step: float = 2e-3, widest: float = 80.0) -> float:
    """Epsilon by a plain convolution of the losses on a grid, rounded to the nearest point; both directions."""
    edges = np.arange(-widest - step / 2, widest + step, step)
    losses = (edges[:-1] + edges[1:]) / 2
    noise, rate = spending.noise_multiplier, spending.sampling_rate

    def place(loss: np.ndarray) -> np.ndarray:
        """x with log(1 - q + q exp((2 x - 1) / (2 s^2))) = loss; -infinity below the smallest loss."""
        with np.errstate(invalid="ignore", divide="ignore"):
            inside = (np.exp(loss) - (1 - rate)) / rate
            return np.where(inside > 0, noise**2 * np.log(np.maximum(inside, 1e-300)) + 0.5, -np.inf)

    at = place(edges)
    removed = np.diff((1 - rate) * norm.cdf(at / noise) + rate * norm.cdf((at - 1) / noise))
    added = np.diff(norm.cdf(at / noise))[::-1]  # the loss is the negative one
    found = []
    for masses in (removed, added):
        # roll the zero to the front, so that the cyclic convolution keeps it there
        middle = len(losses) // 2
        composed = np.fft.irfft(np.fft.rfft(np.roll(masses, -middle)) ** steps, len(masses))
        composed = np.roll(composed.clip(min=0), middle)

        def delta(epsilon: float, composed: np.ndarray = composed) -> float:
            above = losses > epsilon
            return float((composed[above] * -np.expm1(epsilon - losses[above])).sum())

        low, high = 0.0, widest
        for _ in range(50):
            low, high = (
                ((low + high) / 2, high) if delta((low + high) / 2) > spending.delta else (low, (low + high) / 2)
            )
        found.append(high)
    return max(found)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), CASES)
def test_epsilon_agrees_with_an_own_convolution_within_one_per_cent(noise, rate, steps, delta) -> None:
    spending = Spending(noise, rate, delta)
    assert epsilon_pld(spending, steps) == pytest.approx(convolved(spending, steps), rel=0.01)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), CASES)
def test_renyi_accounting_lies_above_it_by_at_most_a_fifth(noise, rate, steps, delta) -> None:
    spending = Spending(noise, rate, delta)
    tight, loose = epsilon_pld(spending, steps), epsilon_rdp(spending, steps)
    assert tight < loose < 1.2 * tight


def test_without_sampling_it_is_the_gaussian_mechanism_of_the_formula() -> None:
    """T steps at noise s are one at s / sqrt(T): delta = Phi(m/2 - e/m) - exp(e) Phi(-m/2 - e/m) (arXiv 1805.06530)."""
    epsilon, ratio = epsilon_pld(Spending(5.0, 1.0, 1e-5), 16), 4 / 5
    delta = norm.cdf(ratio / 2 - epsilon / ratio) - math.exp(epsilon) * norm.cdf(-ratio / 2 - epsilon / ratio)
    assert delta == pytest.approx(1e-5, rel=0.02) and epsilon == pytest.approx(3.387, abs=0.001)


@pytest.mark.parametrize(("target", "rate", "steps"), [(8.0, 0.5, 40), (1.0, 1.0, 10), (0.5, 0.05, 100)])
def test_a_target_is_met_from_below_and_hardly_missed(target: float, rate: float, steps: int) -> None:
    noise = calibrated_noise(target, rate, 1e-3, steps)
    assert 0.99 * target < epsilon_pld(Spending(noise, rate, 1e-3), steps) <= target


def test_a_target_out_of_reach_is_refused_with_the_one_that_is_in_reach() -> None:
    with pytest.raises(
        InputError, match=r"dp_target_epsilon 0.001 cannot be reached in 100 steps .* still spends 0.085"
    ):
        calibrated_noise(0.001, 1.0, 1e-3, 100)
    with pytest.raises(InputError, match=r"1e\+06 is more than 2 steps can spend: noise multiplier 0.2 spends \d+"):
        calibrated_noise(1e6, 0.5, 1e-3, 2)


def test_what_is_told_on_the_way_is_never_below_the_truth_and_exact_at_the_end() -> None:
    spending, total = Spending(2.0, 0.2, 1e-4), 200
    accountant = Accountant(spending, total)
    told = [accountant.epsilon(done) for done in range(total + 1)]
    assert told == sorted(told) and told[0] == 0
    assert all(told[done] >= epsilon_pld(spending, done) * (1 - 1e-9) for done in (1, 2, 7, 50, 133, 199))
    assert told[-1] == epsilon_pld(spending, total)
    assert accountant.epsilon(300) == epsilon_pld(spending, 300), "a run that is made longer"


def test_no_noise_is_no_guarantee() -> None:
    spending = Spending(0.0, 0.5, 1e-3)
    assert epsilon_pld(spending, 1) == epsilon_rdp(spending, 1) == Accountant(spending, 3).epsilon(2) == math.inf
    assert epsilon_pld(spending, 0) == 0


@pytest.mark.parametrize(("units", "delta"), [(1, 0.1), (99, 1e-3), (100, 1e-3), (101, 1e-4), (400, 1e-4)])
def test_the_default_delta_is_a_power_of_ten_at_or_below_a_tenth_of_one_unit(units: int, delta: float) -> None:
    assert default_delta(units) == delta <= 1 / (10 * units)
    require_delta(delta, units)


def test_a_delta_of_a_whole_unit_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"dp_delta must be below 1 / 50 = 0.02 .* got 0.02; leave it out to use 0.001"
    ):
        require_delta(0.02, 50)


def test_the_accountant_leaves_the_root_logger_as_it_was() -> None:
    """It adds a handler where there is none, and then every message of the suite came twice."""
    handlers, logging.root.handlers[:] = list(logging.root.handlers), []
    try:
        epsilon_rdp(Spending(1.5, 0.5, 1e-3), 3)
        assert logging.root.handlers == []
    finally:
        logging.root.handlers[:] = handlers
