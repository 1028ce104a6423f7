"""Files from outside have one way in: nothing but library/incoming opens, decodes or unpickles them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
READERS = {
    "json.loads", "json.load", "toml.loads", "toml.load", "tomllib.loads", "tomllib.load", "torch.load",
    "safe_open", "load_file", "Image.open", "np.load", "pickle.load", "pickle.loads",
}  # fmt: skip
METHODS = {"read_text", "read_bytes"}
GATE = ("library/incoming/", "library/tensor_files.py")
# What reads the suite's own words, and no file of a stranger
OWN = {
    "library/training/state.py": {"json.loads"},  # options as JSON would give them back
    "library/training/optimization/lr_schedulers.py": {"torch.load"},  # of a buffer that was written just now
    "library/training/output_lock.py": {"json.loads", "BOOT.read_text"},  # a few bytes of the lock; the kernel's name
    "library/training/sample_folder.py": {"Image.open"},  # the run's own previews
    "library/training/device.py": {"CORES.read_text"},  # the kernel's
    "library/json_lines.py": {"json.loads"},  # a key that was parsed before
}


def readers(file: Path) -> set[str]:
    """Names of the readers that a file calls."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in READERS or name.rpartition(".")[2] in METHODS and "." in name:
                found.add(name)
    return found


def test_files_from_outside_are_opened_by_the_gate_alone() -> None:
    files = [*ROOT.glob("*.py"), *(ROOT / "library").rglob("*.py"), *(ROOT / "networks").rglob("*.py")]
    names = {file.relative_to(ROOT).as_posix(): readers(file) for file in files}
    beside = {name: found - OWN.get(name, set()) for name, found in names.items() if not name.startswith(GATE)}
    assert {name: found for name, found in beside.items() if found} == {}
    assert {name for name, own in OWN.items() if not own <= names[name]} == set()
