"""Shadow LoRAs: fair halves, the likelihood ratio against its slow twin, and what it refuses."""

import json
import math

import numpy as np
import pytest

from library.audit.attacks.lira import likelihood_ratios
from library.audit.attacks.shadow_models import halves, of_fixed_length, write_shadow_split
from library.audit.statistics.metrics import auc
from library.errors import InputError


def test_every_picture_is_inside_half_of_the_shadows_and_groups_stay_together():
    groups = [f"group{index // 2}" for index in range(20)]
    inside = halves(groups, 6, 0)
    assert (inside.sum(0) == 3).all()
    assert (inside[:, ::2] == inside[:, 1::2]).all()


def test_an_odd_number_of_shadows_is_refused():
    with pytest.raises(InputError, match="shadow_loras must be an even number of at least 2, got 3"):
        halves(["a"], 3, 0)


def test_the_ratio_agrees_with_its_slow_twin():
    generator = np.random.default_rng(0)
    target, shadows = generator.normal(size=(3, 2)), generator.normal(size=(10, 3, 2))
    inside = np.arange(10)[:, None] % 2 == np.arange(3) % 2
    found = likelihood_ratios(target, shadows, inside)
    for row in range(3):
        total = 0.0
        for t in range(2):
            for sign, side in ((1, True), (-1, False)):
                values = shadows[inside[:, row] == side, row, t]
                spread = values.var(ddof=1)
                total += sign * (-0.5 * math.log(spread) - (target[row, t] - values.mean()) ** 2 / (2 * spread))
        assert found[row] == pytest.approx(total)


def test_members_whose_loss_falls_under_their_own_shadows_are_found_with_few_and_with_many():
    generator = np.random.default_rng(1)
    hardness = generator.normal(size=(60, 1))
    is_member = np.arange(60) < 30
    for count in (4, 16):
        inside = halves([str(index) for index in range(60)], count, 0)
        shadows = hardness - 0.5 * inside[:, :, None] + 0.2 * generator.normal(size=(count, 60, 3))
        target = hardness - 0.5 * is_member[:, None] + 0.2 * generator.normal(size=(60, 3))
        scores = likelihood_ratios(target, shadows, inside)
        assert auc(scores[is_member], scores[~is_member]) > 0.95


def test_a_picture_without_both_kinds_of_shadow_is_refused():
    with pytest.raises(InputError, match="inside some shadows and outside others"):
        likelihood_ratios(np.zeros((1, 1)), np.zeros((2, 1, 1)), np.ones((2, 1), dtype=bool))


def test_a_shadow_split_keeps_pictures_and_aux_sides_and_changes_members_only(tmp_path):
    images = [
        {"pixels": f"{index}", "path": f"/p/{index}.png", "side": side, "group": str(index), "repeats": 1}
        for index, side in enumerate(["members-aux", "members-test", "non-members-aux", "non-members-test"])
    ]
    (tmp_path / "split.json").write_text(
        json.dumps({"format": 1, "seed": 0, "inclusion": "bernoulli", "images": images})
    )
    sides = {"0": "non-members-aux", "1": "members-test", "2": "members-aux", "3": "non-members-test"}
    write_shadow_split(tmp_path / "split.json", sides, tmp_path / "shadow.json")
    written = json.loads((tmp_path / "shadow.json").read_text())["images"]
    assert [entry["side"] for entry in written] == [
        "non-members-aux", "members-test", "members-aux", "non-members-test"
    ]  # fmt: skip
    assert (tmp_path / "shadow.json").stat().st_mode & 0o777 == 0o600


def test_a_shadow_of_a_run_that_a_target_ended_trains_as_long_as_it_did():
    """Its own aux sides are too small for the target; the default demo run is such a run."""
    run = {"target_auc": 0.55, "target_decay": 0.25, "lr_scheduler": "constant_with_warmup", "max_train_epochs": 16,
           "param_alpha": 0.05}  # fmt: skip
    assert of_fixed_length(run, 7.0) == {
        "lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 0.2, "max_train_epochs": 7, "param_alpha": 0.05
    }  # fmt: skip
    assert of_fixed_length({**run, "target_decay": 0.0}, 0.3)["max_train_epochs"] == 1
    assert of_fixed_length({**run, "target_decay": 0.0}, 7.0)["lr_scheduler"] == "constant_with_warmup"
    steps = {"max_train_steps": 90, "target_auc": None, "target_decay": 0.25}
    assert of_fixed_length(steps, None) == steps
    assert "max_train_steps" not in of_fixed_length({**steps, "target_auc": 0.6}, 7.0)
    with pytest.raises(InputError, match="does not say after how many exposures"):
        of_fixed_length(run, None)
