"""The whole examination: verdicts, controls, the report's files and what they must not hold."""

import dataclasses
import json
import re

import numpy as np
import pytest

from library.audit.attacks.attack_result import finding
from library.audit.attacks.registry import ATTACKS, MOST_EXPOSED
from library.audit.images.generated import Drawings
from library.audit.queries.query_plan import LITE
from library.audit.report import report_page
from library.audit.report.audit_result import AuditedFile, AuditResult, adaptation_utility, audit_result_of, stamp_facts
from library.audit.report.evaluation import EvaluationInputs, examine
from library.audit.report.figures import group_bars
from library.audit.report.json_csv import as_json
from library.audit.report.most_exposed import ExposedPicture
from library.audit.report.paired_differences import paired_differences
from library.audit.report.publication import shareable, shareable_page
from library.audit.report.report_page import report_html, write_report
from library.audit.report.verdict import most_shown_sentence, verdict
from library.audit.statistics.findings import ScoreSettings
from library.audit.statistics.intervals import clopper_pearson
from library.audit.statistics.permutation import p_text
from library.audit.targets.candidates import CandidateSet, require_resolvable
from library.audit.targets.provenance import provenance
from library.errors import InputError
from tests.helpers.audit_planted import planted_answers, planted_candidates

CANDIDATES = planted_candidates(60)
FILE = AuditedFile("last.safetensors", "out put", "ab" * 32, "demo/base", "2026-11-29", "private-lora 0.1.0")
BATTERY = [attack for attack in ATTACKS if attack.name in ("loss", "loss_calibrated", "clid", "clid_vector", "fusion")]


def examined(leak, blind=None, **options):
    scores = np.random.default_rng(1).normal(size=len(CANDIDATES.pixels)) if blind is None else blind
    answers = planted_answers(CANDIDATES, leak)
    return answers, examine(inputs(answers, {"pictures alone": scores}, **options))


def inputs(answers, blind, **options):
    common = {"epsilon_doubt": "", "target_fpr": 0.05, "seed": 0, "registry": BATTERY}
    return EvaluationInputs(answers, CANDIDATES, blind, **(common | options))


@pytest.fixture(scope="module")
def leaking():
    answers, evaluation = examined(2.0)
    return AuditResult(
        "run <1>", "LoRA", {"param_alpha": "0"}, 40.0, False, evaluation, CANDIDATES,
        adaptation_utility(answers, CANDIDATES), {"profile": "lite"},
        {attack.name: attack.passes(LITE) for attack in ATTACKS}, {}, FILE,
    )  # fmt: skip


def test_a_planted_leak_is_called_a_leak(leaking):
    assert leaking.evaluation.verdict.word == "leak"
    assert leaking.main.auc_interval[0] > 0.9 and leaking.evaluation.p_max < 0.001
    assert max(bound.epsilon for bound in leaking.evaluation.epsilon) > 1


def test_no_leak_is_no_evidence_and_says_how_large_a_leak_could_have_hidden():
    evaluation = examined(0.0)[1]
    assert evaluation.verdict.word == "no evidence"
    assert f"AUC {evaluation.verdict.least_detectable_auc:.2f}" in evaluation.verdict.sentence


@pytest.mark.slow
def test_random_scores_are_called_a_leak_or_invalid_no_more_often_than_stated():
    """The whole protocol on luck alone, 40 times: p < 0.01 by the main attack or by the largest of all."""
    answers, generator, words = planted_answers(CANDIDATES, 0.0), np.random.default_rng(3), []

    def luck(answers, aux):
        return generator.normal(size=len(CANDIDATES.pixels)), "nothing"

    registry = [dataclasses.replace(attack, score=luck) for attack in BATTERY]
    for _ in range(40):
        blind = {name: luck(None, None)[0] for name in ("pictures alone", "captions alone")}
        evaluation = examine(inputs(answers, blind, registry=registry))
        words.append(evaluation.verdict.word)
        assert all(found.auc_interval[0] < found.auc < found.auc_interval[1] for found in evaluation.findings.values())
    assert words.count("leak") <= 3 and words.count("invalid") <= 3  # 2 % and 1 % stated
    assert words.count("no evidence") >= 36


