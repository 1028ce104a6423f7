"""--overwrite touches only what a run of this suite wrote, follows no link, and leaves no half state."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

import SPLoRA
from library.errors import InputError
from library.tensor_files import remove_folder, write_tensors
from library.training import checkpoint_schedule
from library.training.checkpoint_schedule import KeepRule
from library.training.earlier_run import check_earlier, make_folder
from library.training.output_folder import OutputFolder
from library.training.training_plan import TrainingPlan

OWN = (
    "split.json", "log.jsonl", "proxy.safetensors", "last.safetensors", "last-000002.safetensors",
    "last-step00000007.safetensors", "sample/last_base_00.png", "tensorboard/events.out.tfevents.1.me",
    "state/last-state/lora.safetensors", "state/last-state/state.json", "audit/report.html",
    "audit.old-1/findings.json", "audit/records/" + 64 * "a" + "/" + 64 * "b" + ".safetensors",
)  # fmt: skip
PERSONS = (
    "notes.txt", "mine.safetensors", "last-girls.safetensors", "sample/holiday.png", "audit/letter.odt",
    "state/notes.txt", "tensorboard/mine.csv", "wandb/run-1/config.yaml", "pictures/1_me/a.png",
)  # fmt: skip


def earlier_run(path: Path, log_with: str = "tensorboard") -> OutputFolder:
    """A run's files, and a person's beside them."""
    for name in (*OWN, *PERSONS):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    (path / "config.toml").write_text(
        f'# resolved options of SPLoRA.py\n[saving]\noutput_name = "last"\n[previews]\nlog_with = "{log_with}"\n'
    )
    return OutputFolder(path, "last")


def files(path: Path) -> set[str]:
    """All that is left."""
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}


def test_overwriting_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    folder = earlier_run(tmp_path / "out")
    check_earlier(folder, overwrite=True, resume=False)
    make_folder(folder, clear=True)
    left = {name.replace("audit/", "audit.old-1/") if name.startswith("audit/") else name for name in PERSONS}
    assert {name.replace("audit/", "audit.old-1/") for name in files(tmp_path / "out")} == left


def test_a_run_of_another_name_is_cleared_too_and_so_is_what_wandb_kept_for_it(tmp_path: Path) -> None:
    """Its LoRA beside the new split.json would be audited against the wrong members."""
    earlier_run(tmp_path / "out", log_with="wandb")
    (tmp_path / "out" / "wandb" / "latest-run").symlink_to("run-1")
    make_folder(OutputFolder(tmp_path / "out", "other"), clear=True)
    assert not {"last.safetensors", "last-000002.safetensors", "wandb/run-1/config.yaml"} & files(tmp_path / "out")
    assert not (tmp_path / "out" / "wandb").exists()


@pytest.mark.parametrize("name", ["config.toml", "split.json", "log.jsonl", "last.safetensors"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_persons_own_file_is_never_replaced(tmp_path: Path, name: str, overwrite: bool) -> None:
    """A config.toml of one's own, a hand-written split, another trainer's LoRA."""
    (tmp_path / name).write_text("[model]\n")
    if name.endswith("safetensors"):
        write_tensors(tmp_path / name, {"a": torch.zeros(1)}, {"ss_network_dim": "4"})
    with pytest.raises(InputError, match=f"{name}' was not written by a run of this suite"):
        check_earlier(OutputFolder(tmp_path, "last"), overwrite=overwrite, resume=False)
    make_folder(OutputFolder(tmp_path, "last"), clear=True)
    assert files(tmp_path) == {name}


def test_a_lora_that_states_its_defence_is_this_suites_without_its_config(tmp_path: Path) -> None:
    write_tensors(tmp_path / "last.safetensors", {"a": torch.zeros(1)}, {"ss_privacy_method": "PLoRA"})
    check_earlier(OutputFolder(tmp_path, "last"), overwrite=True, resume=False)
    make_folder(OutputFolder(tmp_path, "last"), clear=True)
    assert files(tmp_path) == set()


def test_the_door_refuses_a_folder_with_a_persons_config_before_the_first_step(flags, tmp_path: Path) -> None:
    own = tmp_path / "out" / "config.toml"
    own.parent.mkdir()
    own.write_text("seed = 7\n")
    for more in ({}, {"overwrite": True}, {"dry_run": True}):
        with pytest.raises(InputError, match=r"config.toml' was not written by a run of this suite"):
            SPLoRA.main(flags(**more))
    assert own.read_text() == "seed = 7\n" and files(own.parent) == {"config.toml"}


@pytest.mark.parametrize("name", ["state", "sample", "last.safetensors", "log.jsonl", "state/last-state", "audit"])
def test_a_link_is_told_before_anything_is_removed_and_what_it_leads_to_stays(tmp_path: Path, name: str) -> None:
    folder, place = earlier_run(tmp_path / "out"), tmp_path / "out" / name
    elsewhere = tmp_path / "elsewhere"
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere)
    before = files(tmp_path)
    with pytest.raises(InputError, match=f"out/{name}' is a link"):
        check_earlier(folder, overwrite=True, resume=False)
    with pytest.raises(InputError, match="is a link"):
        make_folder(folder, clear=True)
    assert files(tmp_path) == before


def test_an_output_folder_that_is_a_link_is_not_cleared(tmp_path: Path) -> None:
    earlier_run(tmp_path / "real")
    (tmp_path / "out").symlink_to("real")
    before = files(tmp_path / "real")
    with pytest.raises(InputError, match=r"'.*out' is a link.*--output_dir '.*real'"):
        make_folder(OutputFolder(tmp_path / "out", "last"), clear=True)
    assert files(tmp_path / "real") == before


def test_a_kill_while_an_old_state_is_pruned_leaves_no_half_state_and_the_next_start_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plan = OutputFolder(tmp_path, "last"), TrainingPlan(steps_per_epoch=10, total_steps=10)
    rule = KeepRule(None, 1, None, None, 1, None, None)
    for step in (1, 2, 3):
        write_tensors_of_a_state(folder.state(f"-step{step:08d}"))

    def killed(path: Path, **how: object) -> None:
        (path / "lora.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint_schedule.remove_old(plan, rule, folder, 3)
    named = [path for path in (tmp_path / "state").iterdir() if not path.name.startswith(".")]
    assert len(named) == 2 and all((path / "lora.safetensors").is_file() for path in named)
    (tmp_path / ".last.safetensors.abcd1234.part").write_text("")
    (tmp_path / ".mine.txt.abcd1234.part").write_text("")
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / ".last_base_00.png.abcd1234.part").write_text("")
    (tmp_path / "state" / ".last-step00000009-state.abcd1234").mkdir()  # as earlier versions named it
    make_folder(folder, clear=False)
    hidden = [path.name for path in tmp_path.rglob(".*")]
    assert hidden == [".mine.txt.abcd1234.part"] and len(list((tmp_path / "state").iterdir())) == 2


def write_tensors_of_a_state(path: Path) -> None:
    """Two files, as a state has them."""
    path.mkdir(parents=True)
    (path / "lora.safetensors").write_text("")
    (path / "state.json").write_text(json.dumps({}))


def test_a_link_in_the_place_of_a_state_is_not_followed_by_pruning(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    os.symlink(tmp_path / "precious", tmp_path / "last-state")
    remove_folder(tmp_path / "last-state")
    assert (tmp_path / "precious" / "file").read_text() == "kept" and (tmp_path / "last-state").is_symlink()
