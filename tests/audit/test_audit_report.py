"""What a person reads of an audit and what a program reads: words, page, exit status, findings.json, scores.csv."""

import base64
import csv
import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from library.audit.attacks.registry import ATTACKS, PRIMARY
from library.audit.report import advice, findings_schema, html
from library.audit.report.findings_schema import MEANINGS, schema
from library.audit.report.json_csv import as_json, scores_csv, typed_settings
from library.audit.report.learnt import best_plain_gain, share_of_best
from library.audit.report.publication import publish, shareable, shareable_json
from library.audit.report.report_page import report_html, summary
from library.audit.report.sections import robustness_schema
from library.audit.report.verdict import leak_sentence, no_evidence_sentence
from library.audit.report.wording import ACCESS, ACCESS_WORDS, NOTES, TITLES, note_of
from library.audit.statistics.metrics import auc
from library.audit.targets.lora_runs import of_checkpoints
from tests.helpers.audit_results import planted_result, with_interval, with_verdict
from tests.helpers.json_schema import complaints
from tools import findings_page

ROOT = Path(__file__).parents[2]


def saved(name: str, exposures: float | None, area: float):
    """An earlier saved file of the leaking run."""
    early = with_interval(planted_result(1.5), PRIMARY, area, area - 0.1, area + 0.1)
    return dataclasses.replace(early, label=f"run {name}", alias=f"LoRA {name}", exposures=exposures)


def page_of(result, *together) -> str:
    return report_html(result, [*together, result], []).replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(("area", "low", "high", "pairs"), [
    (0.81, 0.745, 0.866, "74 to 87 of 100 pairs"),
    (0.19, 0.134, 0.255, "74 to 87 of 100 pairs"),  # inverted
    (1.0, 0.9, 1.0, "90 to 100 of 100 pairs"),
])  # fmt: skip
def test_the_verdict_is_said_in_pairs_with_its_interval_rounded_outwards(area, low, high, pairs) -> None:
    found = with_interval(planted_result(1.5), PRIMARY, area, low, high).main
    said = leak_sentence(found)
    assert pairs in said and "AUC" not in said and ("inverted" in said) == (area < 0.5)
    assert pairs in no_evidence_sentence(dataclasses.replace(found, p=0.5), 0.66)


def test_no_evidence_names_the_smallest_leak_that_would_have_been_seen() -> None:
    said = no_evidence_sentence(dataclasses.replace(planted_result(0.0).main, p=0.5), 0.655)
    assert "fewer than 66 of 100 pairs (AUC 0.66)" in said or "fewer than 66 of 100 pairs (AUC 0.65)" in said
    assert "With 40 members and 40 non-members" in said
    assert "even a large leak could go unseen" in no_evidence_sentence(planted_result(0.0).main, 1.0)


@pytest.mark.parametrize("word", ["leak", "no evidence", "invalid"])
def test_terminal_and_report_say_the_same_steps_for_each_verdict(word: str) -> None:
    result = with_verdict(planted_result(1.5), word)
    steps, text = advice.what_now(word, "out put"), page_of(result)
    assert len(steps) == 3 and advice.HEADLINES[word] in text and advice.HEADLINES[word] in summary(result)
    for step in steps:
        assert html.rich(step) in text and step.replace("`", "") in summary(result)
    assert text.index("What to do now") < text.index("<nav")  # on the first screen


def test_commands_hold_the_folder_that_was_audited_quoted_for_a_shell() -> None:
    assert "`bash audit.sh 'out put' --checkpoints all`" in advice.what_now("leak", "out put")[1]
    assert f"audit.sh {advice.FOLDER} --publishable" in advice.what_now("no evidence")[2]


def test_pages_that_say_what_to_do_now_say_it_in_these_words() -> None:
    pages = [page for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
             if re.search(r"^#+ .*what now", page.read_text(), re.MULTILINE | re.IGNORECASE)]  # fmt: skip
    assert ROOT / "docs" / "audit.md" in pages
    assert [page.name for page in pages if advice.markdown() not in page.read_text()] == []