def test_a_sign_above_luck_that_misses_the_bar_is_said_to_be_one(leaking):
    weak = {
        name: dataclasses.replace(one, auc=0.61, auc_flipped=0.61, auc_interval=(0.54, 0.68), p=0.002)
        for name, one in leaking.evaluation.findings.items()
    }
    said = verdict(weak, "fusion", 0.02, 0.5, "", [])
    assert (
        said.word == "no evidence"
        and "does better than luck (AUC 0.61 [0.54, 0.68], p = 0.0020)" in said.sentence
        and "54 to 68 of 100" in said.sentence
    )


@pytest.mark.slow
def test_differences_between_loras_of_one_split_are_paired(leaking):
    flat = examined(0.0)[1]
    first = dataclasses.replace(leaking, alias="LoRA 1")
    other = dataclasses.replace(leaking, label="defended", alias="LoRA 2", defended=True, evaluation=flat)
    pairs = {pair.attack: pair for pair in paired_differences(other, [first, other])}
    assert pairs["fusion"].against == "LoRA 1" and paired_differences(first, [first, other]) == []  # no folder's name
    assert pairs["fusion"].difference == pytest.approx(other.main.auc - leaking.main.auc)
    assert pairs["fusion"].interval[1] < 0
    elsewhere = dataclasses.replace(other, candidates=planted_candidates(60, seed=1))
    assert paired_differences(elsewhere, [leaking, elsewhere]) == []
    assert as_json(other, [leaking, other])["paired_differences"][0]["attack"] == "fusion"
    text = report_html(other, [leaking, other], [])
    assert f"{pairs['fusion'].difference:+.2f} [" in text


def test_every_figure_of_the_list_stands_in_the_report_with_its_words(leaking):
    shadow = dataclasses.replace(leaking.evaluation, shadow_findings={"fusion": leaking.main})
    early = dataclasses.replace(leaking, label="run <1> 000002", exposures=10.0)
    result = dataclasses.replace(leaking, evaluation=shadow, settings={"epsilon": "8"})
    text = report_html(result, [result, early], [])
    for title in ("ROC, logarithmic", "ROC", "All attacks", "Scores", "AUC against the timestep",
                  "Thresholds in practice", "Empirical epsilon", "Which attacks agree", "Most exposed groups",
                  "AUC and held-out gain against exposures",
                  "Privacy against what was learnt"):  # fmt: skip
        assert f"</svg><figcaption><b>{title}.</b>" in text
    assert "Blue diamonds" in text and "AUC, fitted on a shadow" in text


def test_groups_are_ranked_by_their_mean_and_carry_their_size():
    scores = np.where(CANDIDATES.is_member, 1.0, 0.0) + np.random.default_rng(0).normal(0, 0.1, 240)
    row = int(CANDIDATES.indices("members-test")[0])
    scores[[place for place, group in enumerate(CANDIDATES.groups) if group == CANDIDATES.groups[row]]] = 9.0
    bars, highest = group_bars(scores, CANDIDATES, most=5)
    assert next(iter(bars)) == CANDIDATES.groups[row] and len(bars) == 5
    assert bars[CANDIDATES.groups[row]][1] == CANDIDATES.groups.count(CANDIDATES.groups[row])
    assert highest < min(score for score, _ in bars.values())


@pytest.mark.slow
def test_a_blind_attacker_that_succeeds_makes_the_audit_invalid():
    evaluation = examined(2.0, blind=CANDIDATES.is_member + 0.1 * np.random.default_rng(0).normal(size=240))[1]
    assert evaluation.verdict.word == "invalid" and "pictures alone" in evaluation.verdict.sentence


