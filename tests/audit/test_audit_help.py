"""The audit's and the comparison's --help: complete, quick, and without the heavy libraries."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "transformers", "sklearn", "scipy", "numpy", "PIL")
RUNNER = """
import runpy, sys
sys.argv = [sys.argv[1], *sys.argv[3:]]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", [name for name in {heavy!r} if name in sys.modules])
"""


def run(door: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A door in its own process, which lists at its end the heavy libraries that it imported."""
    command = [sys.executable, "-c", RUNNER.format(heavy=HEAVY), str(ROOT / door), "--", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(("door", "shown"), [("audit.py", "--target_fpr"), ("compare.py", "--output_dir DIR")])
def test_help_imports_nothing_heavy_and_takes_under_two_seconds(door: str, shown: str) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(door, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and shown in done.stdout
    assert done.stdout.strip().endswith("imported: []")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # CPU-seconds


@pytest.mark.parametrize("door", ["audit.py", "compare.py"])
def test_a_mistyped_option_ends_with_status_2_and_a_hint_before_anything_heavy(door: str) -> None:
    done = run(door, "--config_fil=x.toml" if door == "compare.py" else "--target_fp=0.1")
    assert done.returncode == 2 and "did you mean" in done.stderr and "imported: []" in done.stdout
