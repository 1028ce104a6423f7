"""What the README tells people to type."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from library.check import InputError
from library.toml_config import read_config

ROOT = Path(__file__).parent.parent
COMMANDS = re.findall(r"^bash (\w+)\.sh(.*?)(?:#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)


def test_the_readme_begins_with_the_two_commands() -> None:
    assert [name for name, _ in COMMANDS][:1] == ["SPLoRA"]
    assert re.search(r"```bash\nbash SPLoRA\.sh .*\nbash tests/run\.sh", (ROOT / "README.md").read_text()[:200])


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


@pytest.mark.parametrize("door", ["PLoRA", "SPLoRA"])
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
