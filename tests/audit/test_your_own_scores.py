"""Scores of any model in, findings out: the page's example, values by hand, and what is refused."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from library.audit.attacks.attack_result import finding
from library.audit.statistics.effective_sizes import EffectiveSizes
from library.audit.statistics.findings import ScoreSettings, examine_scores
from library.audit.statistics.intervals import clopper_pearson, least_detectable_auc
from library.audit.statistics.one_run_epsilon import one_run_bounds
from tests.helpers.audit_planted import planted_candidates

PAGE = Path(__file__).parents[2] / "docs" / "your_own_scores.md"
MEMBERS = np.arange(20) + 10.5  # 10.5 .. 29.5
NON_MEMBERS = np.arange(20.0)  # 0 .. 19


def test_the_example_of_the_page_runs_and_is_short(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, str(PAGE), "exec"), {})
    (printed,) = re.findall(r"prints\n\n```text\n(.*?)```", PAGE.read_text(), re.S)
    assert capsys.readouterr().out == printed


def test_the_figures_are_those_worked_out_by_hand():
    """Of 400 pairs, member i (10.5 + i) beats min(11 + i, 20) non-members: 11 + ... + 20 + 10 x 20 = 355."""
    found = examine_scores(MEMBERS, NON_MEMBERS, off=(NON_MEMBERS, NON_MEMBERS)).finding
    assert found.members == found.non_members == 20
    assert found.auc == found.auc_flipped == 355 / 400 and found.auc_off == 0.5
    rate = found.low_rates[0]
    assert rate.fpr == 0.05 and rate.needed == 20
    assert rate.tpr == 12 / 20  # threshold 18 (one of 20 non-members may be accused): 18.5 .. 29.5 are above
    exact, chance = clopper_pearson(12, 20), 2 / 21
    assert rate.chance == chance and rate.interval[0] < exact[0] < exact[1] < rate.interval[1]  # the threshold's error
    assert [one.tpr for one in found.low_rates[1:]] == [None, None] and found.low_rates[2].needed == 1000
    assert found.auc_interval[0] < found.auc < found.auc_interval[1] and found.p < 0.001
    assert found.transfer is None and found.auc_aux is None


def test_a_threshold_comes_from_the_aux_scores_alone():
    aux = MEMBERS, NON_MEMBERS
    found = examine_scores(MEMBERS - 2, NON_MEMBERS + 3, aux=aux).finding
    assert found.auc_aux == 355 / 400
    assert found.transfer is not None and found.transfer.threshold == 19.0  # the highest of 20: none is accused on aux
    assert found.transfer.fpr == 3 / 20 and found.transfer.tpr == 9 / 20  # 20, 21, 22; and 19.5 .. 27.5
    assert found.transfer.fpr_interval == clopper_pearson(3, 20)


def test_pictures_of_one_group_count_once():
    """Doubling every picture under one name adds no evidence: the interval stays as wide."""
    names = [[f"{side} {row}" for row in range(20)] for side in ("m", "n")]
    once = examine_scores(MEMBERS, NON_MEMBERS, names).finding
    doubled = [np.repeat(side, 2) for side in (MEMBERS, NON_MEMBERS)]
    kept = examine_scores(*doubled, [np.repeat(side, 2).tolist() for side in names]).finding
    alone = examine_scores(*doubled).finding
    assert kept.auc_interval == once.auc_interval and kept.p == once.p
    assert np.ptp(alone.auc_interval) < np.ptp(once.auc_interval)


def test_luck_alone_is_called_significant_as_often_as_stated():
    generator = np.random.default_rng(0)
    settings = ScoreSettings(rates=())
    values = [
        examine_scores(generator.normal(size=40), generator.normal(size=40), settings=settings).finding.p
        for _ in range(60)
    ]
    assert sum(p < 0.05 for p in values) <= 8


def test_the_least_leak_that_a_sample_shows_and_a_one_run_epsilon_stand_beside():
    said = examine_scores(MEMBERS, NON_MEMBERS, settings=ScoreSettings(one_run=True, delta=1e-6))
    assert said.least_detectable_auc == least_detectable_auc(EffectiveSizes.of_single_pictures(20, 20))
    names = [f"{side} {row}" for side in ("members", "non-members") for row in range(20)]
    twin = one_run_bounds(np.concatenate([MEMBERS, NON_MEMBERS]), np.arange(40) < 20, names, delta=1e-6)
    assert list(said.epsilon) == twin and said.epsilon[0].correct == 20 and said.epsilon[0].epsilon > 1
    assert examine_scores(MEMBERS, NON_MEMBERS).epsilon == []


def test_everything_goes_into_json_and_comes_back():
    said = examine_scores(
        MEMBERS, NON_MEMBERS, aux=(MEMBERS, NON_MEMBERS), settings=ScoreSettings("mine", one_run=True)
    )
    content = json.loads(json.dumps(said.as_dict()))
    assert content["name"] == "mine" and content["auc"] == 355 / 400 and content["transfer"]["target_fpr"] == 0.05
    assert content["low_rates"][0]["tpr"] == 0.6 and content["epsilon_lower_bounds"][0]["guesses"] == 20
    assert content["least_detectable_auc"] == said.least_detectable_auc


def test_lists_of_whole_numbers_do_as_well_as_arrays():
    assert examine_scores([3, 4, 5], [1, 2, 3]).finding.auc == pytest.approx(8.5 / 9)


def test_an_audit_takes_the_same_way():
    """The finding of an attack is what this function says of the test sides: no second path."""
    candidates = planted_candidates(30)
    scores = np.random.default_rng(0).normal(size=120) + candidates.is_member
    settings = ScoreSettings("loss", "t=100", target_fpr=0.1)
    sides = {side: candidates.indices(side) for side in set(candidates.sides)}
    test, aux = ((scores[sides[f"members-{end}"]], scores[sides[f"non-members-{end}"]]) for end in ("test", "aux"))
    groups = [[candidates.groups[row] for row in sides[f"{side}-test"]] for side in ("members", "non-members")]
    same = examine_scores(*test, groups, aux=aux, settings=settings).finding
    assert finding(scores, None, candidates, settings) == same
    assert finding(scores, None, candidates, settings, with_aux=False) == dataclasses.replace(
        same, auc_aux=None, transfer=None
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"members": []}, "scores of members must be one row of at least one number, got shape (0,)"),
        ({"members": [1.0]}, "2 scores of members are needed to test anything, got 1"),
        ({"non_members": [1.0, float("nan")]}, "1 of 2 scores of non-members are NaN"),
        ({"groups": (["a"] * 3, ["b"] * 20)}, "groups has 3 names of members, but there are 20 scores"),
        ({"groups": (["a"] * 20, ["a"] * 20)}, "1 groups hold members and non-members, e.g. 'a'"),
        ({"groups": ["a"] * 40}, "groups must be two lists of names, one for members and one for non-members"),
        ({"aux": (MEMBERS, NON_MEMBERS[:9])}, "target_fpr=0.05 needs 20 non-members in aux, got 9"),
        ({"aux": (MEMBERS, [])}, "scores of non-members must be one row of at least one number"),
        ({"off": (MEMBERS, NON_MEMBERS[:9])}, "off has 9 scores of non-members, but there are 20 with the adapter"),
        ({"settings": ScoreSettings(rates=(0.0,))}, "fpr must lie between 0 and 1, got 0.0"),
    ],
)
def test_what_cannot_be_examined_is_refused_with_the_number(change, told):
    given = {"members": MEMBERS, "non_members": NON_MEMBERS} | change
    with pytest.raises(ValueError, match=re.escape(told)):
        examine_scores(**given)
