"""Trains several LoRAs on one split, audits all of them, and writes one table."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import toml

from library.audit.report.comparison_table import comparison_rows, markdown, read_findings
from library.errors import Faults, InputError
from library.options import resolve
from library.options.declarations import TRAINERS
from library.plain_text import plain
from library.tensor_files import owners_file, write_whole

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """Run ``compare.py --config_file FILE [--output_dir DIR]``; finished LoRAs of an earlier call are kept."""
    plan, output = read_plan(arguments)
    started = time.monotonic()
    trained = [run for run in plan["runs"] if "checkpoint_of" not in run]
    train_all(trained, output, plan["compare"].get("jobs", 1))
    for run in plan["runs"]:
        if "checkpoint_of" in run:
            take_checkpoint(run, output)
    folders = [output / run["name"] for run in plan["runs"]]
    options = [word for name, value in plan["audit"].items() for word in (f"--{name}", str(value))]
    command = [sys.executable, str(HERE / "audit.py"), "--outputs", *map(str, folders), *options]
    if subprocess.run(command, check=False).returncode != 0:
        raise InputError("the audit stopped; its message stands above")
    titles = [run.get("title", run["name"]) for run in plan["runs"]]
    named = {title: read_findings(folder) for title, folder in zip(titles, folders, strict=True)}
    rows = comparison_rows(named)
    table = markdown(rows)
    write_whole(output / "table.md", table)
    write_whole(output / "table.json", json.dumps(rows, indent=1) + "\n")
    print(f"\n{table}\n{output / 'table.md'}, {output / 'table.json'}; {(time.monotonic() - started) / 60:.0f} minutes")
    return 0


def read_plan(arguments: list[str]) -> tuple[dict[str, Any], Path]:
    """The comparison's TOML and its output folder. Raises: InputError with everything that is wrong."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=False))
    unknown = [name for name in given if name not in ("--config_file", "--output_dir")]
    if unknown or len(arguments) % 2 or "--config_file" not in given:
        words = " ".join(arguments) or "nothing"
        raise InputError(f"compare.py takes --config_file FILE and --output_dir DIR, got {words}")
    try:
        plan = toml.loads(Path(given["--config_file"]).read_text(encoding="utf-8"))
    except (OSError, toml.TomlDecodeError) as error:
        raise InputError(f"config_file '{given['--config_file']}' cannot be read: {error}") from error
    runs = plan.get("runs", [])
    names = [run.get("name") if isinstance(run, dict) else None for run in runs]
    if not runs or None in names or len(set(names)) < len(names):
        raise InputError("a comparison needs [[runs]] with names that differ")
    faults = Faults()
    for run in runs:
        check_run(run, names, faults)
    faults.raise_if_any()
    plan = {"audit": {}, "compare": {}} | plan
    output = given.get("--output_dir") or plan["compare"].get("output_dir") or "output/compare"
    return plan, Path(output)


def check_run(run: dict[str, Any], names: list[Any], faults: Faults) -> None:
    """Faults of what becomes a folder or a script: the name, the source of a checkpoint, the door."""
    name, source, door = run["name"], run.get("checkpoint_of"), run.get("door")
    if not isinstance(name, str) or not re.fullmatch(r"[\w+-][\w.+ -]*", name):
        faults.add(f"a run's name becomes a folder: letters, digits, spaces and . _ + - are taken, got {name!r}")
    if source is not None and source not in names:
        faults.add(f"run {name!r}: checkpoint_of {source!r} is no other run of this file")
    if source is None and door not in TRAINERS:
        faults.add(f"run {name!r}: door must be one of {', '.join(TRAINERS)}, got {door!r}")


def train_all(runs: list[dict[str, Any]], output: Path, jobs: int) -> None:
    """Train what is not there yet; the first run draws the split, the others reuse it, ``jobs`` at a time."""
    waiting = [run for run in runs if not finished(run, output)]
    at_work: dict[str, subprocess.Popen[bytes]] = {}
    split = output / runs[0]["name"] / "split.json"
    try:
        while waiting or at_work:
            while waiting and len(at_work) < jobs and (waiting[0] is runs[0] or split.is_file()):
                run = waiting.pop(0)
                at_work[run["name"]] = start_training(run, output, None if run is runs[0] else split)
            time.sleep(1)
            for name in [name for name, process in at_work.items() if process.poll() is not None]:
                if at_work.pop(name).returncode != 0:
                    raise InputError(f"training '{name}' stopped; see {output / name}.txt")
                mark_finished(next(run for run in runs if run["name"] == name), output)
                print(f"trained {plain(name)}", flush=True)
    finally:  # whatever stops the comparison stops its trainings too; each saves what it has
        for process in at_work.values():
            process.terminate()


def start_training(run: dict[str, Any], output: Path, split: Path | None) -> subprocess.Popen[bytes]:
    """Start one door in its own process, one torch thread each, its words in a file beside the folder.

    The file is 0600: a warning on the terminal may name a private picture.
    """
    own = {name: value for name, value in run.items() if name not in ("name", "title", "door")}
    own |= {"output_dir": output / run["name"], **({"split_file": split} if split else {})}
    flags = [word for name, value in own.items() for word in (f"--{name}", str(value))]
    output.mkdir(parents=True, exist_ok=True)
    print(f"training {plain(run['name'])}", flush=True)
    with open(output / f"{run['name']}.txt", "wb", opener=owners_file) as words:
        command = [sys.executable, str(HERE / f"{run['door']}.py"), *flags, "--overwrite"]
        return subprocess.Popen(command, stdout=words, stderr=words, env={**os.environ, "OMP_NUM_THREADS": "1"})


def mark_finished(run: dict[str, Any], output: Path) -> None:
    """Note with which settings a training came to its end."""
    write_whole(output / f"{run['name']}.trained.json", json.dumps(run, sort_keys=True))


def finished(run: dict[str, Any], output: Path) -> bool:
    """Whether an earlier call trained this LoRA to its end with these very settings; a stopped run left no note."""
    note = output / f"{run['name']}.trained.json"
    return note.is_file() and note.read_text(encoding="utf-8") == json.dumps(run, sort_keys=True)


def take_checkpoint(run: dict[str, Any], output: Path) -> None:
    """An early stop: the LoRA file of an earlier epoch, in an output folder of its own."""
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
