"""The page about rank and robustness: what is planted is what it says, and nothing is said of what was not audited."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from library.audit.report import html
from library.audit.report.sections import robustness_section
from library.audit.report.sections.rank_page import Membership, answers, by_rank, check_table, rank_figure, rank_table
from library.audit.robustness.robustness_findings import Estimate
from library.audit.robustness.robustness_result import as_json, result_of
from library.errors import InputError
from tests.helpers import planted_robustness

RESULT = planted_robustness.result()
FULL = Membership(Estimate(0.8, 0.7, 0.9), Estimate(0.5, 0.4, 0.6), "leak", 20, 20, None)
CUT = Membership(Estimate(0.6, 0.5, 0.7), Estimate(0.3, 0.2, 0.4), "no evidence", 20, 20, Estimate(-0.2, -0.3, -0.1))


def test_a_result_comes_back_from_its_json() -> None:
    assert result_of(json.loads(json.dumps(as_json(RESULT))), "'it'") == RESULT


@pytest.mark.parametrize("spoiled", [{"schema_version": 9}, {"findings": [{"variant": 1}]}, {"leaks": [{}]}])
def test_a_file_that_is_no_such_audit_is_refused(spoiled: dict) -> None:
    with pytest.raises(InputError, match="audit the LoRA again"):
        result_of(as_json(RESULT) | spoiled, "'it'")


def test_the_answer_says_which_cuts_are_sturdier_and_names_the_controls() -> None:
    text = answers(RESULT, {"full": FULL, "rank 2": CUT})
    sturdier, *_ = text.splitlines()
    assert "yes: rank 1 (0.6" in sturdier and "rank 2 (0.8" in sturdier and "undecided" not in sturdier
    assert "half strength (0.7" in text and "base (0.5" in text  # of sizes that are squared: 1.7^2 / 2^2, 1.5^2 / 2^2
    assert "rank 2 0.60 [0.50, 0.70] (-0.200 [-0.300, -0.100])" in text
    assert "No rank was audited on its own" in answers(RESULT, {})


def test_the_table_has_a_row_for_each_rank_and_says_where_nothing_was_audited() -> None:
    rows = rank_table(RESULT, {"full": FULL}).splitlines()[2:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [*by_rank(RESULT), "half strength"]
    assert by_rank(RESULT) == ["base", "rank 1", "rank 2", "full"]
    assert sum("not audited" in row for row in rows) == 4 and "0.80 [0.70, 0.90]" in rows[3]
    assert "100 %" in check_table(RESULT)


def test_the_figure_draws_all_ranks_and_only_what_was_audited() -> None:
    drawn = [rank_figure(RESULT, audited) for audited in ({"full": FULL, "rank 2": CUT}, {})]
    for one in drawn:
        assert ElementTree.fromstring(one).tag.endswith("svg") and "(whole)" in one
    assert drawn[0] != drawn[1]


def test_the_section_names_every_attack_and_variant() -> None:
    found = robustness_section.beside_of(RESULT)
    page = "".join(found.section())
    for title in (*robustness_section.ATTACKS.values(), *planted_robustness.RISES):
        assert html.escape(title).lower() in page.lower()
    assert "below the whole LoRA in the rise: base, rank 2, rank 1, half strength; in the error" in found.headline
