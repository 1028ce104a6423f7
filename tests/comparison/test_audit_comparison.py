"""The comparison: its table, its plan, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import toml

import compare
from library.audit.report.comparison.comparison_table import COLUMNS, comparison_rows, markdown, read_findings
from library.errors import InputError
from library.options.resolve import read_config

ROOT = Path(__file__).parent.parent.parent


UTILITY = {"held_out_gain": 0.4, "held_out_gain_low": 0.38, "held_out_gain_high": 0.42, "held_out_pictures": 120.0,
           "member_loss_relative": 0.8}  # fmt: skip


def found(name: str, area: float, p: float) -> dict:
    rates = [{"fpr": 0.05, "tpr": 0.4}, {"fpr": 0.001, "tpr": None}]
    return {
        "name": name, "title": name.title(), "auc": area, "auc_interval": [area - 0.05, area + 0.05], "p": p,
        "low_rates": rates, "transfer": {"balanced_accuracy": 0.75}, "members": 100, "non_members": 120,
    }  # fmt: skip


def content(defended: bool, area: float, p: float, **utility: float) -> dict:
    return {
        "findings": [found("map_mlp", area, p), found("fusion", area, p), found("loss", 0.5, 0.9)],
        "label": f"LoRA {2 if defended else 1}",
        "primary": "fusion", "worst": "fusion", "defended": defended, "exposures_per_image": 80.0,
        "utility": {**UTILITY, **utility}, "verdict": {"word": "leak"},
        "paired_differences": [
            {"attack": "fusion", "against": "LoRA 1", "difference": -0.3, "interval": [-0.4, -0.2]}
        ] if defended else [],
    }  # fmt: skip


def test_the_table_has_the_papers_figures_and_the_stronger_attacks_beside_them():
    rows = comparison_rows(
        {
            "LoRA": content(False, 0.9, 0.001, vae_frechet_distance=1.5, held_out_gain=0.5),
            "SPLoRA": content(True, 0.6, 0.2),
        }
    )
    assert rows[0]["auc_deviation"] == pytest.approx(0.8) and rows[0]["asr"] == 0.75 and rows[0]["tpr_at_5_fpr"] == 0.4
    assert rows[1]["paper_attack_is_credited"] is True and rows[1]["credited_attacks"] == ["map_mlp", "fusion"]
    assert rows[1]["main_auc_difference_against"] == "LoRA"
    assert rows[1]["main_auc_difference"] == -0.3 and rows[0]["main_auc_difference"] is None
    text = markdown(rows)
    assert "| -0.30 [-0.40, -0.20] |" in text.splitlines()[3] and "FID (2048-d)" not in text
    with_fid = markdown(comparison_rows({"LoRA": content(False, 0.9, 0.001, fid_2048=12.5)}))
    assert with_fid.splitlines()[0].count("|") == len(COLUMNS) + 2 and "| 12.500 |" in with_fid
    assert text.splitlines()[3].startswith("| SPLoRA | 80 | 40.0 % [38.0, 42.0] | 80 % [76, 84] | 0.60 [0.55, 0.65] |")
    assert text.splitlines()[2].endswith("| leak | 75.0 | 0.80 | 40.0 | yes | 1.50 | - |")
    assert rows[1]["share_of_best_plain_gain"] == pytest.approx((0.8, 0.76, 0.84)) and "member loss" not in text
    alone = markdown(comparison_rows({"SPLoRA": content(True, 0.6, 0.2)}))
    assert "| 40.0 % [38.0, 42.0] | - |" in alone  # no plain LoRA to compare with
    assert text.splitlines()[0].count("|") == len(COLUMNS) + 1 and "not FID" in text


def test_an_attack_that_fails_without_a_defence_is_not_credited():
    rows = comparison_rows({"LoRA": content(False, 0.52, 0.4), "SPLoRA": content(True, 0.5, 0.9)})
    assert not any(row["paper_attack_is_credited"] for row in rows)


def test_a_folder_without_findings_is_named(tmp_path):
    with pytest.raises(InputError, match="was not audited"):
        read_findings(tmp_path)


def test_the_shipped_comparison_has_the_control_that_every_claim_needs():
    plan, output = compare.read_plan(["--config_file", str(ROOT / "configs" / "compare_demo.toml")])
    curve = [run["max_train_epochs"] for run in plan["runs"] if run.get("curve")]
    others = [run["door"] for run in plan["runs"] if not run.get("curve")]
    assert curve == [6, 12, 24] and others == ["PLoRA", "PLoRA", "SPLoRA"] and output == Path("output/compare_demo")
    configs = [toml.load(ROOT / run["config_file"]) for run in plan["runs"] if "config_file" in run]
    assert len({json.dumps([one["split"], one["data"], one["network"]]) for one in configs}) == 1


@pytest.mark.parametrize("name", ["compare_demo", "frontier_demo"])
def test_every_run_of_a_shipped_comparison_is_understood(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    plan, _ = compare.read_plan(["--config_file", f"configs/{name}.toml"])
    for run in plan["runs"]:
        if "checkpoint_of" not in run:
            assert read_config(run["door"], compare.own_flags(run), lambda text: None).train_data_dir == "demo/images"


@pytest.mark.parametrize("value", ["true", "false"])
def test_a_switch_and_a_list_of_the_plan_reach_the_audit_as_such(value, monkeypatch, tmp_path) -> None:
    heard: list[str] = []
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: heard.extend(command[2:]) or subprocess.CompletedProcess(command, 0)
    )
    plan = toml.loads(f'shadow_transfer = {value}\nattacks = ["membership"]\nfail_above = 0.6')
    compare.audit_all([tmp_path / "one", tmp_path / "two"], plan)
    config = read_config("audit", heard, lambda text: None)
    assert config.shadow_transfer == (value == "true") and config.fail_above == 0.6
    assert config.outputs == [str(tmp_path / "one"), str(tmp_path / "two")] and config.attacks == ["membership"]


def test_an_early_checkpoint_becomes_an_output_folder_of_its_own(tmp_path):
    source = tmp_path / "lora"
    source.mkdir()
    (source / "config.toml").write_text('[saving]\noutput_name = "demo"\n')
    (source / "split.json").write_text("{}")
    (source / "demo-000002.safetensors").write_bytes(b"early")
    compare.take_checkpoint({"name": "early", "checkpoint_of": "lora", "epoch": 2}, tmp_path)
    assert (tmp_path / "early" / "demo.safetensors").read_bytes() == b"early"
    with pytest.raises(InputError, match="has no LoRA of epoch 3; save it with save_every_n_epochs"):
        compare.take_checkpoint({"name": "early", "checkpoint_of": "lora", "epoch": 3}, tmp_path)


def test_a_stopped_training_or_one_of_other_settings_is_trained_again(tmp_path):
    """A stopped run has a LoRA under its final name, so the file alone says nothing."""
    run = {"name": "lora", "door": "PLoRA", "max_train_epochs": 6}
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "last.safetensors").write_bytes(b"half")
    assert not compare.finished(run, tmp_path)
    compare.mark_finished(run, tmp_path)
    assert compare.finished(run, tmp_path) and not compare.finished({**run, "max_train_epochs": 8}, tmp_path)


def test_a_training_whose_config_file_has_changed_is_trained_again(tmp_path):
    file = tmp_path / "lora.toml"
    file.write_text("[network]\nnetwork_dim = 4\n")
    run = {"name": "a", "door": "PLoRA", "config_file": str(file), "seed": 3}
    compare.mark_finished(run, tmp_path)
    assert compare.finished(run, tmp_path)
    file.write_text("# the same options\nnetwork_dim = 4\n")
    assert compare.finished(run, tmp_path)
    file.write_text("[network]\nnetwork_dim = 8\n")
    assert not compare.finished(run, tmp_path)


def test_whatever_stops_the_comparison_stops_its_trainings(tmp_path, monkeypatch):
    started = []

    def start(run, output, split):
        seconds, status = run["seconds"], run["status"]
        command = [sys.executable, "-c", f"import sys, time; time.sleep({seconds}); sys.exit({status})"]
        started.append(subprocess.Popen(command))
        (output / "a").mkdir(exist_ok=True)
        (output / "a" / "split.json").write_text("{}")
        return started[-1]

    monkeypatch.setattr(compare, "start_training", start)
    runs = [{"name": "a", "seconds": 1, "status": 3}, {"name": "b", "seconds": 60, "status": 0}]
    with pytest.raises(InputError, match="training 'a' stopped"):
        compare.train_all(runs, tmp_path, jobs=2)
    assert [process.wait(10) for process in started] == [3, -15]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--config_file is missing"),
        (["--config_file"], "argument --config_file: expected one argument"),
        (["--config_file", "a.toml", "--profile", "full"], "unknown option '--profile'"),
        (["--config_fil", "a.toml"], "unknown option '--config_fil'; did you mean 'config_file'?"),
        (["--config_file", "a.toml", "--output-dir=b"], "unknown option '--output-dir'; did you mean 'output_dir'?"),
        (["a.toml"], "'a.toml' on the command line belongs to no option"),
    ],
)
def test_words_that_the_comparison_does_not_take_are_refused(words, told):
    with pytest.raises(InputError, match="compare.py takes --config_file FILE and --output_dir DIR") as caught:
        compare.read_plan(words)
    assert told in str(caught.value)


def test_a_comparison_without_names_is_refused(tmp_path):
    (tmp_path / "plan.toml").write_text('[[runs]]\ndoor = "PLoRA"\n')
    with pytest.raises(InputError, match=r"'runs\[0\]' has no 'name'"):
        compare.read_plan(["--config_file", str(tmp_path / "plan.toml")])


def test_the_words_of_a_training_are_for_the_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda command, **streams: streams["stderr"].write(b"'me.png' is small"))
    compare.start_training({"name": "one", "door": "PLoRA"}, tmp_path, None)
    words = tmp_path / "one.txt"
    assert words.read_bytes() == b"'me.png' is small" and words.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("status", "refused"), [(0, False), (3, False), (4, False), (1, True), (2, True)])
def test_the_audits_bound_is_passed_on_and_a_failed_audit_is_told(monkeypatch, tmp_path, status, refused) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, status))
    if refused:
        with pytest.raises(InputError, match="the audit failed"):
            compare.audit_all([tmp_path], {"fail_above": 0.6})
    else:
        assert compare.audit_all([tmp_path], {"fail_above": 0.6}) == status
