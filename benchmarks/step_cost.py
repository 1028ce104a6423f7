"""What the game costs: seconds per optimizer step of plain LoRA, one shared UNet pass, and two passes as released.

python benchmarks/step_cost.py [rounds]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = {
    "plain LoRA": ["PLoRA.py", "--config_file", "configs/lora_demo.toml"],
    "SPLoRA, one shared pass": ["SPLoRA.py", "--config_file", "configs/splora_demo.toml"],
    "SPLoRA, separate noise": ["SPLoRA.py", "--config_file", "configs/splora_demo.toml", "--separate_noise"],
}
STEPS = 24


def step_seconds(command: list[str], folder: Path) -> float:
    """Median seconds between the records of a run's steps, the first few left out."""
    process = subprocess.Popen(
        [
            sys.executable,
            *command,
            "--max_train_steps",
            str(STEPS),
            "--attack_eval_draws",
            "1",
            "--output_dir",
            str(folder),
            "--no-sample_at_first",
            "--no-save_state_on_train_end",
            "--overwrite",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen, times, log = 0, [], folder / "log.jsonl"
    while process.poll() is None:
        count = log.read_text().count('"loss"') if log.exists() else 0
        if count > seen:
            times += [time.perf_counter()] * (count - seen)
            seen = count
        time.sleep(0.002)
    return statistics.median(later - earlier for earlier, later in zip(times[4:], times[5:], strict=False))


def main() -> None:
    """Kinds in turn, several rounds, so that a slow minute of the machine hits all of them."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name, command in KINDS.items():
                seconds[name].append(step_seconds(command, Path(folder) / "out"))
    base = statistics.median(seconds["plain LoRA"])
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(
            json.dumps({"kind": name, "seconds_per_step": round(middle, 4), "ratio_to_plain": round(middle / base, 2)})
        )


if __name__ == "__main__":
    main()
