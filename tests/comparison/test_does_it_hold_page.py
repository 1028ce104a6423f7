"""The page docs/does_it_hold.md from a finished comparison, and the measurement of how many pictures there are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.set_sizes import Check, at_gain, checks_of, row_at, spread
from library.audit.report.comparison.frontier import frontier_json, frontier_rows
from library.errors import InputError
from tests.helpers.frontier_points import plain_curve, point
from tools import does_it_hold

DOCS = Path(__file__).parents[2] / "docs"
COURSE = [
    Check(0, 0.0, 0.0, 0.5), Check(50, 0.40, 0.01, 0.52), Check(100, 0.50, 0.03, 0.56), Check(150, 0.48, 0.05, 0.6),
]  # fmt: skip


def finished(place: Path) -> Path:
    """The folder of a comparison of plain LoRA's curve and one defence."""
    rows = frontier_rows([*plain_curve(), point("a defence", 0.45, 0.1)])
    (place / "frontier.json").write_text(json.dumps(frontier_json(rows)))
    (place / "frontier.svg").write_text("<svg></svg>")
    return place


def block(page: str, name: str) -> str:
    """What stands in one of the page's blocks."""
    return page.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0]


def test_the_page_takes_table_answer_and_sizes_and_keeps_the_words_around(tmp_path: Path) -> None:
    page = Path(shutil.copy(DOCS / "does_it_hold.md", tmp_path))
    before = page.read_text()
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps([row_at(20, "plain", 0.45, [COURSE, COURSE]), row_at(20, "distilled", 0.9, [COURSE])]))
    done = finished(tmp_path)
    assert does_it_hold.main(["--many", str(done), "--sizes", str(sizes)], docs=tmp_path) == 0
    text = page.read_text()
    assert "| a defence | 1 (1) | 8 | 45.0 [" in text and "* **a defence** leaks less than plain LoRA" in text
    assert "| 20 | plain | 2 | 45% | 2 | 30 | 2.0 [2.0, 2.0] % | 0.540 [0.540, 0.540] | 50.0% |" in text
    assert "| 20 | distilled | 1 | 90% | 0 | - | - | - | 50.0% |" in text
    assert text.split("<!-- table -->")[0] == before.split("<!-- table -->")[0]
    assert block(text, "few") == block(before, "few")
    assert does_it_hold.main(["--few", str(done)], docs=tmp_path) == 0
    assert (
        page.read_text().count("| a defence | 1 (1) | 8 | 45.0 [") == 2
        and (tmp_path / "does_it_hold_few.svg").is_file()
    )
    assert (tmp_path / "does_it_hold.svg").read_text().startswith('<svg style="background:#ffffff"')


def test_other_arguments_are_refused(tmp_path: Path) -> None:
    shutil.copy(DOCS / "does_it_hold.md", tmp_path)
    with pytest.raises(InputError, match="nothing to put on the page"):
        does_it_hold.main([], docs=tmp_path)
    with pytest.raises(InputError, match="frontier.json"):
        does_it_hold.main(["--many", str(tmp_path)], docs=tmp_path)


def test_a_run_is_read_where_it_first_has_the_gain() -> None:
    step, by_heart, area = at_gain(COURSE, 0.45)  # type: ignore[misc]
    assert (step, by_heart, area) == pytest.approx((75, 0.02, 0.54))
    assert at_gain(COURSE, 0.51) is None
    assert at_gain(COURSE, 0.2) == pytest.approx((25, 0.005, 0.51)), "between the start and the first pass"


def test_the_interval_over_runs_is_students() -> None:
    row = row_at(200, "plain", 0.45, [COURSE, [*COURSE[:2], Check(100, 0.50, 0.05, 0.60)], [Check(50, 0.1, 0.0, 0.5)]])
    assert row["runs"] == 3 and row["reached"] == 2 and row["exposures"] == pytest.approx(75 * 8 / 200)
    by_heart = row["by_heart"]
    assert isinstance(by_heart, dict) and by_heart["value"] == pytest.approx(0.025)
    assert by_heart["high"] - by_heart["value"] == pytest.approx(12.706 * 0.005, rel=1e-3)  # t with 1 degree of freedom
    assert spread(np.array([0.3])) == {"value": 0.3, "low": None, "high": None}


def test_validation_passes_are_read_from_the_log(tmp_path: Path) -> None:
    assert checks_of(tmp_path) == []
    lines = [{"step": 1, "loss": 0.1}, {"step": 5, "learnt": 0.2, "learnt_by_heart": 0.01, "calibrated_auc": 0.53}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert checks_of(tmp_path) == [Check(5, 0.2, 0.01, 0.53)]