@pytest.mark.parametrize(
    ("p", "word", "at_the_edge"),
    [(0.0009, "invalid", False), (0.001, "leak", True), (0.0099, "leak", True), (0.01, "leak", False)],
)
def test_a_control_far_from_chance_fails_the_audit_and_one_at_the_edge_is_told(leaking, p, word, at_the_edge):
    said = verdict(leaking.evaluation.findings, "fusion", 0.0001, p, "captions alone", [])
    assert said.word == word and ("captions alone" in said.sentence) == (p < 0.01)
    assert ("One control is at the edge" in said.sentence) == at_the_edge
    quiet = verdict(examined(0.0)[1].findings, "fusion", 0.5, p, "captions alone", [])
    assert ("One control is at the edge: 'captions alone' (p = " in quiet.sentence) == at_the_edge


@pytest.mark.slow
def test_a_note_makes_the_audit_invalid():
    evaluation = examined(0.0, notes=["the LoRA changes nothing"])[1]
    assert evaluation.verdict.word == "invalid" and "changes nothing" in evaluation.verdict.sentence


def test_inverted_leakage_is_a_leak(leaking):
    findings = {
        name: dataclasses.replace(one, auc=0.2, auc_flipped=0.8, auc_interval=(0.12, 0.28), p=0.0001)
        for name, one in leaking.evaluation.findings.items()
    }
    said = verdict(findings, "fusion", 0.0001, 0.5, "", [])
    assert said.word == "leak" and "inverted" in said.sentence


def test_attacks_that_fail_on_the_undefended_lora_show_nothing_about_a_defence(leaking):
    flat = {
        name: dataclasses.replace(one, auc=0.5, auc_flipped=0.5, auc_interval=(0.4, 0.6), p=0.9)
        for name, one in leaking.evaluation.findings.items()
    }
    said = verdict(flat, "fusion", 0.9, 0.5, "", [], uncredited=list(flat))
    assert said.word == "no evidence" and any("undefended" in reason for reason in said.reasons)


def test_the_threshold_comes_from_the_aux_sides_and_its_realised_rate_is_shown():
    scores = np.where(CANDIDATES.is_test, 5.0, 0.0) + np.random.default_rng(0).normal(size=240)
    found = finding(scores, None, CANDIDATES, ScoreSettings("loss"))
    assert found.transfer.fpr > 0.9  # a shift between aux and test sides is laid bare, not tuned away
    assert found.transfer.threshold < 5


def test_the_worst_attack_stands_with_its_p_over_all_attacks_even_under_no_evidence(leaking):
    quiet = dataclasses.replace(leaking, evaluation=examined(0.0)[1])
    said = f"{p_text(quiet.evaluation.p_max)} over all attacks"
    assert quiet.evaluation.verdict.word == "no evidence"
    assert said in report_page.summary(quiet) and said in quiet.evaluation.verdict.reasons[0]
    assert "p <= 0.0001" in report_page.summary(leaking)


def test_what_epsilon_is_worth_is_one_sentence_in_figure_and_text(leaking):
    doubtful = dataclasses.replace(leaking.evaluation, epsilon_doubt="its coins were not fair")
    text = report_html(dataclasses.replace(leaking, evaluation=doubtful), [leaking], [])
    assert text.count("not a valid bound: its coins were not fair") == 2 and "refuted" not in text
    fair = report_html(leaking, [leaking], [])
    assert fair.count("below the lower bound is refuted") == 2 and "indicative" not in fair


def with_exposures(leak, repeats):
    """An evaluation whose candidates were repeated unequally."""
    candidates = dataclasses.replace(CANDIDATES, repeats=repeats)
    residual = [*BATTERY, next(attack for attack in ATTACKS if attack.name == MOST_EXPOSED)]
    scores = {"pictures alone": np.random.default_rng(1).normal(size=240)}
    answers = planted_answers(candidates, leak)
    given = dataclasses.replace(inputs(answers, scores, registry=residual), candidates=candidates)
    return answers, candidates, examine(given)


