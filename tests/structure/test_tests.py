"""What a test is: a claim with an assertion, about what the code shows to others."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CLAIMS = ("raises", "warns", "fail")  # of pytest

# Own private names that tests still use, by file. Each waits for a public one; none is listed that is not used.
PRIVATE = {
    "tests/networks/test_network_files.py": {"_fixed_pass"},
    "tests/privacy/test_game.py": {"_attack_maps", "_fixed_pass"},
}


@cache
def parsed_tests() -> dict[str, ast.Module]:
    """Every file of the tests, parsed."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def claims(node: ast.AST) -> bool:
    """Whether a node asserts something, itself or by a helper whose name says so."""
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func).rpartition(".")[2]
    return name in CLAIMS or name.startswith(("assert_", "expect_"))


def test_no_test_is_without_an_assertion() -> None:
    silent = [
        f"{file}::{function.name}"
        for file, tree in parsed_tests().items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_")
        if not any(claims(node) for node in ast.walk(function))
    ]
    assert silent == []


def own_private_names() -> set[str]:
    """Functions, methods and attributes with a leading underscore that the suite's own code defines."""
    names: set[str] = set()
    doors = ROOT.glob("*.py")
    for file in [*doors, *(file for room in ("library", "networks", "tools") for file in (ROOT / room).rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Store):
                names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return {name for name in names if name.startswith("_") and name.strip("_") and not name.startswith("__")} - TORCHS


TORCHS = {"_compiled_call_impl"}  # written by the suite, named by torch


def test_no_test_uses_a_private_name_of_the_suite() -> None:
    private, used = own_private_names(), {}
    for file, tree in parsed_tests().items():
        found = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                found.add(node.attr)
            elif isinstance(node, ast.ImportFrom):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)  # monkeypatch.setattr(module, "name", ...)
        if found & private:
            used[file] = found & private
    used.pop("tests/structure/test_tests.py", None)
    assert used == PRIVATE


def test_no_test_file_imports_from_another() -> None:
    """What two of them share lies in tests/helpers."""
    borrowed = {
        f"{file}: {node.module}"
        for file, tree in parsed_tests().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").rpartition(".")[2].startswith("test_")
    }
    assert borrowed == set()
