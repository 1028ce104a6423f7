"""A run says where it stands: bars, forecasts, threads, finished and resumed runs, preview sheets."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tqdm import tqdm

import PLoRA
from library import progress
from library.assembly import run as run_module
from library.assembly import time_forecast
from library.errors import InputError
from library.training import device, sample_folder
from library.training.output_folder import OutputFolder
from library.training.run_log import validation_summary

ROOT = Path(__file__).parent.parent.parent


def test_a_bar_fits_80_columns_with_speed_and_time_left_before_all_else() -> None:
    bar = progress.course(24500, "step", done=2400)
    bar.set_postfix_str("30.1 images/s, 1:02:05 left, L 0.152, CE 0.693, proxy 0.690", refresh=False)
    shown = tqdm.format_meter(**{**bar.format_dict, "ncols": 80})
    bar.close()
    assert len(shown) <= 80 and shown.startswith("step 2400/24500, 30.1 images/s, 1:02:05 left, L 0.152, CE 0.693")
    counted = progress.counted(305, "encoding latents")
    counted.update(96)
    shown = tqdm.format_meter(**{**counted.format_dict, "ncols": 80})
    counted.close()
    assert len(shown) <= 80 and re.match(r"encoding latents: 96 of 305 images, [\d.]+ images/s, \d\d:\d\d left", shown)


def test_a_run_shows_its_course_in_lines_that_fit(flags, monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    assert PLoRA.main(flags(max_train_steps=4)) == 0
    states = [state.strip() for state in re.split(r"[\r\n]", capsys.readouterr().err) if "step " in state]
    assert states and max(map(len, states)) <= 80
    assert any(re.match(r"step 3/4, [\d.e+]+ images/s, 0:0\d left, L [\d.]+, CE [\d.]+, proxy [\d.]+ \|", one)
               for one in states)  # fmt: skip
    assert any("validation, members-aux: image" in one for one in states)


def test_figures_are_smoothed_without_the_bias_of_the_start() -> None:
    """decay .5 of 1, 3: (.5 * .5 * 1 + .5 * 3) / (.5 * .5 + .5) = 7 / 3; what is not finite is left out."""
    means = progress.Smoothed(decay=0.5)
    assert means.add("L", float("nan")) != means.add("L", float("nan"))
    assert means.add("L", 1.0) == 1.0 and means.add("L", 3.0) == pytest.approx(7 / 3)
    assert means.add("L", float("inf")) == pytest.approx(7 / 3) and means.add("CE", 2.0) == 2.0


def test_times_are_written_as_people_read_them() -> None:
    assert [progress.clock(seconds) for seconds in (8.4, 754, 3723, float("inf"))] == ["0:08", "12:34", "1:02:03", "?"]
    spoken = ["about 1 seconds", "about 89 seconds", "about 2 minutes", "about 1.5 hours"]
    assert [progress.spoken(seconds) for seconds in (0.2, 89, 100, 5400)] == spoken


@pytest.mark.parametrize(
    ("own", "cores", "busy", "threads"),
    [(2, 2, 0.1, 2), (2, 2, 1.0, 1), (2, 2, 2.0, 1), (8, 16, 4.0, 8), (8, 16, 12.2, 4), (1, 1, 1.0, 1)],
)
def test_no_more_threads_than_cores_are_free(own: int, cores: int, busy: float, threads: int) -> None:
    assert device.free_threads(own, cores, busy) == threads


def test_the_use_of_cores_is_that_of_the_machines_counters(tmp_path: Path, monkeypatch) -> None:
    """Core 0 worked 75 of 100 ticks, core 1 none (its disk waits count as idle); core 2 is not this process's."""
    before = "cpu  9 9 9 9\ncpu0 10 0 0 50 0 0 0 0 0 0\ncpu1 0 0 0 10 10 0 0 0 0 0\ncpu2 0 0 0 0 0 0 0 0 0 0\n"
    after = "cpu  9 9 9 9\ncpu0 60 20 5 75 0 0 0 0 0 0\ncpu1 0 0 0 60 60 0 0 0 0 0\ncpu2 99 0 0 0 0 0 0 0 0 0\n"
    file = tmp_path / "stat"
    file.write_text(before)
    monkeypatch.setattr(device, "CORES", file)
    monkeypatch.setattr(time, "sleep", lambda seconds: file.write_text(after))
    assert device.cores_in_use([0, 1]) == pytest.approx(0.75)
    monkeypatch.setattr(device, "CORES", tmp_path / "none")
    assert device.cores_in_use([0, 1]) == 0


@pytest.mark.parametrize(
    ("environment", "saved", "kept", "said"),
    [({}, None, 1, "other programs use 1.7 of"), ({}, 2, 2, ""), ({}, 3, 3, "as the state was trained with"),
     ({"OMP_NUM_THREADS": "2"}, None, 2, ""), ({"OMP_NUM_THREADS": "2"}, 1, 2, "may differ in their last digits")],
)  # fmt: skip
def test_threads_are_chosen_once_and_told(environment, saved, kept, said, monkeypatch, caplog) -> None:
    chosen = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(device, "cores_in_use", lambda cores: 1.7)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    with caplog.at_level("INFO", "library"):
        device.settle_threads(torch.device("cpu"), saved, environment)
    assert chosen[-1] == kept and (said in caplog.text if said else not caplog.text)


