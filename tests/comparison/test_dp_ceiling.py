"""What a claim of differential privacy leaves to any attack."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from library.audit.report.dp_ceiling import auc_ceiling, claimed_ceiling


def test_the_ceiling_is_the_area_under_the_best_roc() -> None:
    assert auc_ceiling(0, 0) == 0.5 and auc_ceiling(0, 0.1) == pytest.approx(0.595)  # 1 - .9^2 / 2
    grid = np.linspace(0, 1, 200_001)
    floor = np.maximum(0, np.maximum(0.99 - math.e * grid, (0.99 - grid) / math.e))
    assert auc_ceiling(1, 0.01) == pytest.approx(1 - np.trapezoid(floor, grid), abs=1e-6)
    assert auc_ceiling(1, 0.0) < auc_ceiling(2, 0.0) < auc_ceiling(5000, 0.0) == 1.0


def audited(low: float, high: float, **settings: str) -> Any:
    found = {"loss": SimpleNamespace(name="loss", auc_interval=(low, high))}
    return SimpleNamespace(settings=settings, evaluation=SimpleNamespace(findings=found))


def test_an_attack_above_the_claim_is_told_as_a_bug() -> None:
    claim = {"dp_epsilon": "1", "dp_delta": "1e-3"}  # .7316
    fine = claimed_ceiling(audited(0.70, 0.90, **claim))
    assert fine is not None and fine.exceeded_by == [] and "No attack here contradicts" in fine.sentence()
    broken = claimed_ceiling(audited(0.74, 0.90, **claim))
    assert broken is not None and broken.exceeded_by == ["loss"] and "is wrong" in broken.sentence()
    inverted = claimed_ceiling(audited(0.10, 0.26, **claim))
    assert inverted is not None and inverted.exceeded_by == ["loss"]


@pytest.mark.parametrize(
    "settings", [{}, {"dp_epsilon": "inf", "dp_delta": "1e-3"}, {"dp_epsilon": "x", "dp_delta": "0"}]
)
def test_a_file_that_claims_nothing_has_no_ceiling(settings: dict[str, str]) -> None:
    assert claimed_ceiling(audited(0.9, 1.0, **settings)) is None