@pytest.mark.parametrize(("area", "low", "high", "word", "status"), [
    (0.52, 0.45, 0.59, "no evidence", 0),
    (0.55, 0.48, 0.61, "no evidence", 3),
    (0.48, 0.39, 0.56, "no evidence", 3),  # 1 - 0.39 is above 0.60
    (0.55, 0.48, 0.61, "invalid", 4),
    (0.52, 0.45, 0.59, "invalid", 4),
    (0.52, 0.45, 0.59, "leak", 3),  # by the strongest attack
])  # fmt: skip
def test_an_audit_that_may_not_leak_ends_with_the_status_of_its_upper_bound(area, low, high, word, status) -> None:
    result = with_verdict(with_interval(planted_result(1.5), PRIMARY, area, low, high), word)
    assert advice.exit_status([result], 0.60) == status and advice.exit_status([result], None) == 0


def test_of_several_loras_a_leak_counts_before_an_invalid_audit() -> None:
    leak = planted_result(1.5)
    fine = with_verdict(with_interval(leak, PRIMARY, 0.5, 0.45, 0.55), "no evidence")
    invalid = with_verdict(leak, "invalid")
    assert advice.exit_status([fine, invalid, leak], 0.60) == 3 and advice.exit_status([fine, invalid], 0.60) == 4


def test_every_attack_has_its_sentence_its_source_and_a_name_for_its_access() -> None:
    names = {attack.name for attack in ATTACKS} | {"lira", "drawings"}
    assert names <= set(NOTES) and set(ACCESS.values()) <= set(ACCESS_WORDS)
    assert all(note_of(name).sentence and re.search(r"arXiv \d{4}\.\d{5}|this suite", note_of(name).reference)
               for name in names)  # fmt: skip
    with pytest.raises(KeyError, match="'new' has no note; add it to NOTES"):
        note_of("new")


def test_the_page_calls_an_attack_by_one_name_and_says_what_was_audited() -> None:
    result = planted_result(1.5)
    text = page_of(result)
    shown = re.sub(r"<[^>]*>", " ", text.split("<main>")[1])
    assert not re.search(r"\b(fusion|map_mlp|loss_calibrated|secmi_network|gsa1)\b", shown)
    for needed in (TITLES[PRIMARY], "ab" * 32, "2026-11-29", "private-lora 0.1.0", "demo/base", "last.safetensors",
                   "about 40, to one digit", "one-sided Welch t-test", "arXiv 2302.03262",
                   "asks the model"):  # fmt: skip
        assert needed in shown, needed
    assert all(f"pictures, {side}" in shown for side in ("members-aux", "non-members-aux", "members-test"))
    assert all(word in text for word in ("<dt>AUC</dt>", "<dt>LoRA off</dt>", "<dt>flipped</dt>"))


def test_main_and_strongest_attack_share_a_box_where_they_are_the_same() -> None:
    same = with_interval(planted_result(1.5), PRIMARY, 1.0, 0.9, 1.0)
    apart = with_interval(planted_result(1.5), PRIMARY, 0.6, 0.5, 0.7)
    assert "fixed beforehand, and strongest" in page_of(same) and "Strongest attack:" not in page_of(same)
    assert "Strongest attack:" in page_of(apart) and "and strongest" not in page_of(apart)


def test_the_course_over_saved_files_stands_on_top_whenever_there_are_some() -> None:
    early, result = saved("000002", 10.0, 0.6), planted_result(1.5)
    text = page_of(result, early)
    assert text.index("AUC and held-out gain against exposures") < text.index("Side by side</h2>")
    assert "AUC from 0.60 at 10 to" in text and "exposures per member picture" in text
    unknown = [dataclasses.replace(one, exposures=None) for one in (early, result)]
    assert "saved file, first to last" in page_of(unknown[1], unknown[0])
    assert "held-out gain against" not in page_of(result)


