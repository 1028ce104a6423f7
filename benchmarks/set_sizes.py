"""How much a LoRA of 20, 200 and 2,000 pictures learns by heart at the same held-out gain; resumable.

python -m benchmarks.set_sizes OUT --runs 20=DIR 200=DIR 2000=DIR [...] [--distilled 20:5:20 ...] [--gains 0.25 0.4]

Each DIR is a folder of demo/build.py more (persons of four pictures); a run takes so many members from it, and its
non-members are the rest of the folder. Validation passes during training show held-out gain, what is learnt by
heart, and the calibrated AUC; they are read at the moment where the gain is the one asked for, on a line between two
passes. OUT keeps the runs and sizes.json, from which ``python -m tools.does_it_hold`` writes a table.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from library.audit.statistics.gain import mean_with_interval
from library.options.comparison_plan import as_flags
from library.tensor_files import write_whole

ROOT = Path(__file__).parent.parent
BATCH = 8
LEARNING_RATE = 3.2e-3  # four times the demo's: the same curve in fewer steps (docs/does_it_hold.md)
VALIDATED = 200  # pictures of each side in a validation pass, where there are so many
PLAIN, DISTILLED = "plain", "distilled"
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
    parser.add_argument("--distilled", nargs="*", default=[], help="SIZE:FOLDS:EPOCHS: these sizes distilled as well")
    parser.add_argument("--gains", type=float, nargs="+", default=[0.25, 0.3, 0.4])
    parser.add_argument("--repeats", type=int, default=2, help="runs of each SIZE=DIR, each with a split of its own")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=25, help="steps between two validation passes")
    given = parser.parse_args(arguments)
    ways = {int(size): (int(folds), int(epochs)) for size, folds, epochs in (one.split(":") for one in given.distilled)}
    runs: dict[tuple[int, str], list[list[Check]]] = {}
    for asked in given.runs:
        words, _, place = asked.partition("=")
        size, folder = int(words), Path(place)
        options = options_of(folder, size, given.steps, given.every)
        for repeat in range(given.repeats):
            out = given.out / f"{size}-{folder.name}-{repeat + 1}"
            train(out, options)
            runs.setdefault((size, PLAIN), []).append(checks_of(out))
            if size in ways:
                taught = given.out / f"{out.name}-distilled"
                train(taught, options | distilled_options(*ways[size], out))
                runs.setdefault((size, DISTILLED), []).append(checks_of(taught))
    rows = [row_at(*which, gain, found) for which, found in runs.items() for gain in given.gains]
    write_whole(given.out / "sizes.json", json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


def pictures_in(folder: Path) -> int:
    """How many a folder of demo/build.py has."""
    return len(json.loads((folder / "groups.json").read_text(encoding="utf-8")))


def options_of(folder: Path, size: int, steps: int, every: int) -> dict[str, object]:
    """Plain LoRA of ``size`` members of a folder at a constant rate."""
    pictures = pictures_in(folder)
    aux = min(0.8, VALIDATED / min(size, pictures - size))  # of five persons one is left over, as a split wants
    return {
        "config_file": ROOT / "configs" / "lora_demo.toml", "train_data_dir": folder,
        "nonmember_share": 1 - size / pictures, "aux_share": aux, "unet_lr": LEARNING_RATE, "max_train_steps": steps,
        "lr_scheduler": "constant_with_warmup", "lr_decay_steps": 0, "train_batch_size": BATCH,
        "aux_loss_every_n_steps": every, "aux_loss_every_n_epochs": 10_000, "sample_prompts": "",
        "sample_at_first": "false", "save_state_on_train_end": "false",
    }  # fmt: skip


def distilled_options(folds: int, epochs: int, on_the_split_of: Path) -> dict[str, object]:
    """Cross-fitted distillation on the split of another run."""
    split = on_the_split_of / "split.json"
    return {"distill_folds": folds, "distill_teacher_epochs": epochs, "split_file": split}


def train(out: Path, options: dict[str, object]) -> None:
    """One run, unless it is there."""
    if checks_of(out) and checks_of(out)[-1].step == options["max_train_steps"]:
        return
    flags = as_flags(options | {"output_dir": out})
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


def row_at(size: int, training: str, gain: float, runs: Sequence[Sequence[Check]]) -> dict[str, object]:
    """What the runs of one kind have learnt by heart at one gain; figures over the runs that reach it."""
    found = [place for place in (at_gain(checks, gain) for checks in runs) if place is not None]
    row: dict[str, object] = {
        "pictures": size, "training": training, "gain": gain, "runs": len(runs), "reached": len(found),
        "best_gain": float(np.mean([max(check.learnt for check in checks) for checks in runs])),
    }  # fmt: skip
    if found:
        steps, by_heart, areas = (np.array(values) for values in zip(*found, strict=True))
        row |= {"exposures": float(steps.mean()) * BATCH / size, "by_heart": spread(by_heart), "auc": spread(areas)}
    return row


def spread(values: np.ndarray) -> dict[str, float | None]:
    """Mean over runs with the 95 % interval of their scatter (Student); no interval of a single run."""
    mean, low, high = mean_with_interval(values, [str(run) for run in range(len(values))])
    return {"value": mean, "low": low, "high": high} if len(values) > 1 else {"value": mean, "low": None, "high": None}


if __name__ == "__main__":
    main(sys.argv[1:])