def test_members_that_were_shown_more_often_get_a_verdict_of_their_own():
    """20 pictures of each side 15 times as often; only those members leak, so the average hides them."""
    often = np.arange(240) % 3 == 0
    leak = np.where(often & CANDIDATES.is_member, 1.5, 0.0)
    answers, candidates, evaluation = with_exposures(leak, np.where(often, 30, 2).tolist())
    most = evaluation.most_shown
    inside = int((often & CANDIDATES.is_member).sum())
    mean = (30 * inside + 2 * (120 - inside)) / 120
    assert (most.pictures, most.others, most.times) == (inside, 120 - inside, 15) and most.word == "leak"
    assert most.finding.members == inside and most.finding.non_members == 80 - inside and most.finding.auc > 0.8
    assert most.share_of_mean == pytest.approx(30 / mean) and most.least_of_mean == pytest.approx(2 / mean)
    result = AuditResult("run", "LoRA", {}, 40.0, False, evaluation, candidates,
                         adaptation_utility(answers, candidates), {"profile": "lite"}, {}, {}, FILE)  # fmt: skip
    text = report_html(result, [result], [])
    assert (
        f"{inside} of 120 member pictures were shown 15 times as often as the least. Of these alone: leak (AUC" in text
    )
    assert f"40 on average, {40 * most.least_of_mean:g} at least, {40 * most.share_of_mean:g} at most" in text
    assert as_json(result)["most_shown"]["verdict"] == "leak"
    assert "times as often" not in shareable_page(shareable(result), [shareable(result)])  # it counts all members


def test_members_that_were_all_shown_alike_get_no_second_verdict():
    assert with_exposures(0.0, [5] * 240)[2].most_shown is None


def test_a_stratum_without_non_members_of_its_own_is_not_judged():
    repeats = np.where(CANDIDATES.is_member & (np.arange(240) % 3 == 0), 30, 2).tolist()
    evaluation = with_exposures(0.0, repeats)[2]
    assert evaluation.most_shown.finding is None and evaluation.most_shown.word == "not tested"
    assert "nothing can be said of them alone" in most_shown_sentence(evaluation.most_shown)


def test_an_exposed_picture_stands_with_counts_a_bound_and_its_side(leaking):
    risk = ExposedPicture("cat.png", "members-aux", 1.0, 1, 384, clopper_pearson(1, 384)[1], "data:,", "", repeats=30)
    text = report_html(leaking, [leaking], [risk])
    said = "aux side, shown 30 times an epoch; passed by 1 of 384 non-members: at most 1.4 % with 95 % confidence"
    assert said in text and "at 0 %" not in text


def test_rates_that_the_sample_cannot_resolve_are_left_out_and_say_what_they_need(leaking):
    by_rate = {rate.fpr: rate for rate in leaking.main.low_rates}
    assert by_rate[0.05].tpr is not None and by_rate[0.001].tpr is None and by_rate[0.001].needed == 1000


def test_a_rate_beyond_the_aux_sample_is_refused_before_the_sweep():
    with pytest.raises(InputError, match="target_fpr=0.001 needs 1000 non-members on the aux side, got 60"):
        require_resolvable(CANDIDATES, 0.001)


def test_a_base_that_was_scored_is_not_scored_again_and_nothing_given_is_changed():
    """The next LoRA on a base gets its scores handed in; the evaluation hands them out and writes into no argument."""
    answers, known, asked = planted_answers(CANDIDATES, 0.5), {}, []

    def counting(attack):
        def score(answers, aux):
            asked.append(attack.name)
            return attack.score(answers, aux)

        return dataclasses.replace(attack, score=score)

    blind = {"pictures alone": np.random.default_rng(1).normal(size=len(CANDIDATES.pixels))}
    given = inputs(answers, blind, registry=[counting(attack) for attack in BATTERY])
    first = examine(given, known)
    assert known == {} and len(first.of_base) == 1 and asked.count("loss") == 2  # LoRA on, LoRA off
    again = examine(given, first.of_base)
    assert asked.count("loss") == 3 and again.findings == first.findings


def test_drawings_join_the_findings_of_the_result_and_not_those_of_the_evaluation(leaking):
    drawn = Drawings(dataclasses.replace(leaking.main, name="drawings"), {}, {}, {})
    origin = provenance({}, {})
    before = dict(leaking.evaluation.findings)
    answers = planted_answers(CANDIDATES, 2.0)
    result = audit_result_of(("a", "LoRA"), origin, leaking.evaluation, CANDIDATES, answers, drawn, {}, FILE)
    assert "drawings" in result.evaluation.findings and leaking.evaluation.findings == before


