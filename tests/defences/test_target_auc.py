"""Runs that stop at the gap and runs with the stronger proxy, through the doors."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import PLoRA
import SPLoRA
from library.assembly import validation
from library.errors import InputError
from library.privacy.gap import GapCheck
from tests.helpers.runs import assert_same_tensors, records

TARGET: dict[str, Any] = {"target_auc": 0.9, "aux_loss_every_n_steps": 2, "max_train_steps": 20, "save_state": True}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch):
    """The AUC of every pass as a function of the steps; what was learnt grows with them."""

    def script(auc: Any) -> None:
        def gap(done: int, *_: object, **how: object) -> GapCheck:
            return GapCheck(done, done / 100, 0.0, 1.0, 0.0, auc(done), 0.4, 1.0, 4, 4)

        monkeypatch.setattr(validation, "gap_between", gap)

    return script


def test_a_run_stops_after_its_decay_and_its_file_holds_what_was_kept(flags, scripted, tmp_path: Path, capsys) -> None:
    """.86 at step 6, and .905 after a decay of 2 steps: it begins; the pass at its end is above, so step 6 is kept."""
    scripted(lambda done: 0.5 + 0.06 * done)
    assert SPLoRA.main(flags(**TARGET, save_every_n_steps=2)) == 0
    log = records(tmp_path / "out")
    steps = [record for record in log if "learning_rate" in record]
    assert len(steps) == 8 and [one["learning_rate"] for one in steps[:6]] == [1e-2] * 6
    assert [one["learning_rate"] for one in steps[6:]] == pytest.approx([1e-2 * 2 / 3, 1e-2 / 3])
    assert_same_tensors(tmp_path / "out" / "last.safetensors", tmp_path / "out" / "last-step00000006.safetensors")
    told = capsys.readouterr()
    assert "after 6 of 8 steps (before the decay" in told.out
    assert (told.out + told.err).count("the run ends after step 8") == 1


def test_the_last_previews_show_what_is_kept_also_beside_an_average(flags, scripted, tmp_path: Path) -> None:
    """Step 6 is kept of 8: the final preview is that of step 6, not the average's at the end."""
    scripted(lambda done: 0.5 + 0.06 * done)
    (tmp_path / "prompts.txt").write_text("walrus001 --s 2\n")
    shown = {"sample_prompts": tmp_path / "prompts.txt", "sample_every_n_steps": 2, "ema_decay": 0.5}
    assert SPLoRA.main(flags(**{**TARGET, **shown, "learning_rate": 0.1})) == 0
    stages = {name: (tmp_path / "out/sample" / f"last_{name}_00.png").read_bytes()
              for name in ("step00000004", "step00000006", "final")}  # fmt: skip
    assert stages["final"] == stages["step00000006"] != stages["step00000004"]


def test_resuming_a_run_that_a_target_ended_changes_nothing(flags, scripted, tmp_path: Path, capsys) -> None:
    scripted(lambda done: 0.5 + 0.06 * done)
    assert SPLoRA.main(flags(**TARGET)) == 0
    state, before = tmp_path / "out/state/last-state", (tmp_path / "out/log.jsonl").read_bytes()
    assert SPLoRA.main(flags(**TARGET, resume=state)) == 0
    assert "this run is finished: 8 of 8 steps" in capsys.readouterr().out
    assert (tmp_path / "out/log.jsonl").read_bytes() == before


