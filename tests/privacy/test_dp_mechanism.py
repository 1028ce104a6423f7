"""The arithmetic of DP-SGD: coins, clipping, noise, passes."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, kstest

from library.privacy.dp.mechanism import clipped_sum, noise, packed, sampled
from library.seeding import normals, stream, uniforms
from tests.helpers.keys import key_of


def test_each_unit_enters_each_step_by_a_fair_coin_of_its_own() -> None:
    """Inclusion counts over units, over steps, and of pairs are binomial; none and all may come."""
    rate, units, steps = 0.3, 12, 3000
    drawn = np.zeros((steps, units))
    for step in range(steps):
        drawn[step, sampled(units, rate, key_of(1), step)] = 1
    assert binomtest(int(drawn.sum()), units * steps, rate).pvalue > 0.01
    for unit in range(units):
        assert binomtest(int(drawn[:, unit].sum()), steps, rate).pvalue > 0.001
    pairs = int((drawn[:, :-1] * drawn[:, 1:]).sum())
    assert binomtest(pairs, steps * (units - 1), rate**2).pvalue > 0.001
    assert drawn.sum(1).var() == pytest.approx(units * rate * (1 - rate), rel=0.1), "no fixed batch size"
    assert (drawn.sum(1) == 0).any()


def test_rate_one_takes_everybody_and_other_keys_and_steps_other_units() -> None:
    assert sampled(5, 1.0, key_of(1), 0) == [0, 1, 2, 3, 4]
    assert len({tuple(sampled(40, 0.5, key, step)) for key in (key_of(1), key_of(2)) for step in range(3)}) == 6


def test_no_unit_adds_more_than_the_clipping_norm() -> None:
    gradients = torch.randn(6, 50, generator=stream(3)) * torch.tensor([1e-3, 0.1, 1, 10, 1e3, 1e6])[:, None]
    for unit in range(6):
        total, norms = clipped_sum(gradients[unit : unit + 1], 0.5)
        assert total.norm() <= 0.5 * (1 + 1e-6)
        assert torch.allclose(total, gradients[unit] * min(1.0, 0.5 / float(norms[0])))
    together, _ = clipped_sum(gradients, 0.5)
    alone = sum(clipped_sum(gradients[unit : unit + 1], 0.5)[0] for unit in range(6))
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_adds_nothing(value: float) -> None:
    gradients = torch.stack([torch.ones(4), torch.tensor([1.0, value, 0, 0])])
    assert torch.equal(clipped_sum(gradients, 10.0)[0], torch.ones(4))
    assert torch.equal(clipped_sum(torch.zeros(0, 4), 1.0)[0], torch.zeros(4))
    assert torch.equal(clipped_sum(torch.zeros(2, 4), 1.0)[0], torch.zeros(4))


def test_noise_is_normal_of_its_deviation_and_new_in_each_step() -> None:
    drawn = noise(100_001, 3.0, key_of(1), 0)
    assert drawn.dtype == torch.float32 and kstest(drawn.numpy() / 3, "norm").pvalue > 0.01
    assert torch.equal(drawn, noise(100_001, 3.0, key_of(1), 0))
    for other in (noise(100_001, 3.0, key_of(1), 1), noise(100_001, 3.0, key_of(2), 0)):
        assert abs(np.corrcoef(drawn.numpy(), other.numpy())[0, 1]) < 0.02
    assert not noise(3, 0.0, key_of(1), 0).any()


def test_uniforms_fill_the_unit_interval_and_normals_come_in_any_number() -> None:
    drawn = uniforms(key_of(1), 100_000, "test")
    assert drawn.min() >= 0 and drawn.max() < 1 and kstest(drawn, "uniform").pvalue > 0.01
    assert [len(normals(key_of(1), count, "test")) for count in (0, 1, 2, 7)] == [0, 1, 2, 7]


def test_passes_hold_whole_units_in_order() -> None:
    sizes = [3, 1, 1, 4, 2, 2]
    assert list(packed([0, 1, 2, 3, 5], sizes, 4)) == [[0, 1], [2], [3], [5]]
    assert list(packed([], sizes, 4)) == []
