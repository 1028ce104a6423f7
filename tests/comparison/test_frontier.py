"""Held-out gain against leak over several splits: plain LoRA's curve, who lies off it, and what is told."""

import csv
import json
import math
from pathlib import Path

import pytest

import compare
from library.audit.report.comparison import frontier
from library.audit.report.comparison.frontier import (
    Figure,
    Point,
    below_curve,
    curve_of,
    frontier_rows,
    pooled,
    read_point,
)
from library.errors import InputError
from tests.helpers.frontier_points import plain_curve, point

PLAIN = {"a": "plain 6", "b": "plain 12", "c": "plain 24"}


ATTACKS = dict.fromkeys(["plain 6", "plain 12", "plain 24", "defended"], "fusion")


def test_plain_loras_curve_ends_where_longer_training_learns_no_more() -> None:
    assert [one.title for one in curve_of(plain_curve(), 1)] == ["plain 6", "plain 12"]
    assert curve_of(plain_curve(), 2) == []


def test_a_lora_is_held_against_plain_lora_of_the_same_gain() -> None:
    """Halfway between the two plain ones in gain; its own scores are those of the weaker one."""
    curve = curve_of(plain_curve(), 1)
    found = below_curve(point("defended", 0.45, 0.1), curve, ATTACKS)
    areas = [one.area("fusion") for one in curve]
    assert found is not None and found.value == pytest.approx(areas[0] - (areas[0] + areas[1]) / 2)
    assert found.value + 1.96 * found.error < 0 and found.error < 0.02  # the same pictures: paired
    assert below_curve(point("defended", 0.39, 0.1), curve, ATTACKS) is None
    assert below_curve(point("defended", 0.51, 0.1), curve, ATTACKS) is None


def test_a_plain_lora_lies_on_its_own_curve() -> None:
    curve = curve_of(plain_curve(), 1)
    found = below_curve(plain_curve()[1], curve, ATTACKS)
    assert found is not None and found.value == pytest.approx(0.0) and found.error == pytest.approx(0.0, abs=1e-12)


def test_splits_are_pooled_with_their_own_error_or_their_scatter() -> None:
    alike = pooled([Figure(0.6, 0.03), Figure(0.6, 0.04)])
    assert alike is not None and alike.value == 0.6 and alike.error == pytest.approx(0.025)
    apart = pooled([Figure(0.5, 0.01), Figure(0.7, 0.01)])
    assert apart is not None and apart.error == pytest.approx(0.1)
    assert pooled([]) is None


def test_the_table_says_who_is_off_the_curve_and_who_is_on_the_front() -> None:
    points = [one for split in (1, 2, 3) for one in [
        *plain_curve(split), point("better", 0.45, 0.0, split), point("worse", 0.45, 1.2, split),
        point("far", 0.30, 0.0, split)]]  # fmt: skip
    rows = {row.title: row for row in frontier_rows(points)}
    assert rows["better"].splits == 3 and rows["better"].share_of_best == pytest.approx(0.9)
    assert {title for title, row in rows.items() if row.is_on_front} == {"plain 12", "better"}
    assert rows["far"].below_worst is None and rows["plain 6"].below_main is None
    told = frontier.answer(list(rows.values()))
    assert "**better** leaks less than plain LoRA" in told and "**worse** leaks *more*" in told and "far" not in told
    assert "No defence" in frontier.answer([row for title, row in rows.items() if title != "better"])
    assert "none can be held against it" in frontier.answer([rows["plain 6"], rows["far"]])
    table = frontier.frontier_table(list(rows.values())).splitlines()
    assert len({line.count("|") for line in table}) == 1 and "| outside | outside |" in table[-1]
    assert "better 45% at 0." in frontier.frontier_figure(list(rows.values()))
    assert json.loads(json.dumps(frontier.frontier_json(list(rows.values()))))[0]["gain"]["value"] == pytest.approx(
        0.40
    )


def test_the_worst_attack_is_one_for_all_splits() -> None:
    """Each split's own worst would flatter the attacker by the choice."""
    first, second = point("d", 0.4, 0.5, 1), point("d", 0.4, 0.5, 2)
    turned = {"fusion": first.scores["fusion"], "loss": (first.scores["loss"][0] + 0.4, first.scores["loss"][1])}
    (row,) = frontier_rows([Point(**{**vars(first), "scores": turned, "worst": "loss"}), second])
    assert row.worst_attack == "fusion" and math.isnan(row.share_of_best)


