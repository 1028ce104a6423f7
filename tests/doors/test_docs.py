"""The documents: what they link to, the files and options they name, and the walks through the code."""

import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from library.options.declarations import Config
from networks import check_lora_weights, extract_lora_from_models, merge_lora, resize_lora

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((ROOT / "docs").glob("*.md"))
ROOMS = "library|networks|tools|docs|configs|tests|demo|benchmarks"
OWN_FLAGS = {"config_file", "checks", "cases", "way"}  # of every door; of tests/run.sh; of tests.fuzz
LORA_TOOLS = (check_lora_weights, extract_lora_from_models, merge_lora, resize_lora)
STAND_INS = {"name", "no_"}  # "--name value" and "--no-<switch>" in docs/options.md
PROMPT_FLAGS = {"n", "w", "h", "d", "l", "s", "ss"}  # inside a line of a prompts file, explained in docs/options.md


def text_of(page: Path) -> str:
    """A page as text."""
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    """A page's name in the list of tests."""
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    paths = re.findall(rf"(?<![\w/.-])((?:{ROOMS})/[\w/.-]*\w(?:/(?=`))?)(?![\w*<])", text_of(page))
    assert [path for path in sorted(set(paths)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_flag_that_a_page_names_is_an_option(page: Path) -> None:
    flags = {flag.replace("-", "_") for flag in re.findall(r"(?<![\w-])--([a-z][\w-]*)", text_of(page))}
    known = {*Config.__dataclass_fields__, *OWN_FLAGS}
    if page.name in ("lora_tools.md", "files.md", "rank_and_robustness.md"):
        known |= {name for tool in LORA_TOOLS for name in tool.flags().names()}
    if page.name == "options.md":
        known |= STAND_INS | PROMPT_FLAGS
    assert sorted(flags - known) == []


@pytest.mark.parametrize("tool", LORA_TOOLS, ids=lambda tool: tool.__name__.rpartition(".")[2])
def test_every_command_of_the_page_of_tools_is_one_that_the_tool_reads(tool: ModuleType) -> None:
    """Each tool has one; its options parse, and none of the tool's own is left undescribed."""
    page = text_of(ROOT / "docs/lora_tools.md")
    name = tool.__name__.rpartition(".")[2]
    commands = re.findall(rf"^python networks/{name}\.py (.+?)(?<!\\)$", page, re.MULTILINE | re.DOTALL)
    assert commands
    for command in commands:
        assert tool.flags().read(shlex.split(command.replace("\\\n", " ")))
    assert [flag for flag in tool.flags().names() - {"help"} if f"`{flag}`" not in page] == []


def test_the_readme_is_short_and_its_first_code_block_is_the_two_commands() -> None:
    readme = text_of(ROOT / "README.md")
    assert len(readme.splitlines()) <= 140  # 19 of them are the verdicts, word for word
    block = re.search(r"^```bash\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert block is not None and readme.index("```") == block.start()
    assert [line.split("#")[0].rstrip() for line in block[1].splitlines()] == ["bash SPLoRA.sh", "bash tests/run.sh"]


@pytest.mark.parametrize(("walk", "most"), [("Walk 1", 8), ("Walk 2", 10)])
def test_a_walk_visits_few_files_and_names_what_is_in_them(walk: str, most: int) -> None:
    section = text_of(ROOT / "docs/development.md").split(f"## {walk}:")[1].split("\n## ")[0]
    steps = [step.split("`") for step in re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]]
    assert 0 < len(steps) <= most
    for quoted in (step[1::2] for step in steps):
        names = [name for name in quoted[1:] if re.fullmatch(r"[A-Za-z_]{3,}(\.[a-z_]+)?", name)]
        content = text_of(ROOT / quoted[0])
        parts = [part for name in names if name != "report.html" for part in name.split(".")]
        assert [part for part in parts if not re.search(rf"\b{part}\b", content)] == [], quoted[0]


def test_the_map_names_every_room() -> None:
    page = text_of(ROOT / "docs/development.md")
    rooms = {file.parent for room in ("library", "networks", "tools") for file in (ROOT / room).rglob("__init__.py")}
    apart = {ROOT / "library", ROOT / "library/audit"}  # named by what lies in them
    assert [name_of(room) for room in sorted(rooms - apart) if f"| `{name_of(room)}/` |" not in page] == []


def test_the_citation_states_the_version_and_licence_of_the_project() -> None:
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    citation = dict(re.findall(r"^(\w[\w-]*): \"?([^\"\n]+)\"?$", text_of(ROOT / "CITATION.cff"), re.MULTILINE))
    assert citation["cff-version"] == "1.2.0"
    stated = [citation[key] for key in ("title", "abstract", "version", "license")]
    assert stated == [project[key] for key in ("name", "description", "version", "license")]
