"""What a comparison writes: the table of one split, and the frontier of all."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from library.audit.report.comparison import frontier
from library.audit.report.comparison.comparison_table import comparison_rows, markdown, read_findings
from library.tensor_files import write_whole


def write_table(runs: Sequence[dict[str, Any]], output: Path) -> str:
    """table.md and table.json of the audited runs in one folder; returns what is said of them."""
    rows = comparison_rows({title_of(run): read_findings(output / run["name"]) for run in runs})
    table = markdown(rows)
    write_whole(output / "table.md", table)
    write_whole(output / "table.json", json.dumps(rows, indent=1) + "\n")
    return f"\n{table}\n{output / 'table.md'}, {output / 'table.json'}"


def write_frontier(on_splits: Sequence[tuple[Sequence[dict[str, Any]], Path]], output: Path) -> str:
    """Held-out gain against leak over all splits, beside plain LoRA's own curve; returns what is said of it.

    Args:
        on_splits: the runs of each split, and its folder.
    """
    points = [
        frontier.read_point(place / run["name"], title_of(run), number, is_plain=bool(run.get("curve")))
        for number, (runs, place) in enumerate(on_splits, 1)
        for run in runs
    ]
    rows = frontier.frontier_rows(points)
    table = f"{frontier.frontier_table(rows)}\n{frontier.answer(rows)}"
    write_whole(output / "frontier.md", table)
    write_whole(output / "frontier.json", json.dumps(frontier.frontier_json(rows), indent=1) + "\n")
    write_whole(output / "frontier.svg", frontier.frontier_figure(rows) + "\n")
    return f"\n{table}\n{output / 'frontier.md'}, {output / 'frontier.json'}, {output / 'frontier.svg'}"


def title_of(run: dict[str, Any]) -> str:
    """What a run is called in the tables."""
    return str(run.get("title", run["name"]))
