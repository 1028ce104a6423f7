"""How much plain LoRA of 20, 200 and 2,000 pictures learns by heart at the same held-out gain; resumable.

python -m benchmarks.set_sizes OUT --runs 20=DIR 200=DIR 2000=DIR [...] [--repeats 2] [--gains 0.25 0.3 0.4]

Each DIR is a folder of demo/build.py more (persons of four pictures); a run takes so many members from it, and its
non-members are the rest of the folder. Validation passes during training show held-out gain, what is learnt by
heart, and the calibrated AUC; they are read at the moment where the gain is the one asked for, on a line between two
passes. OUT keeps the runs and sizes.json, from which ``python -m tools.does_it_hold`` writes its second table.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from library.tensor_files import write_whole

ROOT = Path(__file__).parent.parent
BATCH = 8
LEARNING_RATE = 3.2e-3  # four times the demo's: the same curve in fewer steps (docs/does_it_hold.md)
VALIDATED = 200  # pictures of each side in a validation pass, where there are so many
READ = ("learnt_by_heart", "calibrated_auc")


@dataclass(frozen=True)
class Check:
    """One validation pass."""

    step: int
    learnt: float
    by_heart: float
    auc: float


def main(arguments: Sequence[str]) -> None:
    """Train what is not there yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--runs", nargs="+", required=True, help="SIZE=DIR: so many members of this folder")
    parser.add_argument("--gains", type=float, nargs="+", default=[0.25, 0.3, 0.4])
    parser.add_argument("--repeats", type=int, default=2, help="runs of each SIZE=DIR, each with a split of its own")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=25, help="steps between two validation passes")
    given = parser.parse_args(arguments)
    by_size: dict[int, list[list[Check]]] = {}
    for asked in given.runs:
        words, _, folder = asked.partition("=")
        size, pictures = int(words), pictures_in(Path(folder))
        for repeat in range(given.repeats):
            out = given.out / f"{size}-{Path(folder).name}-{repeat + 1}"
            train(out, Path(folder), size, pictures, given.steps, given.every)
            by_size.setdefault(size, []).append(checks_of(out))
    rows = [row_at(size, gain, runs) for size, runs in by_size.items() for gain in given.gains]
    write_whole(given.out / "sizes.json", json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


def pictures_in(folder: Path) -> int:
    """How many a folder of demo/build.py has."""
    return len(json.loads((folder / "groups.json").read_text(encoding="utf-8")))


def train(out: Path, folder: Path, size: int, pictures: int, steps: int, every: int) -> None:
    """Plain LoRA of ``size`` members at a constant rate, unless it is there."""
    if checks_of(out)[-1:] and checks_of(out)[-1].step == steps:
        return
    smaller = min(size, pictures - size)
    aux = min(0.8, VALIDATED / smaller)  # of five persons one is left over, as a split wants
    options = {
        "config_file": ROOT / "configs" / "lora_demo.toml", "train_data_dir": folder, "output_dir": out,
        "nonmember_share": 1 - size / pictures, "aux_share": aux, "unet_lr": LEARNING_RATE, "max_train_steps": steps,
        "lr_scheduler": "constant_with_warmup", "lr_decay_steps": 0, "train_batch_size": BATCH,
        "aux_loss_every_n_steps": every,
        "aux_loss_every_n_epochs": 10_000,
        "sample_prompts": "", "sample_at_first": "false", "save_state_on_train_end": "false",
    }  # fmt: skip
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, str(ROOT / "PLoRA.py"), *flags, "--overwrite"], check=True)


def checks_of(out: Path) -> list[Check]:
    """The validation passes of a run; none of a run that is not there."""
    log = out / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    entries = [entry for entry in map(json.loads, lines) if "learnt" in entry]
    return [Check(entry["step"], entry["learnt"], *(entry[name] for name in READ)) for entry in entries]


def at_gain(checks: Sequence[Check], gain: float) -> tuple[float, float, float] | None:
    """(step, by heart, AUC) where a run first has this held-out gain; None where it never has."""
    start = Check(0, 0.0, 0.0, 0.5)
    for before, after in pairwise([start, *(check for check in checks if check.step > 0)]):
        if before.learnt < gain <= after.learnt:
            share = (gain - before.learnt) / (after.learnt - before.learnt)
            step, by_heart, area = (
                (1 - share) * getattr(before, name) + share * getattr(after, name)
                for name in ("step", "by_heart", "auc")
            )
            return step, by_heart, area
    return None


def row_at(size: int, gain: float, runs: Sequence[Sequence[Check]]) -> dict[str, object]:
    """What the runs of one size have learnt by heart at one gain; figures over the runs that reach it."""
    found = [place for place in (at_gain(checks, gain) for checks in runs) if place is not None]
    row: dict[str, object] = {
        "pictures": size, "gain": gain, "runs": len(runs), "reached": len(found),
        "best_gain": float(np.mean([max(check.learnt for check in checks) for checks in runs])),
    }  # fmt: skip
    if found:
        steps, by_heart, areas = (np.array(values) for values in zip(*found, strict=True))
        row |= {"exposures": float(steps.mean()) * BATCH / size, "by_heart": spread(by_heart), "auc": spread(areas)}
    return row


def spread(values: np.ndarray) -> dict[str, float | None]:
    """Mean over runs with the 95 % interval of their scatter (Student); no interval of a single run."""
    mean, half = float(values.mean()), math.nan
    if len(values) > 1:
        half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    low, high = (None, None) if math.isnan(half) else (mean - half, mean + half)
    return {"value": mean, "low": low, "high": high}


if __name__ == "__main__":
    main(sys.argv[1:])
