"""Lengths: of functions, of files, of folders. What grows beyond them is cut along a noun."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROOMS = ("library", "networks", "tools", "tests", "benchmarks")
DOORS = ("PLoRA.py", "SPLoRA.py", "DPLoRA.py", "audit.py", "compare.py")
LONGEST_FUNCTION, LONGEST_MAIN, MOST_FILES = 60, 110, 20


def functions() -> Iterator[tuple[str, str, int]]:
    """File, name and lines of every function."""
    doors = [ROOT / door for door in DOORS if (ROOT / door).exists()]
    for file in [*doors, *(file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py")))]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield str(file.relative_to(ROOT)), node.name, (node.end_lineno or 0) - node.lineno + 1


def test_no_function_is_longer_than_a_screen_but_a_doors_main() -> None:
    def most(file: str, name: str) -> int:
        return LONGEST_MAIN if file in DOORS and name == "main" else LONGEST_FUNCTION

    assert [f"{file} {name}: {lines}" for file, name, lines in functions() if lines > most(file, name)] == []


def test_no_folder_holds_more_files_than_an_eye_takes_in() -> None:
    folders = [folder for room in ROOMS for folder in [ROOT / room, *sorted((ROOT / room).rglob("*/"))]]
    full = {
        str(folder.relative_to(ROOT)): count
        for folder in folders
        if (count := sum(file.suffix == ".py" for file in folder.iterdir())) > MOST_FILES
    }
    assert folders and full == {}
