"""What a kill leaves under a temporary name: swept where it is this suite's and nobody can still be writing it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import PLoRA
from library.file_table import AUDIT_DIR, CACHE_DIR, COMPARE_DIR
from library.leftovers import OLD, sweep

ROOT = Path(__file__).parent.parent.parent
HASH = "0123456789abcdef" * 4
OURS = {
    f"latents/.{HASH}.safetensors.abcd_123.part": CACHE_DIR,
    f"audit/{HASH[:32]}/.{HASH[:24]}.safetensors.abcd1234.part": CACHE_DIR,
    f"datasets/{HASH[:32]}/.{HASH}.png.abcd1234.part": CACHE_DIR,
    f"datasets/{HASH[:32]}/.captions-all-lines.jsonl.abcd1234.part": CACHE_DIR,
    ".report.html.abcd1234.part": AUDIT_DIR,
    f"records/{HASH[:32]}/.{HASH[:24]}.safetensors.abcd1234.part": AUDIT_DIR,
    ".table.md.abcd1234.part": COMPARE_DIR,
}


def left(file: Path, age: float = OLD + 60) -> Path:
    """A file that was last written so long ago."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("half")
    os.utime(file, (time.time() - age,) * 2)
    return file


@pytest.mark.parametrize("name", OURS, ids=lambda name: name.replace(HASH, "H").replace(HASH[:32], "h"))
def test_an_old_leftover_of_each_kind_is_swept_and_a_young_one_may_still_be_written(tmp_path: Path, name: str) -> None:
    old, young = left(tmp_path / name), left(tmp_path / name.replace("abcd", "wxyz"), age=OLD - 60)
    sweep(tmp_path, OURS[name])
    assert not old.exists() and young.exists()


def test_nothing_else_is_swept(tmp_path: Path) -> None:
    kept = [left(tmp_path / name) for name in (
        f"latents/{HASH}.safetensors", f"latents/.{HASH}.safetensors.part", "latents/.mine.txt.abcd1234.part",
        f".{HASH}.safetensors.abcd1234.part", "notes.part", f"datasets/.locks/.{HASH}.lock.abcd1234.part",
    )]  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    kept.append(left(tmp_path / "elsewhere" / f".{HASH}.safetensors.abcd1234.part"))
    link = tmp_path / "latents" / f".{HASH}.safetensors.link1234.part"
    link.symlink_to(kept[-1])
    (tmp_path / "audit").symlink_to("elsewhere")
    sweep(tmp_path, CACHE_DIR)
    assert all(file.exists() for file in kept) and link.is_symlink()
    sweep(tmp_path / "is not there", CACHE_DIR)


def test_a_kill_while_the_cache_is_written_leaves_a_file_that_the_next_training_sweeps(flags, tmp_path: Path) -> None:
    """A real kill between the first byte and the rename, and a real training with this cache after it."""
    cache = tmp_path / "cache"
    given = flags(max_train_steps=1, cache_latents_to_disk="true", cache_dir=cache)
    code = (
        "import os, sys, time; import library.tensor_files; import SPLoRA\n"
        "def wait(*all): print('writing', flush=True); time.sleep(60)\n"
        "os.replace = wait; SPLoRA.main(sys.argv[1:])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *given], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert any("writing" in line for line in iter(process.stdout.readline, ""))
        process.send_signal(signal.SIGKILL)
    (part,) = (cache / "latents").glob(".*.part")
    assert PLoRA.main([*given, "--overwrite"]) == 0 and part.exists()  # it may be another run's
    os.utime(part, (time.time() - OLD - 1,) * 2)
    assert PLoRA.main([*given, "--overwrite"]) == 0
    assert not list(cache.rglob("*.part")) and len(list((cache / "latents").glob("*.safetensors"))) > 5
