"""Epsilon of DP-SGD: the privacy loss distribution of a Poisson-sampled Gaussian, composed over the steps."""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

from library.errors import InputError

LEAST_NOISE, MOST_NOISE = 0.2, 200.0  # noise multipliers that a target may ask for
GRID = 64  # step counts whose epsilon is computed in a run; between two of them the later one's is an upper bound
PRECISION = 1e-3  # of a calibrated noise multiplier, relative


@dataclass(frozen=True)
class Spending:
    """One step of DP-SGD (arXiv 1607.00133): each unit enters with a probability, and noise hides its part of the sum.

    Neighbouring data sets differ in one unit, added or removed.
    """

    noise_multiplier: float  # standard deviation of the noise / clipping norm
    sampling_rate: float  # probability that a unit enters a step
    delta: float

    def facts(self) -> dict[str, float]:
        """The numbers that a resumed run must share."""
        return {
            "noise_multiplier": self.noise_multiplier,
            "sampling_rate": self.sampling_rate,
            "delta": self.delta,
        }


def epsilon_pld(spending: Spending, steps: int) -> float:
    """Epsilon after so many steps, an upper bound within about 0.1 % (arXiv 2207.04380, Google's dp-accounting).

    Infinite without noise.
    """
    if steps == 0:
        return 0.0
    if spending.noise_multiplier == 0:
        return math.inf
    return float(_one_step(spending).self_compose(steps).get_epsilon_for_delta(spending.delta))


def _one_step(spending: Spending) -> Any:
    """The privacy loss distribution of one step, rounded up to multiples of an interval."""
    from dp_accounting.pld import privacy_loss_distribution  # slow to import

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=spending.noise_multiplier,
        sampling_prob=spending.sampling_rate,
        # The loss of a step falls with the noise, and so must what its rounding up adds
        value_discretization_interval=1e-3 if spending.noise_multiplier < 10 else 1e-4,
        use_connect_dots=True,
    )


def epsilon_rdp(spending: Spending, steps: int) -> float:
    """The same by Renyi differential privacy (arXiv 1908.10530): a looser bound, to look at beside the other one."""
    if steps == 0:
        return 0.0
    if spending.noise_multiplier == 0:
        return math.inf
    import dp_accounting  # slow to import
    from dp_accounting import rdp

    step = dp_accounting.PoissonSampledDpEvent(
        spending.sampling_rate, dp_accounting.GaussianDpEvent(spending.noise_multiplier)
    )
    handlers = list(logging.root.handlers)
    try:
        return float(rdp.RdpAccountant().compose(step, steps).get_epsilon(spending.delta))
    finally:
        logging.root.handlers[:] = handlers  # it adds one of its own, and then every message of ours comes twice


def calibrated_noise(target_epsilon: float, sampling_rate: float, delta: float, steps: int) -> float:
    """The smallest noise multiplier, within 0.1 %, with which so many steps stay at or below a target epsilon.

    Raises:
        InputError: a target that no noise multiplier from 0.2 to 200 reaches, with the range that they reach.
    """

    def epsilon(noise: float) -> float:
        return epsilon_pld(Spending(noise, sampling_rate, delta), steps)

    low, high = LEAST_NOISE, MOST_NOISE
    if (least := epsilon(high)) > target_epsilon:
        raise InputError(
            f"dp_target_epsilon {target_epsilon:g} cannot be reached in {steps} steps at delta {delta:g}: "
            f"noise multiplier {high:g} still spends {math.ceil(1000 * least) / 1000:g}; give at least that, or train "
            "fewer steps"
        )
    if (most := epsilon(low)) <= target_epsilon:
        raise InputError(
            f"dp_target_epsilon {target_epsilon:g} is more than {steps} steps can spend: noise multiplier {low:g} "
            f"spends {most:.3g} at delta {delta:g}; give less than that, or dp_noise_multiplier"
        )
    high = 1.0  # most runs lie near it, and small multipliers take long
    while epsilon(high) > target_epsilon:
        low, high = high, 2 * high
    while high > low * (1 + PRECISION):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon(middle) > target_epsilon else (low, middle)
    return high


def default_delta(units: int) -> float:
    """The power of ten at or below 1 / (10 units): it tells the order of magnitude of their number and no more."""
    return float(f"1e{-math.ceil(math.log10(10 * units) - 1e-12)}")


def require_delta(delta: float, units: int) -> None:
    """Raises: InputError for a delta that allows a unit of the run to be published whole."""
    if delta >= 1 / units:
        raise InputError(
            f"dp_delta must be below 1 / {units} = {1 / units:.3g} ({units} units of privacy; a larger delta "
            f"would allow to publish one of them), got {delta:g}; leave it out to use "
            f"{default_delta(units):g}"
        )


@dataclass(frozen=True)
class Accountant:
    """Epsilon in the course of a run."""

    spending: Spending
    total: int  # steps of the run
    _known: dict[int, float] = field(default_factory=dict)
    _step: list[Any] = field(default_factory=list)

    def epsilon(self, done: int) -> float:
        """Epsilon after ``done`` steps; between the steps of a grid that of the next one, which is an upper bound."""
        if self.spending.noise_multiplier == 0 or done == 0:
            return epsilon_pld(self.spending, done)
        place = math.ceil(done * GRID / self.total)
        point = done if done > self.total else math.floor(place * self.total / GRID)
        point = max(point, done)
        if point not in self._known:
            if not self._step:
                self._step.append(_one_step(self.spending))
            composed = self._step[0].self_compose(point)
            self._known[point] = float(composed.get_epsilon_for_delta(self.spending.delta))
        return self._known[point]
