"""SECURITY.md says where text from outside becomes something; every place and test in it exists, and no other is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ROWS = [line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
SOURCES = [*ROOT.glob("*.py"), *(ROOT / "library").rglob("*.py"), *(ROOT / "networks").rglob("*.py")]
IMPORTERS = ("library/named_code.py", "library/optional_packages.py")
STARTERS = ("compare.py", "library/audit/attacks/shadow_models.py", "tools/environment.py")


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_every_place_and_every_test_of_the_page_exists(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert len(cells) == 5 and all(cells)
    for place in re.findall(r"`([\w/.]+\.(?:py|sh))`", cells[0]):
        assert (ROOT / place).is_file()
    (named,) = re.findall(r"`(tests/[\w/.:]+)`", cells[4])
    file, _, test = named.partition("::")
    names = [node.name for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
             if isinstance(node, ast.FunctionDef)]  # fmt: skip
    assert test in names if test else any(name.startswith("test_") for name in names)


def calls(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_in_the_suite_runs_text() -> None:
    """No new place may turn text into code, a process or a page without a line in SECURITY.md and in this test."""
    for file in SOURCES:
        where = file.relative_to(ROOT).as_posix()
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        for name, call in calls(tree):
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            last = name.rpartition(".")[2]
            assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), f"{where}: {name}"
            assert last != "import_module" or where in IMPORTERS, f"{where}: {name}"
            assert not name.startswith("subprocess.") or where in STARTERS, f"{where}: {name}"
            assert given.get("shell", "False") == "False", f"{where}: a shell"
            assert name != "torch.load" or given.get("weights_only") == "True", f"{where}: torch.load"
            assert given.get("trust_remote_code", "False") == "False", f"{where}: remote code"
            assert name not in ("pickle.load", "pickle.loads", "yaml.load", "numpy.load", "np.load"), f"{where}: {name}"
            if last == "from_pretrained" and ".Auto" in name:
                assert given.get("trust_remote_code") == "False", f"{where}: {name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "html":
                raise AssertionError(f"{where}: pages are escaped by library/plain_text.py")
