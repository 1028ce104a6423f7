"""docs/complaints.md: 26 complaints, each with its answer and tests that exist; and tests that had no other home."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import SPLoRA
from library.errors import InputError
from library.options.resolve import read_config

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/complaints.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)


def exists(file: str, test: str) -> bool:
    """Whether a test function of this name stands in the file."""
    path = next((ROOT / "tests").rglob(file), ROOT)
    return path.is_file() and re.search(rf"^def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def test_every_complaint_has_a_line_with_a_test_or_an_honest_no() -> None:
    rows = re.findall(r"^\| (\d+) \| .*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 27))
    assert all("::" in shown or "no test" in shown for _, shown in rows)


def test_every_test_that_the_page_names_exists() -> None:
    assert len(NAMED) > 35
    assert [f"{file}::{test}" for file, test in NAMED if not exists(file, test)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bitsandbytes", "xformers"])
def test_a_broken_package_that_nobody_asked_for_does_not_stop_a_door(tmp_path: Path, name: str) -> None:
    """diffusers imports both wherever they are installed, and would fail with them."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text('raise RuntimeError("built for another CUDA")\n')
    (tmp_path / f"{name}-9.9.dist-info").mkdir()
    (tmp_path / f"{name}-9.9.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    code = f"import sys, SPLoRA; assert sys.modules[{name!r}] is None; print(SPLoRA.DOOR)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ended.returncode == 0, ended.stderr[-800:]
    assert f"{name} is installed and cannot be imported (built for another CUDA); the run goes on" in ended.stderr


@pytest.mark.slow
def test_a_door_starts_without_a_word_of_packages_that_nobody_asked_for() -> None:
    """bitsandbytes, which diffusers imports where it is installed, warns of kernels for the CPU."""
    ended = subprocess.run([sys.executable, "-c", "import SPLoRA"], capture_output=True, text=True, cwd=ROOT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    code = "import SPLoRA, logging; logging.getLogger('bitsandbytes.x').error('a real one')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "a real one" in ended.stderr, "errors are still told"


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedLion8bit"])
def test_an_8_bit_optimizer_without_a_gpu_is_refused_with_the_alternative(flags, monkeypatch, name: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        InputError, match=f'{name} needs a CUDA GPU, which this machine does not have; use "AdamW" or "Lion"'
    ):
        read_config("SPLoRA", flags(optimizer_type=name))


def test_trained_weights_stay_fp32_and_a_state_holds_an_ordinary_lora(flags, tmp_path: Path) -> None:
    """Under bf16 and with fp16 files: the state's LoRA has the file's names, in fp32, and rounds to the file."""
    assert SPLoRA.main(flags(mixed_precision="bf16", save_precision="fp16", save_state=True)) == 0
    written = load_file(tmp_path / "out" / "last.safetensors")
    kept = load_file(tmp_path / "out" / "state" / "last-state" / "lora.safetensors")
    assert set(kept) == set(written)
    for name, value in kept.items():
        assert value.dtype == torch.float32 and written[name].dtype == torch.float16
        assert torch.equal(value.half(), written[name])
