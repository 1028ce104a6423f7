"""What the README tells people to type."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from library.errors import InputError
from library.options.resolve import read_config

ROOT = Path(__file__).parent.parent.parent
COMMANDS = re.findall(r"^bash (\w+)\.sh(.*?)(?:#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_readme_begins_with_the_two_commands() -> None:
    assert [name for name, _ in COMMANDS][:1] == ["SPLoRA"]
    first_block = (ROOT / "README.md").read_text().split("```")[1]
    assert re.match(r"bash\nbash SPLoRA\.sh .*\nbash tests/run\.sh", first_block)


DOCUMENTED = sorted(
    {
        (door, rest.strip())
        for file in (ROOT / "docs/gpu_box.md", *(ROOT / "configs").glob("*.toml"))
        for door, rest in re.findall(r"^(?:#   )?bash (\w+)\.sh( --[^#\n(]*)", file.read_text(), re.MULTILINE)
        if door != "compare"  # its plans are read in tests/comparison
    }
)


@pytest.mark.parametrize(("door", "rest"), DOCUMENTED, ids=str)
def test_every_command_of_the_gpu_page_and_of_the_configs_heads_is_understood(door: str, rest: str) -> None:
    """Only what a reader has to supply may be missing."""
    try:
        read_config(door, shlex.split(rest), lambda text: None)
    except InputError as error:
        assert all("does not exist" in line or "needs a CUDA GPU" in line for line in str(error).splitlines()), error


@pytest.mark.parametrize(("door", "rest"), COMMANDS, ids=str)
def test_every_training_command_of_the_readme_is_understood(door: str, rest: str) -> None:
    """Only paths that a reader has to supply may be missing."""
    if not (ROOT / f"{door}.py").exists() or door == "audit":
        pytest.skip("not a training door")
    words = rest.split()
    arguments = words if "--config_file" in words else ["--config_file", f"configs/{door.lower()}_demo.toml", *words]
    try:
        read_config(door, arguments)
    except InputError as error:
        assert all("does not exist" in line for line in str(error).splitlines()), error


@pytest.mark.slow
@pytest.mark.parametrize("door", ["PLoRA", "SPLoRA", "DPLoRA"])
def test_a_launcher_passes_flags_on_and_returns_the_status(door: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    command = ["bash", str(ROOT / f"{door}.sh")]
    planned = subprocess.run([*command, "--dry_run", "--max_train_steps", "5"], capture_output=True, text=True,
                             env=environment, cwd=tmp_path)  # fmt: skip
    assert planned.returncode == 0, planned.stderr
    assert "5 optimizer steps" in planned.stdout and "members-test" in planned.stdout
    refused = subprocess.run([*command, "--network_dimm", "5"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2 and "did you mean 'network_dim'?" in refused.stderr


def test_launchers_are_short_and_safe() -> None:
    for file in sorted(ROOT.glob("*.sh")):
        text = file.read_text()
        assert len(text.splitlines()) <= 60, file
        if file.name != "setup.sh":
            assert "set -euo pipefail" in text and '"$@"' in text


def bare_folder(place: Path) -> Path:
    """A copy of what setup.sh needs, so that a test may fail to install without touching this checkout."""
    (place / "tools").mkdir(parents=True)
    for name in ("setup.sh", "requirements.txt", "tools/environment.py"):
        (place / name).write_text((ROOT / name).read_text())
    return place


def fake_python(folder: Path, lacks: str, *, pip_works: bool) -> Path:
    """An interpreter that lacks packages, makes a virtual environment of itself, and whose pip fails or works."""
    folder.mkdir(parents=True)
    script = f"""#!/usr/bin/env bash
case "$*" in
    "tools/environment.py missing") [ -e installed ] || echo "{lacks}" ;;
    "tools/environment.py versions") echo "setup.sh: versions" >&2 ;;
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"pip install"*) {"touch installed" if pip_works else 'echo "pip: no network" >&2; exit 1'} ;;
    "--version") echo "Python 3.11.0" ;;