def audited(folder: Path, **utility: float) -> None:
    (folder / "audit").mkdir(parents=True)
    findings = {"findings": [{"name": "fusion"}], "utility": utility, "exposures_per_image": 6.0, "primary": "fusion",
                "worst": "fusion", "settings": {"dp_epsilon": 8.0}}  # fmt: skip
    (folder / "audit/findings.json").write_text(json.dumps(findings))
    with open(folder / "audit/scores.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["pixels", "side", "group", "fusion"])
        for number, side in enumerate(["members-test", "non-members-test", "members-aux", "members-test"]):
            rows.writerow(["ab", side, number, number / 10])


def test_a_point_reads_the_test_sides_of_an_audit(tmp_path: Path) -> None:
    audited(tmp_path / "one", held_out_gain=0.4, held_out_gain_low=0.38, held_out_gain_high=0.42)
    found = read_point(tmp_path / "one", "one", 2, is_plain=False)
    assert [side.tolist() for side in found.scores["fusion"]] == [[0.0, 0.3], [0.1]] and found.groups[0] == ["0", "3"]
    assert found.gain.value == 0.4 and found.gain.error == pytest.approx(0.02 / 1.96) and found.epsilon == 8.0
    audited(tmp_path / "old", member_loss_relative=0.5)
    with pytest.raises(InputError, match="'held_out_gain'; audit it again with this version"):
        read_point(tmp_path / "old", "old", 1, is_plain=False)


def test_repeats_have_a_split_each_and_their_frontier(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "plan.toml").write_text(
        '[compare]\nrepeats = 2\n[[runs]]\nname = "a"\ndoor = "PLoRA"\ncurve = true\n'
        '[[runs]]\nname = "b"\ndoor = "SPLoRA"\n[[runs]]\nname = "c"\ndoor = "DPLoRA"\nsplits = 1\n'
    )
    places: list[Path] = []

    def one_split(runs: list[dict], plan: dict, place: Path) -> int:
        places.append(place)
        assert [run["name"] for run in runs] == (["a", "b", "c"] if len(places) == 1 else ["a", "b"])
        for run in runs:
            audited(place / run["name"], held_out_gain=0.4, held_out_gain_low=0.38, held_out_gain_high=0.42)
        return 3 if len(places) == 1 else 0

    monkeypatch.setattr(compare, "compare_on_one_split", one_split)
    output = tmp_path / "out"
    assert compare.main(["--config_file", str(tmp_path / "plan.toml"), "--output_dir", str(output)]) == 3
    assert places == [output / "split-1", output / "split-2"]
    assert {file.name for file in output.glob("frontier.*")} == {"frontier.md", "frontier.json", "frontier.svg"}
    table = (output / "frontier.md").read_text()
    assert "| a (epsilon 8) | 2 | 6 |" in table and "| c (epsilon 8) | 1 (0) | 6 |" in table
    assert "curve" not in compare.own_flags({"name": "a", "door": "PLoRA", "curve": True, "seed": 3})


def test_splits_that_are_not_there_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        '[compare]\nrepeats = 2\n[[runs]]\nname = "a"\ndoor = "PLoRA"\nsplits = 1\n'
        '[[runs]]\nname = "early"\ncheckpoint_of = "a"\nepoch = 2\n[[runs]]\nname = "b"\ndoor = "PLoRA"\nsplits = 3\n'
    )
    with pytest.raises(InputError) as caught:
        compare.main(["--config_file", str(tmp_path / "plan.toml"), "--output_dir", str(tmp_path / "out")])
    told = str(caught.value)
    assert "'early': on 2 splits, but 'a' is trained on 1 alone" in told
    assert "'b': splits = 3, but [compare] has repeats = 2; raise repeats" in told
    assert not (tmp_path / "out").exists()


def test_what_only_the_table_reads_trains_nothing_anew(tmp_path: Path) -> None:
    run = {"name": "a", "door": "PLoRA", "seed": 3}
    compare.mark_finished(run, tmp_path)
    assert compare.finished({**run, "title": "another", "curve": True, "splits": 1}, tmp_path)
    assert not compare.finished({**run, "seed": 4}, tmp_path)
