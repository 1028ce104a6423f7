"""Where each key stands in a TOML text, which the toml package does not report; and keys that are written twice."""

import re
from collections.abc import Iterator

HEADING = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$")
LONGEST_HEADING = 1000  # letters of its line: a longer one is none, and takes time
KEY = re.compile(r"""\s*(["']?)([\w-]+)\1\s*=(.*)""")


def lines_of_keys(text: str) -> dict[tuple[str, str], int]:
    """Line (from 1) of each (heading, key), found line by line.

    Lines inside a multi-line text are skipped. A key that is not found (for example a quoted one with unusual letters)
    is left out; its message then names only file and section. A heading in double brackets carries its number, as
    messages do: "datasets[0].subsets[1]".
    """
    found: dict[tuple[str, str], int] = {}
    for number, heading, key, _ in _keys(text):
        found.setdefault((heading, key), number)
    return found


def without_repeats(text: str) -> tuple[str, list[tuple[int, str]]]:
    """The text without lines that repeat a key under its heading with the same value, which TOML forbids.

    Returns:
        The text with as many lines, and (line, key) of those that were left out.
    """
    lines, repeated = text.splitlines(), []
    seen: dict[tuple[str, str], str] = {}
    for number, heading, key, value in _keys(text):
        if seen.get((heading, key)) == value and value:
            lines[number - 1] = ""
            repeated.append((number, key))
        seen.setdefault((heading, key), value)
    return "\n".join(lines), repeated


def _keys(text: str) -> Iterator[tuple[int, str, str, str]]:
    """(line, heading, key, rest of the line) of every key; no rest where a text of several lines begins."""
    counts: dict[str, int] = {}
    heading, inside = "", False
    for number, line in enumerate(text.splitlines(), start=1):
        opens_or_closes = (line.count('"""') + line.count("'''")) % 2 == 1
        if not inside and len(line) <= LONGEST_HEADING and (match := HEADING.match(line)):
            heading = _numbered(match[2].strip("\"'"), match[1] == "[[", counts)
        elif not inside and (match := KEY.match(line)):
            yield number, heading, match[2], "" if opens_or_closes else match[3].strip()
        inside = inside != opens_or_closes


def _numbered(name: str, is_array: bool, counts: dict[str, int]) -> str:
    """A heading with the numbers of the tables in double brackets that it names."""
    parts: list[str] = []
    for part in name.split("."):
        parts.append(part.strip())
        path = ".".join(parts)
        if is_array and len(parts) == name.count(".") + 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            parts[-1] = f"{part.strip()}[{counts[path]}]"
    return ".".join(parts)
