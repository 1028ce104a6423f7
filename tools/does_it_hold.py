"""Puts a finished comparison into docs/does_it_hold.md: python -m tools.does_it_hold OUTPUT_DIR [SIZES.json].

The blocks between ``<!-- table -->`` and ``<!-- end -->``, and answer likewise, and the figure beside the page come
from the comparison's frontier.json and frontier.svg, the block sizes from benchmarks/set_sizes.py; the words around
them are written by hand.
"""

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
    if len(arguments) not in (1, 2):
        raise InputError(
            "python -m tools.does_it_hold takes the folder of a finished comparison and, where there is one, the "
            "sizes.json of benchmarks/set_sizes.py"
        )
    folder, page = Path(arguments[0]), docs / "does_it_hold.md"
    rows = [_row(entry) for entry in json.loads(_text(folder / "frontier.json"))]
    text = filled(page.read_text(encoding="utf-8"), "table", frontier_table(rows))
    text = filled(text, "answer", answer(rows))
    if len(arguments) == 2:
        text = filled(text, "sizes", sizes_table(json.loads(_text(Path(arguments[1])))))
    page.write_text(text, encoding="utf-8")
    (docs / "does_it_hold.svg").write_text(standing_alone(_text(folder / "frontier.svg")), encoding="utf-8")
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