def test_all_processes_take_the_main_one_s_checks(flags, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They decide when the run ends: each process's own might differ in its last digits."""
    asked: list[str] = []

    def of_the_main_one(accelerator: Any, value: Any) -> Any:
        asked.append(type(value).__name__)
        return dataclasses.replace(value, auc=0.25) if isinstance(value, GapCheck) else value

    monkeypatch.setattr(validation, "agreed", of_the_main_one)
    assert PLoRA.main(flags(max_train_steps=1)) == 0
    assert {"GapCheck", "ProxyCheck"} == set(asked)
    passes = [record for record in records(tmp_path / "out") if "calibrated_auc" in record]
    assert {record["calibrated_auc"] for record in passes} == {0.25}


def test_no_file_is_written_where_no_pass_meets_the_target(flags, scripted, tmp_path: Path, capsys) -> None:
    scripted(lambda done: 0.95)
    assert PLoRA.main(flags(**TARGET)) == 1
    told = capsys.readouterr().out
    assert not (tmp_path / "out" / "last.safetensors").exists() and (tmp_path / "out" / "state" / "last-state").exists()
    assert "no final LoRA is written" in told and "before you share it" not in told


@pytest.mark.slow
@pytest.mark.parametrize("place", [2, 4, 6])
def test_a_resumed_run_stops_and_keeps_alike(flags, scripted, tmp_path: Path, place: int) -> None:
    """From before the decay, from its start, and from within it; with the average and the stronger proxy."""
    scripted(lambda done: 0.5 + 0.05 * done)
    run = {**TARGET, "save_every_n_steps": 2, "ema_decay": 0.8, "proxy_input": "calibrated", "attack_draws": 2,
           "gain_starts": "above_chance", "lr_scheduler": "cosine", "target_decay": 0.5}  # fmt: skip
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert SPLoRA.main(flags(**run, output_dir=straight)) == 0
    state = straight / "state" / f"last-step{place:08d}-state"
    assert SPLoRA.main(flags(**run, output_dir=resumed, resume=state)) == 0
    for name in ("last.safetensors", "proxy.safetensors", "state/last-state/lora.safetensors"):
        assert_same_tensors(straight / name, resumed / name)
    rest = [record for record in records(straight) if record["step"] > place]
    assert [record for record in records(resumed) if record["step"] > place] == rest and rest


def test_a_resumed_run_compares_with_the_first_pass_of_the_run(flags, tmp_path: Path) -> None:
    """The state holds what each picture fell by after one exposure: the AUC of later passes goes on bit for bit."""
    run = {**TARGET, "max_train_steps": 8, "save_every_n_steps": 4, "learning_rate": 0.05, "target_decay": 0}
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    PLoRA.main(flags(**run, output_dir=straight))
    state = straight / "state" / "last-step00000004-state"
    assert (state / "first_falls.safetensors").stat().st_mode & 0o777 == 0o600
    PLoRA.main(flags(**run, output_dir=resumed, resume=state))
    after = [record for record in records(straight) if record["step"] > 4 and "calibrated_auc" in record]
    assert after and after == [record for record in records(resumed) if "calibrated_auc" in record]


def test_a_pass_that_comes_late_is_no_measure_for_later_ones(flags, tmp_path: Path) -> None:
    """Without a target the first pass may come late: what is learnt by heart by then would be missed."""
    run = {"max_train_steps": 40, "aux_loss_every_n_steps": 20, "save_state": True}
    assert PLoRA.main(flags(**run)) == 0
    assert not (tmp_path / "out/state/last-state/first_falls.safetensors").exists()
    assert PLoRA.main(flags(**{**run, "aux_loss_every_n_steps": 1, "output_dir": tmp_path / "early"})) == 0
    assert (tmp_path / "early/state/last-state/first_falls.safetensors").exists()


def test_other_validation_options_would_change_the_run_and_are_refused_at_resume(flags, scripted, tmp_path) -> None:
    scripted(lambda done: 0.5)
    assert SPLoRA.main(flags(**{**TARGET, "max_train_steps": 2})) == 0
    state = tmp_path / "out" / "state" / "last-state"
    with pytest.raises(InputError, match="aux_loss_every_n_steps was 2 and is 3 now"):
        SPLoRA.main(flags(**{**TARGET, "aux_loss_every_n_steps": 3, "resume": state, "overwrite": True}))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"target_auc": 0.5}, "target_auc must be above 0.5"),
    ({"target_auc": 1.0}, "target_auc must be .*at most 0.99"),
    ({"target_auc": 0.55}, "target_auc 0.55 is nearer to 0.5 than 4 members-aux and 4 non-members-aux"),
    ({"k_steps": 0, "param_alpha": 0, "proxy_input": "calibrated"}, "proxy_input calibrated .*k_steps 0"),
    ({"k_steps": 0, "param_alpha": 0, "gain_starts": "above_chance"}, "gain_starts above_chance .*k_steps 0"),
    ({"attack_draws": 4}, "attack_draws 4: .*proxy_input = \"calibrated\""),
    ({"proxy_input": "everything"}, "proxy_input"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), BAD, ids=[str(changed) for changed, _ in BAD])
def test_targets_and_proxies_that_cannot_be_are_refused(flags, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SPLoRA.main(flags(**changed))


def test_alpha_0_with_the_stronger_proxy_is_plain_lora_bit_for_bit(flags, tmp_path: Path) -> None:
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    assert PLoRA.main(flags(param_alpha=0, k_steps=0, output_dir=plain)) == 0
    assert PLoRA.main(flags(param_alpha=0, proxy_input="calibrated", output_dir=watched)) == 0
    assert_same_tensors(plain / "last.safetensors", watched / "last.safetensors")


def test_a_gain_that_waits_for_an_opponent_leaves_plain_lora_until_then(flags, tmp_path: Path) -> None:
    """4 + 4 aux pictures: no check is above chance, and the objective is L / beta."""
    plain, waiting = tmp_path / "plain", tmp_path / "waiting"
    assert PLoRA.main(flags(param_alpha=0, k_steps=0, output_dir=plain)) == 0
    waits = {"param_alpha": 5.0, "gain_starts": "above_chance", "attack_lr": 1e-9}
    assert PLoRA.main(flags(**waits, output_dir=waiting)) == 0
    assert_same_tensors(plain / "last.safetensors", waiting / "last.safetensors")
    assert {record["attack_loss"] for record in records(waiting) if "attack_loss" in record} == {0.0}


@pytest.mark.parametrize("door", [PLoRA, SPLoRA])
def test_the_stronger_game_changes_the_lora(flags, tmp_path: Path, door: Any) -> None:
    run = {"proxy_input": "calibrated", "attack_draws": 2, "param_alpha": 1.0}
    assert door.main(flags(**run)) == 0
    assert door.main(flags(**run, k_steps=2, output_dir=tmp_path / "other")) == 0
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("out", "other"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    first = next(record for record in records(tmp_path / "out") if "proxy_loss" in record)
    assert first["proxy_loss"] == pytest.approx(0.69, abs=0.2)  # an untrained LoRA gives nothing to tell
