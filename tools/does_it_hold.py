"""Puts finished comparisons into docs/does_it_hold.md: python -m tools.does_it_hold [--many DIR ...].

Each option fills blocks of its own between ``<!-- NAME -->`` and ``<!-- end -->``, and draws a figure beside the page:
``--many`` (a run of configs/frontier_demo.toml) table and answer, ``--few`` (configs/frontier_few_demo.toml) few and
few answer, ``--sizes`` (benchmarks/set_sizes.py, no figure) sizes. The words around them are written by hand.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from library.audit.report.comparison.frontier import Figure, Row, Z, answer, frontier_table
from library.errors import InputError
from library.incoming.files import read_text
from library.plain_text import markdown_table

DOCS = Path(__file__).parent.parent / "docs"


def main(arguments: list[str], docs: Path = DOCS) -> int:
    """Write the page; returns 0. Raises: InputError for a folder without a finished comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--many", type=Path, help="finished comparison of 400 members")
    parser.add_argument("--few", type=Path, help="finished comparison of 40 members")
    parser.add_argument("--sizes", type=Path, help="sizes.json of benchmarks/set_sizes.py")
    given, page = parser.parse_args(arguments), docs / "does_it_hold.md"
    if not any(vars(given).values()):
        raise InputError("nothing to put on the page; give --many, --few or --sizes")
    text = page.read_text(encoding="utf-8")
    for folder, table, said, figure in (
        (given.many, "table", "answer", "does_it_hold.svg"),
        (given.few, "few", "few answer", "does_it_hold_few.svg"),
    ):
        if folder:
            rows = [_row(entry) for entry in json.loads(_text(folder / "frontier.json"))]
            text = filled(filled(text, table, frontier_table(rows)), said, answer(rows))
            (docs / figure).write_text(standing_alone(_text(folder / "frontier.svg")), encoding="utf-8")
    if given.sizes:
        text = filled(text, "sizes", sizes_table(json.loads(_text(given.sizes))))
    page.write_text(text, encoding="utf-8")
    return 0


def _text(file: Path) -> str:
    return read_text(file, f"'{file}'")


def filled(page: str, name: str, content: str) -> str:
    """The page with other lines in one of its blocks."""
    return re.sub(rf"(?s)(<!-- {name} -->\n).*?(<!-- end -->)", lambda found: found[1] + content + found[2], page)


def _row(entry: dict[str, Any]) -> Row:
    """A row as the comparison had it."""
    values: dict[str, Any] = {
        name: _figure(value) if isinstance(value, dict) else value for name, value in entry.items()
    }
    return Row(**values)


def _figure(value: dict[str, float]) -> Figure:
    return Figure(value["value"], (value["high"] - value["low"]) / 2 / Z)


def sizes_table(rows: list[dict[str, Any]]) -> str:
    """What a LoRA of so many pictures has learnt by heart when it has a given held-out gain."""
    head = ("pictures", "training", "runs", "held-out gain", "runs that reach it", "exposures", "by heart",
            "calibrated AUC", "best gain within the run")  # fmt: skip

    def spread(figure: dict[str, float | None] | None, form: str, factor: float = 1) -> str:
        if figure is None:
            return "-"
        value, low, high = (figure[name] for name in ("value", "low", "high"))
        assert value is not None
        reach = "" if low is None or high is None else f" [{factor * low:{form}}, {factor * high:{form}}]"
        return f"{factor * value:{form}}{reach}"

    lines = []
    for row in rows:
        by_heart, area = (spread(row.get(name), *how) for name, how in (("by_heart", (".1f", 100)), ("auc", (".3f",))))
        lines.append((
            str(row["pictures"]), row["training"], str(row["runs"]), f"{row['gain']:.0%}", str(row["reached"]),
            f"{row['exposures']:.3g}" if "exposures" in row else "-", by_heart if by_heart == "-" else f"{by_heart} %",
            area, f"{row['best_gain']:.1%}",
        ))  # fmt: skip
    return markdown_table(head, lines)


def standing_alone(element: str) -> str:
    """An SVG element as a file, on white."""
    return element.replace("<svg", '<svg style="background:#ffffff"', 1)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(str(error))