esac
"""
    for name in ("python", "python3"):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    "launcher", ["PLoRA.sh", "SPLoRA.sh", "audit.sh", "compare.sh", "PLoRA.sh on 2 GPUs", "SPLoRA.sh on 2 GPUs"]
)
def test_a_signal_to_a_launcher_reaches_what_it_starts(launcher: str, tmp_path: Path) -> None:
    """A scheduler or ``kill`` signals the shell alone; Python must hear it to save its work."""
    place, name, is_alone = bare_folder(tmp_path / "box"), launcher.split()[0], launcher.endswith(".sh")
    text = (ROOT / name).read_text()
    (place / name).write_text(text if is_alone else re.sub("^gpus=1", "gpus=2", text, flags=re.MULTILINE))
    (interpreter := tmp_path / "bin").mkdir()
    started = "trap 'echo heard; kill $!; exit 130' TERM; echo started; sleep 20 & wait"
    only_three = f'#!/usr/bin/env bash\ncase "$1" in *LoRA.py | audit.py | compare.py) {started} ;; esac\n'
    for program, script in (("python3", only_three), ("accelerate", f"#!/usr/bin/env bash\n{started}\n")):
        (interpreter / program).write_text(script)
        (interpreter / program).chmod(0o755)
    for tool in ("bash", "dirname", "sleep"):  # and no `python` of this machine
        (interpreter / tool).symlink_to(shutil.which(tool) or tool)
    process = subprocess.Popen(
        [interpreter / "bash", place / name], stdout=subprocess.PIPE, text=True, env={"PATH": str(interpreter)}
    )
    with process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "heard\n"
    assert process.returncode == 130


def source_setup(place: Path, interpreter: Path, **variables: str) -> subprocess.CompletedProcess:
    """Source setup.sh as a launcher does."""
    environment = {"PATH": f"{interpreter}:/usr/bin:/bin", "HOME": str(place), **variables}
    command = ["bash", "-c", "set -euo pipefail; source ./setup.sh; echo went on"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=place)


def test_setup_names_what_is_missing_with_the_pip_line(tmp_path: Path) -> None:
    lacks = "diffusers==0.42.1 peft==0.21.2"
    place, interpreter = bare_folder(tmp_path / "box"), fake_python(tmp_path / "bin", lacks, pip_works=False)
    ended = source_setup(place, interpreter, VIRTUAL_ENV="/somewhere")
    assert ended.returncode == 1 and "went on" not in ended.stdout
    assert f"the active environment lacks {lacks}" in ended.stderr
    assert f"python -m pip install {lacks}" in ended.stderr
    assert "pip: no network" in ended.stderr and f".venv lacks {lacks}" in ended.stderr
    assert "by hand: .venv/bin/python -m pip install -r requirements.txt" in ended.stderr


def test_setup_installs_once_and_says_what_a_run_stands_on(tmp_path: Path) -> None:
    place, interpreter = bare_folder(tmp_path / "box"), fake_python(tmp_path / "bin", "torch", pip_works=True)
    first, second = source_setup(place, interpreter), source_setup(place, interpreter)
    assert first.returncode == second.returncode == 0 and "went on" in first.stdout
    assert "installing requirements.txt" in first.stderr and "installing" not in second.stderr
    assert "setup.sh: versions" in first.stderr and "setup.sh: versions" in second.stderr


def test_the_versions_line_names_torch_and_the_gpu_and_tells_a_cpu_build_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tools import environment

    monkeypatch.setattr(environment, "gpus", lambda: [])
    (line,) = environment.versions()
    assert re.match(r"Python 3\.\d+\.\d+, torch \d.*diffusers \d.*; GPU: none listed by nvidia-smi", line)
    monkeypatch.setattr(environment, "gpus", lambda: ["NVIDIA GeForce RTX 3060, 12288 MiB"])
    monkeypatch.setattr(environment.metadata, "version", lambda name: "2.13.0+cpu")
    first, second = environment.versions()
    assert "GPU: NVIDIA GeForce RTX 3060, 12288 MiB" in first and "cannot use the GPU" in second


def test_what_is_missing_carries_the_pinned_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools import environment

    assert environment.missing() == []
    monkeypatch.setattr(environment, "NEEDED", {"no_such_module": "diffusers", "json": "json"})
    assert environment.missing() == ["diffusers==0.42.1"]


def test_packages_that_are_too_old_are_named_with_the_line_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools import environment

    assert environment.older() == []
    found = {"torch": "2.5.1+cu124", "diffusers": "0.9.0"}
    monkeypatch.setattr(environment.metadata, "version", lambda name: found.get(name, "99.0"))
    told, line = environment.older()
    assert "torch 2.5.1+cu124 (asked for: 2.6.0 or newer), diffusers 0.9.0 (asked for: 0.42.1 or newer)" in told
    assert "torch below 2.6 runs code from pickles" in told
    assert line == "to mend it: python -m pip install 'torch>=2.6.0' 'diffusers>=0.42.1'"
    monkeypatch.setattr(environment.metadata, "version", lambda name: "2.6.0" if name == "torch" else "99.0")
    assert environment.older() == []
