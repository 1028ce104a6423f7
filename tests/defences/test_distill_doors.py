"""Runs with teachers, through the doors: what they leave, how they go on after a stop, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import PLoRA
import SPLoRA
from library import file_table
from library.assembly import teachers as teacher_room
from library.assembly.teachers import Lesson
from library.audit.targets.provenance import read_adapter
from library.errors import InputError, RunStopped
from library.tensor_files import read_tensors, write_tensors
from library.training.interruption import StopSignal
from tests.helpers.runs import assert_same_tensors, records, two_datasets

PLAIN: dict[str, Any] = {"param_alpha": 0, "k_steps": 0, "max_train_steps": 4}
TAUGHT: dict[str, Any] = {**PLAIN, "distill_folds": 3, "distill_teacher_epochs": 1, "save_state_on_train_end": True}


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The teachers that are trained, by their steps; at one of them something may happen."""

    def watch(at: str = "", step: int = 0, what: Callable[[], object] | None = None) -> list[str]:
        trained: list[str] = []
        honest = Lesson.step

        def watched(self: Lesson, number: int) -> dict[str, float]:
            trained.append(self.name)
            figures = honest(self, number)
            if what is not None and self.name == at and number == step:
                what()
            return figures

        monkeypatch.setattr(Lesson, "step", watched)
        return trained

    return watch


def test_a_taught_run_leaves_no_teacher_states_how_it_was_taught_and_is_another_lora(flags, tmp_path: Path) -> None:
    assert PLoRA.main(flags(**TAUGHT)) == 0
    assert PLoRA.main(flags(**PLAIN, output_dir=tmp_path / "plain")) == 0
    out = tmp_path / "out"
    assert [path.name for path in (out / "state").iterdir()] == ["last-state"]
    taught, plain = (read_adapter(folder / "last.safetensors")[2] for folder in (out, tmp_path / "plain"))
    assert taught.fingerprint != plain.fingerprint and taught.defended and plain.defended is False
    assert taught.settings["distill_folds"] == "3" and taught.settings["distill_teacher_epochs"] == "1"
    assert not [name for name in plain.settings if "distill" in name]
    log = [record for record in records(out) if "teacher" in record]
    assert [record["teacher"] for record in log] == [1, 2, 3] and {record["step"] for record in log} == {0}
    assert all(record["teacher_loss"] > 0 and record["teacher_steps"] in (2.0, 3.0) for record in log)


def test_teachers_that_are_kept_are_their_owner_s_alone(flags, tmp_path: Path) -> None:
    assert PLoRA.main(flags(**{**TAUGHT, "max_train_steps": 1}, distill_keep_teachers=True)) == 0
    state = tmp_path / "out" / "state"
    assert sorted(path.name for path in state.iterdir()) == ["last-state", "last-teachers"]
    files = sorted((state / "last-teachers").iterdir())
    assert [file.name for file in files] == ["teacher-1.safetensors", "teacher-2.safetensors", "teacher-3.safetensors"]
    for path in (state / "last-teachers", *files):
        (row,) = file_table.OUTPUT_DIR.rows_of(path.relative_to(tmp_path / "out").as_posix(), path.is_dir())
        assert path.stat().st_mode & 0o777 == row.mode(path.is_dir(), 0o022) and row.share == file_table.NEVER
    with safe_open(str(files[0]), framework="pt") as file:
        assert not [text for text in file.metadata().values() if "zebrafolder" in text or "quokka" in text]


