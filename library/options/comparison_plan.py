"""The plan of a comparison: its command line and its TOML file, checked before anything is trained."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.errors import Faults, InputError, did_you_mean, shown
from library.incoming.shapes import Anything, Flag, ListOf, Record, Shape, TableOf, Text, Whole, check_shape
from library.incoming.texts import read_toml
from library.trainers import TRAINERS

DESCRIPTION = "Trains several LoRAs on one split, audits all of them, and writes one table."
NAMES = ("config_file", "output_dir")
RUN = Record(
    {"name": Text(100)},
    {
        "title": Text(200),
        "checkpoint_of": Text(100),
        "epoch": Whole(1, 999_999),
        "curve": Flag(),
        "splits": Whole(1, 100),
    },
)
PLAN: Shape = Record(
    {"runs": ListOf(RUN, 1, 1000)},
    {
        "audit": TableOf(Anything()),
        "compare": Record({}, {"output_dir": Text(is_path=True), "jobs": Whole(1, 1024), "repeats": Whole(1, 100)}),
    },
)
USAGE = "compare.py takes --config_file FILE and --output_dir DIR"


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line. Raises: InputError for words that are not options; SystemExit after ``--help``."""
    parser = argparse.ArgumentParser("compare.py", description=DESCRIPTION, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(
        "--config_file",
        metavar="FILE",
        help="TOML file: each [[runs]] is one LoRA with its options, [audit] gives options of the audit, [compare] "
        "gives output_dir, jobs (trainings at the same time) and repeats (splits, each with trainings of its own); "
        "a run with splits = 1 is trained on the first of them alone; "
        "runs with curve = true are plain LoRA's own curve, which the others are held against; see "
        "configs/compare_demo.toml and configs/frontier_demo.toml",
    )
    parser.add_argument(
        "--output_dir",
        metavar="DIR",
        help="folder for the LoRAs, their audits and the table; default: output_dir of [compare], else output/compare",
    )
    try:
        options, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error}; {USAGE}") from error
    faults = Faults()
    unknown = [word.partition("=")[0] for word in rest if word.startswith("-")]
    for word in unknown:
        faults.add(f"unknown option '{word}'{did_you_mean(word.strip('-'), NAMES)}")
    if rest and not unknown:
        faults.add(f"'{rest[0]}' on the command line belongs to no option")
    if options.config_file is None and not rest:
        faults.add("--config_file is missing")
    if faults.messages:
        faults.add(USAGE)
    faults.raise_if_any()
    return options


def read_plan(arguments: list[str]) -> tuple[dict[str, Any], Path]:
    """The comparison's TOML and its output folder. Raises: InputError with everything that is wrong."""
    options = read_arguments(arguments)
    name = f"config_file '{options.config_file}'"
    plan = read_toml(options.config_file, name)
    check_shape(plan, PLAN, name)
    runs = plan.get("runs", [])
    names = [run.get("name") if isinstance(run, dict) else None for run in runs]
    if not runs or None in names or len(set(names)) < len(names):
        raise InputError("a comparison needs [[runs]] with names that differ")
    plan = {"audit": {}, "compare": {}} | plan
    repeats = plan["compare"].get("repeats", 1)
    faults = Faults()
    for run in runs:
        check_run(run, names, faults)
        check_splits(run, runs, repeats, faults)
    faults.raise_if_any()
    output = options.output_dir or plan["compare"].get("output_dir") or "output/compare"
    return plan, Path(output)


def check_run(run: dict[str, Any], names: list[Any], faults: Faults) -> None:
    """Check what becomes a folder or a script: the name, the source of a checkpoint, the trainer (door)."""
    name, source, door = run["name"], run.get("checkpoint_of"), run.get("door")
    if not isinstance(name, str) or not re.fullmatch(r"[\w+-][\w.+ -]*", name):
        faults.add(f"a run's name becomes a folder: use letters, digits, spaces and . _ + -, got {shown(name)}")
    if source is not None and source not in names:
        faults.add(f"run {name!r}: checkpoint_of {source!r} is not another run of this file")
    if source is None and door not in TRAINERS:
        faults.add(f"run {name!r}: door must be one of {', '.join(TRAINERS)}, got {door!r}")


def check_splits(run: dict[str, Any], runs: list[dict[str, Any]], repeats: int, faults: Faults) -> None:
    """Check that a run's splits are there, and that an earlier epoch is taken on no split without its training."""
    wanted = run.get("splits", repeats)
    if wanted > repeats:
        faults.add(f"run {run['name']!r}: splits = {wanted}, but [compare] has repeats = {repeats}; raise repeats")
    for source in runs:
        if source["name"] == run.get("checkpoint_of") and source.get("splits", repeats) < wanted:
            faults.add(
                f"run {run['name']!r}: on {wanted} splits, but {source['name']!r} is trained on "
                f"{source['splits']} alone; give both the same splits"
            )


def runs_on_split(runs: list[dict[str, Any]], number: int, repeats: int) -> list[dict[str, Any]]:
    """The runs of split ``number``, from 1: those that do not ask for fewer splits."""
    return [run for run in runs if run.get("splits", repeats) >= number]


def as_flags(table: Mapping[str, Any]) -> list[str]:
    """Options as the doors read them: ``--name=value``, which a switch takes too, or ``--name`` and a list's words."""
    return [
        word
        for name, value in table.items()
        for word in ([f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"])
    ]
