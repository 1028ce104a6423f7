"""Whatever ends a run: what is trained is written or the last state is whole, in one message, without a traceback."""

import errno
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import SPLoRA
from library.errors import RunStopped
from library.training.interruption import StopSignal
from library.training.run_log import LogFile, Recorder
from library.training.saved_state import read_state
from tests.helpers.runs import assert_same_tensors, records

ROOT = Path(__file__).parent.parent.parent
STATES = {"save_every_n_steps": 2, "save_state": True}


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """As in a terminal: whoever runs the tests may ignore some, and processes inherit that."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Something happens once a step has been recorded."""
    record = Recorder.step

    def plan(when: int, what: Callable[[], object]) -> None:
        def step(self: Recorder, done: int, epoch: int, figures: dict) -> None:
            record(self, done, epoch, figures)
            if done == when:
                what()

        monkeypatch.setattr(Recorder, "step", step)

    return plan


def disk_full_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No file or folder of this name can be written."""
    replace = os.replace

    def refuse(source: object, target: object) -> None:
        if str(target).endswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", refuse)


def test_a_full_disk_at_a_lora_file_leaves_the_lora_and_a_state_that_goes_on_exactly(
    flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert SPLoRA.main(flags(output_dir=whole, max_train_steps=3)) == 0
    with monkeypatch.context() as patch:
        disk_full_at(patch, "last-step00000002.safetensors")
        with pytest.raises(RunStopped) as caught:
            SPLoRA.main(flags(max_train_steps=3, **STATES))
    first, second = str(caught.value).splitlines()
    assert first == f"stopped after step 2: No space left on device: '{out}/last-step00000002.safetensors'"
    state = out / "state" / "last-step00000002-state"
    assert f"the LoRA of step 2 is in '{out}/last.safetensors'" in second and f"--resume {state}" in second
    assert not list(out.rglob("*.part")) and not (out / "run.lock").exists()
    assert SPLoRA.main(flags(max_train_steps=3, resume=state, **STATES)) == 0
    assert_same_tensors(out / "last.safetensors", whole / "last.safetensors")


@pytest.mark.parametrize("name", ["proxy.safetensors", "last.safetensors"])
def test_what_a_full_disk_leaves_of_the_lora_is_told_truly(
    flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    disk_full_at(monkeypatch, name)
    with pytest.raises(RunStopped, match=f"No space left on device: '{tmp_path}/out/{name}'") as caught:
        SPLoRA.main(flags(max_train_steps=2, output_name="last" if name == "last.safetensors" else "final"))
    lora = tmp_path / "out" / ("last.safetensors" if name == "last.safetensors" else "final.safetensors")
    assert lora.exists() == (f"is in '{lora}', without its proxy" in str(caught.value)) == (name == "proxy.safetensors")


def test_a_full_disk_inside_a_state_is_told_by_the_name_of_the_file(
    flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_full_at(monkeypatch, "optimizers.pt")
    with pytest.raises(RunStopped) as caught:
        SPLoRA.main(flags(max_train_steps=3, **STATES))
    assert f"device: '{tmp_path}/out/state/last-step00000002-state/optimizers.pt'" in str(caught.value)


def test_a_full_disk_at_a_state_leaves_the_lora_and_the_state_before(
    flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_full_at(monkeypatch, "last-step00000004-state")
    with pytest.raises(RunStopped, match="stopped after step 4: No space left on device") as caught:
        SPLoRA.main(flags(max_train_steps=5, **STATES))
    out = tmp_path / "out"
    assert "no state (No space left on device)" in str(caught.value) and "last-step00000002-state" in str(caught.value)
    assert [path.name for path in (out / "state").iterdir()] == ["last-step00000002-state"]
    assert read_state(str(out / "state" / "last-step00000002-state"))["done"] == 2
    assert_same_tensors(out / "last.safetensors", out / "last-step00000004.safetensors")


def test_a_full_disk_at_the_log_leaves_whole_lines(flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, append = os.write, LogFile.append

    def half(handle: int, data: memoryview) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[: len(data) // 2])

    def full(self: LogFile, line: str) -> None:
        with monkeypatch.context() as patch:
            if '"step": 3' in line:
                patch.setattr(os, "write", half)
            append(self, line)

    monkeypatch.setattr(LogFile, "append", full)
    with pytest.raises(RunStopped, match=r"stopped after step 3: No space left on device: '.*log.jsonl'"):
        SPLoRA.main(flags(max_train_steps=5))
    assert [record["step"] for record in records(tmp_path / "out")] == [0, 1, 2]
    assert read_state(str(tmp_path / "out" / "state" / "last-step00000003-state"))["done"] == 3


def test_a_picture_that_goes_during_a_run_without_a_cache_leaves_the_lora(
    flags, tmp_path: Path, pictures: Path, after_step
) -> None:
    assert SPLoRA.main(flags(output_dir=tmp_path / "two", max_train_steps=2)) == 0
    kept = tmp_path / "kept"
    after_step(2, lambda: shutil.move(pictures, kept))
    with pytest.raises(RunStopped, match=r"stopped after step 2: '.*png' was there when the split") as caught:
        SPLoRA.main(flags(max_train_steps=5, cache_latents="false", save_every_n_steps=1, save_state=True))
    assert "Traceback" not in str(caught.value) and "last-step00000002-state" in str(caught.value)
    shutil.move(kept, pictures)
    resumed = tmp_path / "out" / "state" / "last-step00000002-state"
    assert SPLoRA.main(flags(max_train_steps=3, cache_latents="false", resume=resumed, save_every_n_steps=1)) == 0


def test_an_output_folder_that_is_removed_is_made_again_with_split_options_and_log(
    flags, tmp_path: Path, after_step, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    after_step(2, lambda: shutil.rmtree(out))
    assert SPLoRA.main(flags(max_train_steps=4, save_every_n_steps=2, log_with="tensorboard")) == 0
    assert "or its lock was removed while the run writes into it" in capsys.readouterr().err
    assert {"last.safetensors", "split.json", "config.toml", "log.jsonl", "proxy.safetensors"} <= set(os.listdir(out))
    assert [record["step"] for record in records(out) if "loss" in record] == [1, 2, 3, 4]
    assert not (out / "run.lock").exists() and (out / "split.json").stat().st_mode & 0o777 == 0o600


def test_a_removed_folder_that_another_run_has_taken_is_left_to_it(flags, tmp_path: Path, after_step) -> None:
    out = tmp_path / "out"

    def taken() -> None:
        shutil.rmtree(out)
        code = "import sys,time;from pathlib import Path;from library.training.output_lock import OutputLock;"
        code += "lock=OutputLock(Path(sys.argv[1]));lock.acquire();print(flush=True);time.sleep(60)"
        holder.append(subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=ROOT, stdout=subprocess.PIPE))
        holder[0].stdout.readline()

    holder: list = []
    after_step(1, taken)
    try:
        with pytest.raises(RunStopped, match="is in use by another run"):
            SPLoRA.main(flags(max_train_steps=3))
        assert [path.name for path in out.iterdir()] == ["run.lock"]
    finally:
        holder[0].kill()
        holder[0].communicate()


def test_a_second_ctrl_c_ends_at_once_and_names_the_last_state(flags, tmp_path: Path, after_step) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    after_step(3, twice)
    with pytest.raises(RunStopped, match="after step 3, as asked") as caught:
        SPLoRA.main(flags(max_train_steps=5, **STATES))
    assert f"--resume {tmp_path / 'out' / 'state' / 'last-step00000002-state'}" in str(caught.value)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_end_of_a_session_saves_though_it_signals_more_than_once(flags, tmp_path: Path, after_step) -> None:
    def ended() -> None:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    after_step(2, ended)
    assert SPLoRA.main(flags(max_train_steps=5)) == 130
    assert read_state(str(tmp_path / "out" / "state" / "last-step00000002-state"))["done"] == 2


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.received and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def door(arguments: list[str], **streams: object) -> subprocess.Popen:
    """SPLoRA.py in a process of its own."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([sys.executable, "SPLoRA.py", *arguments], cwd=ROOT, **streams)  # type: ignore[call-overload]