@pytest.mark.parametrize("way", ["asked", "killed"])
def test_a_run_that_ends_among_its_teachers_goes_on_to_the_same_lora(
    flags, lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Stopped in the second teacher: the first is not trained again, the second starts anew; nothing differs."""
    straight, out = tmp_path / "straight", tmp_path / "out"
    run = {**TAUGHT, "network_dropout": 0.3, "save_every_n_steps": 2, "save_state": True}
    assert PLoRA.main(flags(**run, output_dir=straight)) == 0
    with monkeypatch.context() as patch:
        if way == "asked":
            stopped: list[StopSignal] = []
            enter = StopSignal.__enter__
            patch.setattr(StopSignal, "__enter__", lambda self: stopped.append(enter(self)) or stopped[-1])
            lessons("teacher 2 of 3", 0, lambda: setattr(stopped[-1], "received", True))
            said = r"stopped in teacher 2 of 3, after its step 1 of \d, as asked"
        else:
            lessons("teacher 2 of 3", 0, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            said = "ended in the middle of things after step 0, as asked"
        with pytest.raises(RunStopped, match=said) as caught:
            PLoRA.main(flags(**run))
        assert "--resume" in str(caught.value) and str(caught.value).count("continue with") == 1
        assert [file.name for file in (out / "state" / "last-teachers").iterdir()] == ["teacher-1.safetensors"]
    monkeypatch.undo()
    trained = lessons()
    assert PLoRA.main(flags(**run, resume=out / "state" / "last-step00000000-state")) == 0
    assert set(trained) == {"teacher 2 of 3", "teacher 3 of 3"}
    for name in ("last.safetensors", "state/last-state/lora.safetensors"):
        assert_same_tensors(straight / name, out / name)
    assert records(straight) == records(out)
    assert sorted(path.name for path in (out / "state").iterdir()) == ["last-state", "last-step00000002-state"]


@pytest.mark.slow
def test_a_student_goes_on_with_its_teachers_or_with_new_ones_to_the_same_lora(flags, lessons, tmp_path: Path) -> None:
    """From step 2: with the teachers that were kept, then where somebody removed them; also with everything on."""
    run = {**TAUGHT, "k_steps": 1, "param_alpha": 0.2, "proxy_input": "calibrated", "attack_draws": 2,
           "gradient_accumulation_steps": 2, "min_snr_gamma": 5.0, "ema_decay": 0.8, "network_dropout": 0.2,
           "save_every_n_steps": 2, "save_state": True, "distill_keep_teachers": True}  # fmt: skip
    straight, out = tmp_path / "straight", tmp_path / "out"
    assert SPLoRA.main(flags(**run, output_dir=straight)) == 0
    trained = lessons()
    state = straight / "state" / "last-step00000002-state"
    assert SPLoRA.main(flags(**run, resume=state)) == 0 and trained == []
    assert_same_tensors(straight / "last.safetensors", out / "last.safetensors")
    for file in (straight / "state" / "last-teachers").iterdir():
        file.unlink()
    assert SPLoRA.main(flags(**run, resume=state, output_dir=tmp_path / "anew")) == 0 and len(set(trained)) == 3
    assert_same_tensors(straight / "last.safetensors", tmp_path / "anew" / "last.safetensors")


@pytest.mark.slow
def test_teachers_work_with_several_datasets_and_public_pictures(flags, tmp_path: Path, pictures: Path) -> None:
    run = {**TAUGHT, "train_data_dir": None, "dataset_config": two_datasets(tmp_path, pictures), "loss_type": "huber"}
    assert PLoRA.main(flags(**run)) == 0
    assert all(record["adaptation_loss"] > 0 for record in records(tmp_path / "out") if "adaptation_loss" in record)


@pytest.mark.slow
def test_with_a_target_each_teacher_stops_at_its_own_gap(flags, tmp_path: Path, capsys) -> None:
    """Its own fold is held out for it: the aux members that it learns from, against all others."""
    sides: list[tuple[int, int]] = []
    honest = teacher_room.lesson_validation

    def watched(*arguments: Any) -> Any:
        found = honest(*arguments)
        sides.append((len(found.members), len(found.non_members)))
        return found

    run = {**TAUGHT, "distill_teacher_epochs": 2, "target_auc": 0.95, "aux_loss_every_n_steps": 1, "max_train_steps": 6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher_room, "lesson_validation", watched)
        assert PLoRA.main(flags(**run)) == 0
    assert len(sides) == 3 and all(sum(pair) == 8 and pair[0] < 4 < pair[1] for pair in sides)
    told = capsys.readouterr()
    log = [record for record in records(tmp_path / "out") if "teacher" in record]
    assert all(record["teacher_auc"] <= 0.95 and record["teacher_kept_step"] >= 1 for record in log)
    assert "learnt" in told.err + told.out


def test_a_damaged_teacher_and_one_of_another_run_are_refused(flags, tmp_path: Path) -> None:
    assert PLoRA.main(flags(**{**TAUGHT, "max_train_steps": 1}, distill_keep_teachers=True)) == 0
    state, teachers = (tmp_path / "out" / "state" / name for name in ("last-state", "last-teachers"))
    more = flags(**{**TAUGHT, "max_train_steps": 2}, resume=state)
    file = teachers / "teacher-2.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="teacher-2.safetensors' is not as it was written; remove it, and this"):
        PLoRA.main(more)
    file.write_bytes(whole[:100])
    with pytest.raises(InputError, match="teacher-2.safetensors' is no whole safetensors file.*trained anew"):
        PLoRA.main(more)
    file.write_bytes(whole)
    tensors, stated = read_tensors(file)
    write_tensors(file, tensors, {**stated, "run": "0" * 64})
    with pytest.raises(InputError, match="teacher-2.safetensors' is a teacher of another run"):
        PLoRA.main(more)
    write_tensors(file, tensors, {**stated, "figure teacher_loss": "walrus"})
    with pytest.raises(InputError, match="teacher-2.safetensors' states a figure that is no number"):
        PLoRA.main(more)
    file.unlink()
    assert PLoRA.main(more) == 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"distill_folds": 1}, "distill_folds 1: the one teacher would be trained without any member"),
    ({"distill_folds": -1}, "distill_folds must be at least 0"),
    ({"distill_folds": 9}, "distill_folds 9 is above the 8 groups of members that the split has"),
    ({"distill_folds": 2, "distill_teacher_epochs": 0}, "distill_teacher_epochs must be at least 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "said"), BAD, ids=[str(changed) for changed, _ in BAD])
def test_folds_and_epochs_that_cannot_be_are_refused_in_one_line(flags, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        SPLoRA.main(flags(**changed))
    assert all(message.startswith("not looked at yet") for message in caught.value.messages[1:])


def test_a_dry_run_counts_the_teachers(flags, capsys) -> None:
    """8 members, batches of 2: a fold of 2 or 3 leaves 6 or 5 to a teacher, 3 steps an epoch."""
    assert PLoRA.main([*flags(**TAUGHT), "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert (
        "distillation: 3 teachers, one after another, each 1 epoch over the members outside its fold (9 steps" in told
    )
    assert "for the teachers" in told
