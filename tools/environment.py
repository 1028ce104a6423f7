"""Installed and missing packages of an interpreter, for setup.sh; needs only the standard library of any Python 3.

python tools/environment.py missing | versions
"""

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

NEEDED = {
    "torch": "torch", "diffusers": "diffusers", "transformers": "transformers", "accelerate": "accelerate",
    "safetensors": "safetensors", "toml": "toml", "tensorboard": "tensorboard", "PIL": "pillow", "tqdm": "tqdm",
    "peft": "peft", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "numpy": "numpy", "scipy": "scipy",
    "dp_accounting": "dp-accounting",
    "huggingface_hub": "huggingface_hub", "tokenizers": "tokenizers",
}  # fmt: skip
SHOWN = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors")
OLDEST_TORCH = "2.6.0"  # a GPU box keeps its own torch, but below this weights_only is unsafe
REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"


def missing() -> list[str]:
    """Arguments for pip, with the pinned versions; first a Python that is too old."""
    pins = dict(re.findall(r"^([\w-]+)(==\S+)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE))
    lacks = [package + pins.get(package, "") for name, package in NEEDED.items() if not importlib.util.find_spec(name)]
    return (["python>=3.11"] if sys.version_info < (3, 11) else []) + lacks


def numbers(version: str) -> list[int]:
    """2.5.1+cu124 -> [2, 5, 1]."""
    return [int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3]]


def older() -> list[str]:
    """Two lines if installed packages are older than requirements.txt asks for: which, and the line that mends it."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE))
    least = {name: pins[name] for name in NEEDED.values() if name in pins} | {"torch": OLDEST_TORCH}
    found = {name: metadata.version(name) for name in least}
    old = [name for name, version in least.items() if numbers(found[name]) < numbers(version)]
    if not old:
        return []
    words = ", ".join(f"{name} {found[name]} (asked for: {least[name]} or newer)" for name in old)
    unsafe = "; torch below 2.6 runs code from pickles that it should refuse" if "torch" in old else ""
    line = " ".join(f"'{name}>={least[name]}'" for name in old)
    return [f"older than requirements.txt asks for: {words}{unsafe}", f"to mend it: python -m pip install {line}"]


def gpus() -> list[str]:
    """Name and memory of each NVIDIA GPU that the driver lists."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []


def versions() -> list[str]:
    """Versions of the packages; a second line if torch cannot use the installed GPU."""
    found = {name: metadata.version(name) for name in SHOWN}
    words = ", ".join(f"{name} {version}" for name, version in found.items())
    lines = [f"Python {platform.python_version()}, {words}; GPU: {'; '.join(gpus()) or 'none listed by nvidia-smi'}"]
    if gpus() and found["torch"].endswith("+cpu"):
        lines.append("this torch is a CPU build and cannot use the GPU; install one for your CUDA (pytorch.org)")
    return lines


if __name__ == "__main__":
    if sys.argv[1:] == ["missing"]:
        print(*missing())
    else:
        print("\n".join(f"setup.sh: {line}" for line in [*versions(), *older()]), file=sys.stderr)