def test_what_was_learnt_is_the_held_out_gain_everywhere_and_the_members_loss_is_called_fit(tmp_path: Path) -> None:
    shares = {"held_out_gain": 0.4, "held_out_gain_low": 0.38, "held_out_gain_high": 0.42}
    early, result = (
        dataclasses.replace(one, utility={**one.utility, **shares})
        for one in (saved("000002", 10.0, 0.6), planted_result(1.5))
    )
    undefended = dataclasses.replace(early, defended=False)
    text, utility = page_of(result, undefended), result.utility
    learnt, heart = "40.0 % [38.0, 42.0]", f"{100 * utility['learnt_by_heart']:.1f} % ["
    first = text.split("<nav")[0]
    assert learnt in first and "40 held-out pictures" in first and heart in first and "40 members" in first
    assert learnt in summary(result) and heart in summary(result)
    assert "loss" not in re.sub(r"<style>.*?</style>", "", first, flags=re.DOTALL).lower()
    beside = text.split("Side by side</h2>")[1].split("<h2")[0]
    assert (
        learnt in beside
        and "of plain LoRA&#x27;s best" in beside
        and "100 % [95, 105]" in beside
        and "loss" not in beside
    )
    assert "no utility" in text and "fit (loss of all members" in text
    publish([result], [result], tmp_path / "OUT")
    assert "by heart (members" in (tmp_path / "OUT" / "report.html").read_text()


def test_plain_loras_best_gain_is_of_the_undefended_on_the_same_pictures() -> None:
    utility = dict(zip(("held_out_gain", "held_out_gain_low", "held_out_gain_high"), (0.4, 0.38, 0.42), strict=True))
    better = utility | {"held_out_gain": 0.5}
    best = best_plain_gain(
        [(False, utility), (False, better), (True, utility | {"held_out_gain": 0.9}), (None, utility)]
    )
    assert best == 0.5 and share_of_best(utility, best) == pytest.approx((0.8, 0.76, 0.84))
    assert best_plain_gain([(True, utility)]) is None and share_of_best(utility, None) is None
    assert best_plain_gain([(False, {"held_out_gain": -0.1})]) is None


@pytest.mark.parametrize(("count", "kept"), [(0, []), (2, [0, 1]), (3, [0, 1, 2]), (4, [0, 1, 3]), (9, [1, 4, 7])])
def test_up_to_three_earlier_files_are_spread_evenly_over_the_training(count: int, kept: list[int]) -> None:
    files = [Path(f"last-{number:06d}.safetensors") for number in range(count)]
    assert [files.index(file) for file in of_checkpoints(files, "spread")] == kept
    assert of_checkpoints(files, "all") == files and of_checkpoints(files, "last") == []


def test_the_page_may_load_and_run_nothing_and_has_no_style_in_its_elements() -> None:
    text = page_of(planted_result(1.5))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; "
                      "form-action 'none'")  # fmt: skip
    assert " style=" not in text and "<script" not in text and text.count("<style") == 1
    shown = re.findall(r'<svg role="img" aria-label="([^"]*)"', text)
    assert len(shown) == text.count("<svg") and all(re.search(r"\d", seen) for seen in shown)  # figures, in words


def test_every_link_of_the_contents_leads_to_a_heading() -> None:
    text = page_of(planted_result(1.5))
    links = re.findall(r'<a href="#([\w-]+)"', text)
    assert len(links) > 7 and all(text.count(f'<h2 id="{link}">') == 1 for link in links)


def test_findings_fit_the_published_schema_private_and_published() -> None:
    result = planted_result(1.5)
    shadowed = dataclasses.replace(result.evaluation, shadow_findings={PRIMARY: result.main})
    whole = dataclasses.replace(result, evaluation=shadowed)
    wanted = json.loads(findings_page.SCHEMA.read_text())
    for content in (as_json(whole, [whole]), shareable_json(shareable(whole), [shareable(whole)])):
        assert complaints(json.loads(json.dumps(content)), wanted) == []
    private = json.loads(json.dumps(as_json(whole)))
    assert list(private) == list(findings_schema.KEYS)  # the order that is documented
    assert complaints({**private, "extra": 1}, wanted) == ["file: extra is unknown"]
    assert complaints({**private, "primary": 3}, wanted) == ["file.primary: 3 is no string"]
    assert complaints({name: one for name, one in private.items() if name != "verdict"}, wanted) == [
        "file: verdict is missing"
    ]


