"""Where each key stands in a JSON text, which the json module does not report."""

import json
import re

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+|\n')


def lines_of_keys(text: str) -> dict[tuple[str, str], int]:
    """Line (from 1) of each (heading, key) of a valid JSON text; of an element of a list the key is empty.

    Headings are those of ``library.toml_lines``: "datasets[0].subsets[1]"; the elements of an outermost list are "[0]".
    """
    found: dict[tuple[str, str], int] = {}
    heads: list[str] = []  # of the objects and lists that are open here
    places: list[str | int] = []  # in each of them: the key, or the number of the element
    line, last = 1, ""
    for token in TOKEN.findall(text):
        if token == "\n":
            line += 1
            continue
        in_list = bool(places) and isinstance(places[-1], int)
        if in_list and token not in ",]":
            found.setdefault((f"{heads[-1]}[{places[-1]}]", ""), line)
        if token in "{[":
            heads.append(_inner(heads, places))
            places.append("" if token == "{" else 0)
        elif token in "}]":
            heads.pop()
            places.pop()
        elif token == "," and in_list:
            places[-1] = int(places[-1]) + 1
        elif not in_list and token.startswith('"') and last in ("{", ","):
            key = str(json.loads(token))
            places[-1] = key
            found.setdefault((heads[-1], key), line)
        last = token
    return found


def _inner(heads: list[str], places: list[str | int]) -> str:
    """The heading of an object or list that opens here."""
    if not places:
        return ""
    head, place = heads[-1], places[-1]
    if isinstance(place, int):
        return f"{head}[{place}]"
    return f"{head}.{place}" if head else place
