"""One run at a time writes into an output folder, and a lock outlives nobody."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

import SPLoRA
from library.errors import InputError
from library.training.output_lock import OutputLock, this_process

ROOT = Path(__file__).parent.parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from library.training.output_lock import OutputLock
lock = OutputLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process.stdout or pytest.fail("no output") as words:
        assert words.readline() == "held\n"
    return process


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has none."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_second_run_is_refused_while_one_runs_and_a_killed_runs_lock_is_taken_over(
    flags, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    process = holder(tmp_path / "out")
    try:
        for more in ({}, {"overwrite": True}):
            with pytest.raises(InputError, match=rf"is in use by another run \(process {process.pid} on "):
                SPLoRA.main(flags(**more))
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.lock"]
        assert (tmp_path / "out" / "run.lock").stat().st_mode & 0o777 == 0o600
    finally:
        process.kill()
        process.wait()
    assert SPLoRA.main(flags(max_train_steps=1)) == 0
    assert capsys.readouterr().err.count(f"was left by a run that has ended (process {process.pid})") == 1
    assert not (tmp_path / "out" / "run.lock").exists()


def test_two_runs_that_start_together_do_not_both_train(flags, tmp_path: Path) -> None:
    command = [sys.executable, "SPLoRA.py", *flags(max_train_steps=2)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1].decode() for process in both]
    statuses = sorted(process.returncode for process in both)
    assert statuses == [0, 2], errors
    assert "is in use by another run" in "".join(errors) or "already holds a run" in "".join(errors)


def test_a_dry_run_and_a_refused_run_leave_no_folder(flags, tmp_path: Path) -> None:
    assert SPLoRA.main(flags(dry_run=True)) == 0
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no_such_key"):
        SPLoRA.main(flags(output_dir=tmp_path / "new" / "out", network_args="no_such_key=1"))
    assert not (tmp_path / "new").exists()


def test_the_lock_goes_with_its_owner_and_can_be_taken_again(tmp_path: Path) -> None:
    first, second = OutputLock(tmp_path / "out"), OutputLock(tmp_path / "out")
    first.acquire()
    with pytest.raises(InputError, match="is in use"):
        second.acquire()
    first.release()
    assert not (tmp_path / "out").exists()
    second.acquire()
    with pytest.raises(ZeroDivisionError), second.released_on_error():
        raise ZeroDivisionError
    third = OutputLock(tmp_path / "out")
    third.acquire()
    del third
    first.acquire()
    first.release()


@pytest.mark.parametrize(
    ("changed", "is_taken"),
    [({}, True), ({"process": 2**22 + 1}, False), ({"boot": "another"}, False), ({"machine": "another"}, True)],
    ids=["runs", "ended", "before a restart", "another machine"],
)
def test_without_locks_the_process_in_the_file_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, changed: dict, is_taken: bool
) -> None:
    without_locks(monkeypatch)
    (tmp_path / "run.lock").write_text(json.dumps({**this_process(), **changed}))
    lock = OutputLock(tmp_path)
    if is_taken:
        with pytest.raises(InputError, match="has no locks: if that run has ended, remove 'run.lock'"):
            lock.acquire()
        return
    with caplog.at_level(logging.WARNING, "library"):
        lock.acquire()
    assert "it is taken over" in caplog.text
    with pytest.raises(InputError, match="is in use"):
        OutputLock(tmp_path).acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_without_locks_a_file_that_names_nobody_yet_is_somebodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    (tmp_path / "run.lock").write_text("")
    with pytest.raises(InputError, match="its process is not noted yet"):
        OutputLock(tmp_path).acquire()


def test_a_link_in_the_locks_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    os.symlink(tmp_path / "mine", tmp_path / "run.lock")
    with pytest.raises(InputError, match="cannot be written"):
        OutputLock(tmp_path).acquire()
    assert (tmp_path / "mine").read_text() == "kept"