@pytest.mark.slow
def test_the_same_audit_twice_gives_the_same_figures():
    assert examined(0.5)[1].findings == examined(0.5)[1].findings


def test_every_finding_carries_its_n_its_interval_and_its_control(leaking):
    content = json.loads(json.dumps(as_json(leaking)))
    for one in content["findings"]:
        assert one["members"] == one["non_members"] == 60 and len(one["auc_interval"]) == 2
        assert one["auc_off"] is not None and one["access"] and one["unet_passes_per_image"] > 0
    assert content["images"] == {side: 60 for side in sorted(set(CANDIDATES.sides))}


def test_the_report_is_one_private_file_without_foreign_addresses(leaking, tmp_path):
    risk = ExposedPicture("cat & dog.png", "members-test", 1.0, 1, 384, 0.0145, "data:image/png;base64,AA==", "")
    folder = tmp_path / "audit"
    text = write_report(leaking, [leaking], [risk], folder).read_text()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.iterdir())
    assert {file.name for file in folder.iterdir()} == {"report.html", "findings.json", "scores.csv"}
    assert "http" not in text.replace("http://www.w3.org", "").replace("http-equiv", "") and "<script" not in text
    assert "cat &amp; dog.png" in text and "run &lt;1&gt;" in text and "Leak: do not share this file" in text
    assert "cat" not in (folder / "findings.json").read_text() + (folder / "scores.csv").read_text()


def test_a_comparison_shows_every_run_and_the_curve_over_exposures(leaking):
    other = dataclasses.replace(leaking, label="early", exposures=10.0)
    text = report_html(leaking, [leaking, other], [])
    assert "Side by side" in text and "held-out gain against exposures" in text and "against what was learnt" in text
    assert text.index("held-out gain against exposures") < text.index("Side by side</h2>")  # it stands on top


def test_scores_csv_has_one_line_per_picture(leaking, tmp_path):
    write_report(leaking, [leaking], [], tmp_path / "audit")
    lines = (tmp_path / "audit" / "scores.csv").read_text().splitlines()
    assert len(lines) == 241 and lines[0].startswith("pixels,side,group,loss") and "fusion_off" in lines[0]


def test_the_stamp_holds_aggregates_only(leaking):
    facts = stamp_facts(leaking)
    assert all(name.startswith("ss_privacy_audit_") for name in facts)
    assert facts["ss_privacy_audit_verdict"] == "leak"
    assert not any("60" in text for text in facts.values())  # no count: it narrows the number of members
    area = r"[01]\.\d\d \[[01]\.\d\d, [01]\.\d\d\]"
    rates = [name for name in facts if "_auc" in name or "_tpr_" in name]
    assert len(rates) >= 3 and all(re.fullmatch(area, facts[name]) for name in rates)
    assert "ss_privacy_audit_tpr_at_0.05_fpr" in facts


@pytest.mark.parametrize(
    ("inclusion", "stated", "settings", "doubt"),
    [
        ("bernoulli", 0.5, {"split_file": "reused.json", "nonmember_share": 0.8}, ""),
        ("bernoulli", 0.8, {"split_file": "reused.json", "nonmember_share": 0.5}, "nonmember_share 0.8, not 0.5"),
        ("bernoulli", None, {"split_file": "old.json", "nonmember_share": 0.5}, "does not say with which share"),
        ("bernoulli", None, {"split_file": None, "nonmember_share": 0.5}, ""),
        ("bernoulli", None, {"split_file": None, "nonmember_share": 0.7}, "nonmember_share 0.7, not 0.5"),
        ("fixed", 0.5, {"split_file": None, "nonmember_share": 0.5}, "drawn with inclusion 'fixed'"),
    ],
)
def test_epsilon_is_valid_only_for_a_split_that_was_drawn_with_fair_coins(inclusion, stated, settings, doubt):
    said = CandidateSet([], CANDIDATES, inclusion, stated, "").doubt_of_coins(settings)
    assert (doubt in said) if doubt else said == ""