def test_findings_say_of_which_file_when_and_by_what_and_type_the_settings_in_order() -> None:
    content = as_json(planted_result(1.5))
    assert (content["schema_version"], content["date"], content["suite"]) == (2, "2026-11-29", "private-lora 0.1.0")
    assert content["checkpoint_sha256"] == "ab" * 32
    expected = {"gain_limit": "inf", "inclusion": "fixed", "k_steps": 1, "param_alpha": 0.05, "separate_noise": False}
    assert list(content["settings"].items()) == list(expected.items())
    assert typed_settings({"b": "x", "a": "1e-3"}) == {"a": 0.001, "b": "x"}


def test_the_schema_and_its_page_are_up_to_date_and_every_key_has_its_meaning() -> None:
    """Otherwise: python -m tools.findings_page."""
    assert json.loads(findings_page.SCHEMA.read_text()) == schema()
    assert json.loads(findings_page.ROBUSTNESS.read_text()) == robustness_schema.schema()
    assert findings_page.PAGE.read_text() == findings_page.page()
    with pytest.raises(KeyError, match="'Finding.new' of the file has no meaning"):
        findings_schema.meaning("Finding.new", MEANINGS)
    assert all(text.strip() for text in (*MEANINGS.values(), *robustness_schema.MEANINGS.values()))


def test_the_example_of_the_page_refuses_a_leaking_file_and_takes_a_quiet_one(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", findings_page.PAGE.read_text(), re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line]) == 5
    audit = tmp_path / "OUTPUT_DIR" / "audit"
    audit.mkdir(parents=True)
    leak = planted_result(1.5)
    quiet = with_verdict(with_interval(leak, PRIMARY, 0.5, 0.45, 0.55), "no evidence")
    for result, status in ((leak, 1), (quiet, 0), (with_verdict(quiet, "invalid"), 1)):
        (audit / "findings.json").write_text(json.dumps(as_json(result)))
        done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=False)
        assert done.returncode == status


def test_scores_csv_has_the_documented_columns_and_gives_the_findings_again() -> None:
    result = planted_result(1.5)
    rows = list(csv.DictReader(io.StringIO(scores_csv(result))))
    page = findings_page.PAGE.read_text().split("## scores.csv")[1]
    documented = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    names = [name for name in rows[0] if name not in ("pixels", "side", "group")]
    assert {name.removesuffix("_off") for name in names} <= set(documented) and documented[:3] == list(rows[0])[:3]
    sides = {side: [row for row in rows if row["side"] == f"{side}-test"] for side in ("members", "non-members")}
    for name, found in result.evaluation.findings.items():
        for column, stated in ((name, found.auc), (f"{name}_off", found.auc_off)):
            members, others = ([float(row[column]) for row in side] for side in sides.values())
            assert auc(members, others) == pytest.approx(stated, abs=1e-6)
    groups = dict(zip(result.candidates.pixels, result.candidates.groups, strict=True))
    numbers = {(groups[row["pixels"]], row["group"]) for row in rows}
    assert len(numbers) == len(set(groups.values())) == len({row["group"] for row in rows})


def test_what_is_published_keeps_place_file_name_and_base_to_itself(tmp_path: Path) -> None:
    result = planted_result(1.5)
    publish([result], [result], tmp_path / "OUT")
    text = "".join(file.read_text() for file in (tmp_path / "OUT").iterdir())
    assert "ab" * 32 in text and "out put" not in text and "demo/base" not in text and "last.safetensors" not in text
    assert f"audit.sh {advice.FOLDER} --checkpoints all" in text
