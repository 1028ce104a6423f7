"""Puts a robustness audit into docs/rank_and_robustness.md: python -m tools.rank_and_robustness OUTPUT_DIR.

The blocks between ``<!-- ranks -->`` and ``<!-- end -->``, and the others alike, and the figure beside the page come
from OUTPUT_DIR/audit/robustness.json and OUTPUT_DIR/audit/findings.json, and from rank<N>-audit/ where the LoRA cut to
rank N was audited as OUTPUT_DIR/rank<N>.safetensors; the words around them are written by hand.
"""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from library.audit.report.sections.rank_page import (
    Membership,
    answers,
    check_table,
    rank_figure,
    rank_table,
    ratio_table,
)
from library.audit.report.sections.robustness_figures import size_text
from library.audit.report.sections.robustness_section import starts_text
from library.audit.robustness.robustness_findings import Estimate
from library.audit.robustness.robustness_result import RobustnessResult, result_of
from library.audit.statistics.intervals import paired_auc_difference
from library.errors import InputError
from library.incoming.files import is_file, read_text
from tools.does_it_hold import filled, standing_alone

DOCS = Path(__file__).parent.parent / "docs"
Scores = tuple[np.ndarray, np.ndarray]
Table = tuple[Scores, tuple[list[str], list[str]], list[str]]  # scores and groups by side, and hashes of the pictures


def main(arguments: list[str], docs: Path = DOCS) -> int:
    """Write the page; returns 0. Raises: InputError for a folder without a robustness audit."""
    if len(arguments) != 1:
        raise InputError("python -m tools.rank_and_robustness takes one output folder, and nothing else")
    folder, page = Path(arguments[0]), docs / "rank_and_robustness.md"
    file = folder / "audit" / "robustness.json"
    if not is_file(file):
        raise InputError(f"'{file}' is not there; run: bash audit.sh {folder} --attacks membership robustness")
    result = result_of(json.loads(read_text(file, f"'{file}'")), f"'{file}'")
    audited = memberships(folder, result)
    text = page.read_text(encoding="utf-8")
    for name, content in (
        ("setting", setting(result)),
        ("answer", answers(result, audited) + "\n"),
        ("ranks", rank_table(result, audited)),
        ("ratios", ratio_table(result)),
        ("checks", check_table(result)),
    ):
        text = filled(text, name, content)
    page.write_text(text, encoding="utf-8")
    (docs / "rank_and_robustness.svg").write_text(standing_alone(rank_figure(result, audited)), encoding="utf-8")
    return 0


def setting(result: RobustnessResult) -> str:
    """How hard was tried on how many pictures."""
    counted = " and ".join(f"{count} of {side}" for side, count in result.pictures.items())
    rules = result.rules
    return (
        f"{counted} ({result.groups} groups); sizes {', '.join(map(size_text, result.sizes))}; "
        f"{rules.robustness_steps} steps, {starts_text(rules.robustness_restarts)}; drawings with "
        f"{rules.generation_steps} DDIM steps; seed {rules.audit_seed}.\n"
    )


def memberships(folder: Path, result: RobustnessResult) -> dict[str, Membership]:
    """What was audited for membership: the whole LoRA, and cuts to ranks, by the variant's name."""
    places = {"full": folder / "audit"}
    places |= {f"rank {one.rank}": folder / f"rank{one.rank}-audit" for one in result.variants if one.name != "full"}
    there = {name: place for name, place in places.items() if is_file(place / "findings.json")}
    tables = {name: _scores(place) for name, place in there.items()}
    return {name: _membership(place, name, tables) for name, place in there.items()}


def _membership(place: Path, name: str, tables: dict[str, Table]) -> Membership:
    found = _findings(place)
    main = next(one for one in found["findings"] if one["name"] == found["primary"])
    against, utility = None, found["utility"]
    if name != "full" and "full" in tables and tables[name][2] == tables["full"][2]:
        (scores, groups, _), (of_full, _, _) = tables[name], tables["full"]
        difference, reach = paired_auc_difference(scores, of_full, *groups, 0)
        against = Estimate(difference, *reach)
    return Membership(
        Estimate(main["auc"], *main["auc_interval"]),
        Estimate(*(utility[f"held_out_gain{end}"] for end in ("", "_low", "_high"))),
        found["verdict"]["word"],
        main["members"],
        main["non_members"],
        against,
    )


def _findings(place: Path) -> dict[str, Any]:
    file = place / "findings.json"
    content: dict[str, Any] = json.loads(read_text(file, f"'{file}'"))
    return content


def _scores(place: Path) -> Table:
    """The main attack's scores of the test sides."""
    primary, file = _findings(place)["primary"], place / "scores.csv"
    rows = [row for row in csv.DictReader(io.StringIO(read_text(file, f"'{file}'"))) if row["side"].endswith("-test")]
    sides = [[row for row in rows if row["side"] == side] for side in ("members-test", "non-members-test")]
    scores = tuple(np.array([float(row[primary]) for row in side]) for side in sides)
    groups = tuple([row["group"] for row in side] for side in sides)
    return (scores[0], scores[1]), (groups[0], groups[1]), [row["pixels"] for side in sides for row in side]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(str(error))