def test_a_finished_run_says_so_and_changes_nothing(flags, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert PLoRA.main(flags(max_train_steps=4, save_every_n_steps=2, save_state=True)) == 0
    said = capsys.readouterr().out
    assert f"curves: tensorboard --logdir {out}/tensorboard" in said
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("*") if file.is_file()}
    assert PLoRA.main(flags(max_train_steps=4, resume=out / "state/last-state")) == 0
    said = capsys.readouterr().out
    assert "this run is finished: 4 of 4 steps are done. Nothing was trained and no file was changed." in said
    assert before == {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in out.rglob("*") if file.is_file()}
    with pytest.raises(InputError) as caught:
        PLoRA.main(flags(resume=out))
    assert f"the newest first: --resume {out.resolve()}/state/last-s" in str(caught.value)
    half = out / "state/last-step00000002-state"
    assert PLoRA.main(flags(max_train_steps=4, resume=half)) == 0
    assert "resumed after step 2 of 4" in capsys.readouterr().out


def test_many_pictures_are_not_read_for_a_run_that_stops_anyway(flags, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_module, "MANY", 15)
    monkeypatch.setattr(run_module, "read_sources", lambda *rules: pytest.fail("the pictures were read"))
    broken = tmp_path / "base.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(InputError, match="not looked at yet, because of the other faults: more than 15 pictures"):
        PLoRA.main(flags(pretrained_model_name_or_path=broken))


def test_the_dry_run_forecasts_the_time(flags, capsys) -> None:
    assert PLoRA.main([*flags(max_train_steps=5), "--dry_run"]) == 0
    assert re.search(r"time, from timed passes on this machine: about \d+ \w+ \(about .* for 5 steps", (
        capsys.readouterr().out
    ))  # fmt: skip


def test_the_forecast_counts_every_pass() -> None:
    """10 steps of 2 passes at 3 s, and 2 x 4 images at .5 s; 4 validations of 6 images x 2 draws; 2 previews of 5.

    Teachers: 30 steps of 2 passes at 3 s.
    """
    config = SimpleNamespace(
        gradient_accumulation_steps=2, aux_loss_every_n_epochs=1, aux_loss_every_n_steps=None, attack_eval_draws=2,
        sample_every_n_epochs=None, sample_every_n_steps=None, sample_at_first=True, train_batch_size=4, k_steps=1,
        attack_batch_size=None, separate_noise=False, proxy_mode="eval", gain_limit=None,
        proxy_input="error_map", attack_draws=1, gain_starts="at_once",
        distill_folds=0,
    )  # fmt: skip
    from library.assembly.validation_plan import ValidationPlan
    from library.training.training_plan import TrainingPlan

    plan = TrainingPlan(4, 10)
    looks = ValidationPlan(plan, 1, None, members=2, non_members=4, draws=2, training_cost=1.0)
    run: Any = SimpleNamespace(config=config, plan=plan, resumed={"done": 0}, validation=lambda: looks, privacy=None,
                               prompts=[SimpleNamespace(steps=5)])  # fmt: skip
    times = time_forecast.PassTimes(training=3.0, asking=0.5)
    assert time_forecast.seconds_of_steps(run, times) == 10 * (2 * 3.0 + 8 * 0.5)
    assert time_forecast.seconds_of_looks(run, times) == (4 * 6 * 2 + 2 * 10) * 0.5
    run.distillation = lambda: None
    assert time_forecast.seconds_of_teachers(run, times) == 0
    run.distillation = lambda: SimpleNamespace(total_steps=lambda: 30)
    assert time_forecast.seconds_of_teachers(run, times) == 30 * 2 * 3.0


def test_a_preview_sheet_names_its_rows_and_columns(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, "last")
    for stage in ("base", "e000005", "final"):
        sample_folder.write_previews(folder.samples(), "last", stage, [Image.new("RGB", (64, 64), "white")] * 2)
    sheet = Image.open(sample_folder.write_sheet(folder)).convert("L")
    left = sample_folder.ROW_LABEL
    rows = [sheet.crop((0, 16 + line * 132, left, 16 + line * 132 + 20)).getextrema()[0] for line in (0, 1)]
    assert max(rows) < 128 and sheet.width == left + 3 * 132 + 4
    titles = ["base model", "epoch 5", "step 50", "final"]
    assert [sample_folder.stage_title(stage) for stage in ("base", "e000005", "step00000050", "final")] == titles


DOOR = """
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
from library.prompt_exit import interruptible
def main(arguments):
    if arguments[0] == "threads":
        for _ in range(2):
            threading.Thread(target=time.sleep, args=(60,)).start()
    print("at work", flush=True)
    time.sleep(60)
    return 0
sys.exit(interruptible(main, lambda words: f"stopped; to go on: {words}")(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alone", "threads"])
def test_ctrl_c_ends_a_door_within_3_seconds_with_one_line(how: str) -> None:
    door = subprocess.Popen([sys.executable, "-c", DOOR, how], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip
    assert door.stdout is not None and door.stdout.readline() == "at work\n"
    started = time.monotonic()
    door.send_signal(signal.SIGINT)
    _, said = door.communicate(timeout=30)
    assert time.monotonic() - started < 3 and door.returncode == 130
    assert said.strip() == f"stopped; to go on: ['{how}']"


def test_what_was_learnt_is_told_with_its_interval_where_the_log_has_one() -> None:
    figures = {"images_members_aux": 190, "images_non_members_aux": 200, "learnt": 0.447, "learnt_by_heart": 0.02,
               "calibrated_auc": 0.55, "calibrated_auc_low": 0.45, "calibrated_auc_high": 0.65}  # fmt: skip
    assert validation_summary(figures).startswith("learnt 44.7% (held-out, n=200),\n")  # of an earlier version
    sure = {"learnt_low": 0.401, "learnt_high": 0.49}
    assert validation_summary(figures | sure).startswith("learnt 44.7% [40.1, 49.0] (held-out, n=200),\n")
