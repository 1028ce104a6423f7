"""Trains several LoRAs on one split, audits all of them, and writes one table."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from library import leftovers
from library.errors import Faults, InputError
from library.file_table import COMPARE_DIR
from library.incoming.files import is_file, read_bytes, read_text
from library.options import resolve
from library.options.comparison_plan import as_flags, read_plan, runs_on_split
from library.options.notices import Notices
from library.plain_text import plain

HERE = Path(__file__).resolve().parent
OF_THE_TABLE = ("title", "curve", "splits")  # what changes no training


def main(arguments: list[str]) -> int:
    """Train, audit, and write the tables; finished LoRAs of an earlier call are kept. Returns the audit's status."""
    plan, output = read_plan(arguments)
    from library.audit.report.comparison.comparison_files import write_frontier

    started, repeats = time.monotonic(), plan["compare"].get("repeats", 1)
    places = [output if repeats == 1 else output / f"split-{number}" for number in range(1, repeats + 1)]
    on_splits = [(runs_on_split(plan["runs"], number, repeats), place) for number, place in enumerate(places, 1)]
    status = max(compare_on_one_split(runs, plan, place) for runs, place in on_splits if runs)
    if any(run.get("curve") for run in plan["runs"]):
        print(write_frontier(on_splits, output))
    print(f"{(time.monotonic() - started) / 60:.0f} minutes")
    return status


def compare_on_one_split(runs: list[dict[str, Any]], plan: dict[str, Any], output: Path) -> int:
    """Train, audit, and write the table of one split; returns the audit's status."""
    from library.audit.report.comparison.comparison_files import write_table

    leftovers.sweep(output, COMPARE_DIR, within=[""])
    trained = [run for run in runs if "checkpoint_of" not in run]
    train_all(trained, output, plan["compare"].get("jobs", 1))
    for run in runs:
        if "checkpoint_of" in run:
            take_checkpoint(run, output)
    status = audit_all([output / run["name"] for run in runs], plan["audit"])
    print(write_table(runs, output))
    return status


def audit_all(folders: list[Path], audit_options: dict[str, Any]) -> int:
    """Run the audit of all LoRAs in one process; returns 0, or what ``fail_above`` says (3, 4). Raises: InputError."""
    command = [sys.executable, str(HERE / "audit.py"), "--outputs", *map(str, folders), *as_flags(audit_options)]
    status = subprocess.run(command, check=False).returncode
    if status not in (0, 3, 4):
        raise InputError("the audit failed; see its message above")
    return status


def train_all(runs: list[dict[str, Any]], output: Path, jobs: int) -> None:
    """Train what is not there yet, ``jobs`` at a time; the first run draws the split, the others reuse it."""
    waiting = [run for run in runs if not finished(run, output)]
    at_work: dict[str, subprocess.Popen[bytes]] = {}
    notes: dict[str, str] = {}
    split = output / runs[0]["name"] / "split.json"
    try:
        while waiting or at_work:
            while waiting and len(at_work) < jobs and (waiting[0] is runs[0] or split.is_file()):
                run = waiting.pop(0)
                notes[run["name"]] = note_of(run)  # before it starts: the files may change while it runs
                at_work[run["name"]] = start_training(run, output, None if run is runs[0] else split)
            time.sleep(1)
            for name in [name for name, process in at_work.items() if process.poll() is not None]:
                if at_work.pop(name).returncode != 0:
                    raise InputError(f"training '{name}' stopped; see {output / name}.txt")
                mark_finished(next(run for run in runs if run["name"] == name), output, notes[name])
                print(f"trained {plain(name)}", flush=True)
    finally:  # whatever stops the comparison stops its trainings, too
        for process in at_work.values():
            process.terminate()


def start_training(run: dict[str, Any], output: Path, split: Path | None) -> subprocess.Popen[bytes]:
    """Start one trainer in its own process with one torch thread; its output goes to a file beside the folder.

    The file is 0600: a warning on the terminal may name a private picture.
    """
    from library.tensor_files import owners_file

    places = {"output_dir": output / run["name"], **({"split_file": split} if split else {})}
    flags = own_flags({**run, **places})
    output.mkdir(parents=True, exist_ok=True)
    print(f"training {plain(run['name'])}", flush=True)
    with open(output / f"{run['name']}.txt", "wb", opener=owners_file) as words:
        command = [sys.executable, str(HERE / f"{run['door']}.py"), *flags, "--overwrite"]
        return subprocess.Popen(command, stdout=words, stderr=words, env={**os.environ, "OMP_NUM_THREADS": "1"})


def mark_finished(run: dict[str, Any], output: Path, note: str | None = None) -> None:
    """Note with which settings a training came to its end; without a note of its start the files are read now."""
    from library.tensor_files import write_whole

    write_whole(output / f"{run['name']}.trained.json", note or note_of(run))


def note_of(run: dict[str, Any]) -> str:
    """The settings of a training, and a hash of what the files that they name say at this moment."""
    run = {name: value for name, value in run.items() if name not in OF_THE_TABLE}
    if not any(name.endswith("config_file") or name == "dataset_config" for name in run):
        return json.dumps(run, sort_keys=True)
    given = resolve.collect_options(run["door"], own_flags(run), Faults(), Notices(lambda notice: None))
    values = {name: entry.value for name, entry in given.items()}
    dataset = values.get("dataset_config")
    if dataset and is_file(str(dataset)):
        values["dataset_config"] = repr(read_bytes(str(dataset), f"dataset_config '{dataset}'"))
    told = hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
    return json.dumps({**run, "options_hash": told}, sort_keys=True)


def own_flags(run: dict[str, Any]) -> list[str]:
    """The flags of a training that stand in the plan."""
    return as_flags({name: value for name, value in run.items() if name not in (*OF_THE_TABLE, "name", "door")})


def finished(run: dict[str, Any], output: Path) -> bool:
    """Whether an earlier call trained this LoRA to its end with these very settings; a stopped run left no note.

    A config file counts by what it says, so that a changed one is trained anew.
    """
    note = output / f"{run['name']}.trained.json"
    return is_file(note) and read_text(note, f"'{note}'") == note_of(run)


def take_checkpoint(run: dict[str, Any], output: Path) -> None:
    """Copy the LoRA file of an earlier epoch into an output folder of its own: an early stop."""
    source, target = output / run["checkpoint_of"], output / run["name"]
    files = sorted(source.glob(f"*-{int(run['epoch']):06d}.safetensors"))
    if not files:
        raise InputError(f"'{source}' has no LoRA of epoch {run['epoch']}; save it with save_every_n_epochs")
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.toml", "split.json"):
        shutil.copy2(source / name, target / name)
    shutil.copy2(files[0], target / f"{files[0].stem[: -len('-000000')]}.safetensors")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        sys.exit(resolve.run(main))
    except KeyboardInterrupt:
        sys.exit(130)