def wait_for_steps(out: Path, steps: int) -> None:
    """Until the log has so many lines."""
    for _ in range(1200):
        if (out / "log.jsonl").exists() and (out / "log.jsonl").read_text().count("\n") > steps:
            return
        time.sleep(0.1)
    raise TimeoutError


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["closed pipe", "full disk"])
def test_a_run_whose_output_is_lost_trains_to_its_end(flags, tmp_path: Path, reader: str) -> None:
    """``| head -1`` and ``> /dev/full``."""
    if reader == "closed pipe":
        process = door(flags(max_train_steps=4))
        process.stdout.readline()
        process.stdout.close()
    else:
        with open("/dev/full", "wb") as full:
            process = door(flags(max_train_steps=4), stdout=full)
    with process:
        said = process.stderr.read().decode()
    assert process.returncode == 0 and "Traceback" not in said and "Exception ignored" not in said
    assert said.count("standard output is lost (No space left on device)") == (reader == "full disk")
    assert (tmp_path / "out" / "last.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("hangs_up", [False, True], ids=["terminal gone", "SIGHUP"])
def test_a_terminal_that_goes_costs_no_work(flags, tmp_path: Path, hangs_up: bool) -> None:
    """Progress lines then fail with EIO. Without the signal the run goes on; with it the run saves and ends."""
    ours, theirs = pty.openpty()
    process = door(flags(max_train_steps=40 if not hangs_up else 100000), stdout=theirs, stderr=theirs)
    os.close(theirs)
    while b"step" not in os.read(ours, 4096):
        pass
    os.close(ours)
    wait_for_steps(tmp_path / "out", 3)
    if hangs_up:
        process.send_signal(signal.SIGHUP)
    assert process.wait(300) == (130 if hangs_up else 0)
    assert (tmp_path / "out" / "last.safetensors").is_file() and not (tmp_path / "out" / "run.lock").exists()
    if hangs_up:
        (state,) = (tmp_path / "out" / "state").iterdir()
        assert read_state(str(state))["done"] >= 3


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_told_and_the_lora_kept(flags, tmp_path: Path) -> None:
    """The optimizers' moments of a wide proxy attacker are the first file above 200 kB."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = door(flags(max_train_steps=4, log_with="tensorboard", **STATES), preexec_fn=limited)
    said = process.communicate(timeout=300)[1].decode()
    assert process.returncode == 130 and "Traceback" not in said
    assert "stopped after step 2: File too large" in said
    assert (tmp_path / "out" / "last.safetensors").is_file() and not list(tmp_path.rglob("*.part"))
    assert not list((tmp_path / "out" / "state").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_while_pictures_are_encoded_ends_in_one_line(flags, tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys, time; from library.data import latents; import library.assembly.pictures; import SPLoRA\n"
        "from library.options import resolve\n"
        "def slow(*all, **more): print('encoding', flush=True); time.sleep(60)\n"
        "latents.encoded_pixels = slow; sys.exit(resolve.run(SPLoRA.main))"
    )
    command = [sys.executable, "-c", code, *flags()]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "encoding" not in process.stdout.readline():
        pass
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopped, as asked" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()
