"""When a run stops at the gap, which weights it keeps, and what it says; the course is a function of the checks."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from library.assembly.validation import Side, gap_between
from library.audit.statistics.gain import auc_without_luck
from library.audit.statistics.intervals import hanley_mcneil_error
from library.errors import InputError
from library.privacy.gap import (
    GapCheck,
    StopRules,
    course_of,
    kept_check,
    least_target,
    require_visible,
    verdict,
)

RULES = StopRules(target_auc=0.6, target_decay=0.25)


def checks(*pairs: tuple[int, float, float]) -> list[GapCheck]:
    """(steps, learnt, AUC) of each check."""
    return [
        GapCheck(done, learnt, learnt - 0.02, learnt + 0.02, 0.01, auc, auc - 0.05, auc + 0.05, 200, 190)
        for done, learnt, auc in pairs
    ]


def side(falls: list[float]) -> Side:
    count = len(falls)
    names = [f"picture {number}" for number in range(count)]
    return Side(names, names, torch.zeros(count), torch.ones(count), torch.tensor(falls))


def test_without_a_target_a_run_has_its_planned_length_and_rate() -> None:
    course = course_of(StopRules(None, 0.25), checks((0, 0.0, 0.5), (10, 0.2, 0.9)), 100)
    assert course.end == 100 and {course.rate_factor(step) for step in range(100)} == {1.0}


def test_the_rate_falls_from_the_first_check_at_the_target_to_the_end() -> None:
    course = course_of(RULES, checks((0, 0.0, 0.5), (20, 0.2, 0.52), (40, 0.3, 0.6), (44, 0.31, 0.58)), 1000)
    assert (course.decay_from, course.end) == (40, 50)
    factors = [course.rate_factor(step) for step in range(38, 50)]
    assert factors[:2] == [1.0, 1.0] and factors[2] == pytest.approx(10 / 11) and factors[-1] == pytest.approx(1 / 11)
    assert factors[2:] == sorted(factors[2:], reverse=True)


def test_the_decay_begins_at_the_last_check_from_which_it_ends_below_the_target() -> None:
    """From .56, .0015 a step, the AUC rises by .015 to the next check, at 50 steps, and by .0047 in 12.5 of decay."""
    seen = checks((10, 0.1, 0.5), (20, 0.2, 0.52), (30, 0.3, 0.54), (40, 0.35, 0.56))
    assert course_of(StopRules(0.5798, 0.25), seen, 1000).decay_from == 800
    assert course_of(StopRules(0.5796, 0.25), seen, 1000).decay_from == 40
    assert course_of(StopRules(0.5751, 0.0), seen, 1000).decay_from == 1000  # without a decay the next check counts


def test_a_run_of_the_demo_would_have_kept_decayed_weights() -> None:
    """Checks of a run whose decay began one check too late, at 350 steps, and ended above .55 for that."""
    first = dataclasses.replace(checks((50, 0.235, 0.51))[0], is_first=True)
    seen = [first, *checks((100, 0.354, 0.51), (150, 0.396, 0.518), (200, 0.422, 0.517), (250, 0.436, 0.527),
                           (300, 0.444, 0.543), (350, 0.455, 0.553))]  # fmt: skip
    rules = StopRules(0.55, 0.25)
    assert course_of(rules, seen[:5], 800).decay_from == 640
    assert course_of(rules, seen, 800).decay_from == 300
    jumped = [first, *checks((100, 0.355, 0.526))]  # of another run: one jump, which is mostly noise
    assert course_of(rules, jumped, 800).decay_from == 640


def test_a_run_that_meets_no_target_decays_within_the_planned_steps() -> None:
    course = course_of(RULES, checks((0, 0.0, 0.5), (50, 0.2, 0.52)), 100)
    assert (course.decay_from, course.end) == (80, 100)
    assert course_of(RULES, checks((90, 0.2, 0.7)), 100) == course  # too late to change anything


def test_a_run_that_learns_nothing_more_decays_too() -> None:
    risen = checks((10, 0.2, 0.52), (20, 0.3, 0.53), (30, 0.301, 0.53), (40, 0.2, 0.54), (50, 0.3, 0.54))
    assert course_of(RULES, risen, 1000).decay_from == 50
    assert course_of(RULES, risen[:4], 1000).decay_from == 800


def test_no_decay_at_all_ends_the_run_at_the_target() -> None:
    course = course_of(StopRules(0.6, 0.0), checks((40, 0.3, 0.61)), 1000)
    assert (course.decay_from, course.end) == (40, 40)


def test_the_most_learnt_at_or_below_the_target_is_kept_and_the_untouched_base_is_not() -> None:
    seen = checks((0, 0.9, 0.5), (10, 0.2, 0.55), (20, 0.3, 0.6), (30, 0.4, 0.61))
    kept = kept_check(RULES, seen)
    assert kept is not None and kept.done == 20
    assert kept_check(RULES, checks((0, 0.0, 0.5), (10, 0.2, 0.7), (20, -0.1, 0.5))) is None


def test_the_verdict_says_what_was_kept_or_that_nothing_was() -> None:
    told = verdict(RULES, checks((0, 0.0, 0.5), (40, 0.3, 0.6), (50, 0.35, 0.58)), 1000)
    assert "after 50 of 50 steps (the last)" in told and "learnt 35.0%" in told and "200 + 190" in told
    assert "(before the decay" in verdict(RULES, checks((40, 0.4, 0.6), (50, 0.35, 0.58)), 1000)
    nothing = verdict(RULES, checks((0, 0.0, 0.5), (10, 0.2, 0.7), (20, 0.3, 0.8)), 1000)
    assert "none of 2 validation passes" in nothing and "lowest AUC 0.700 after 10 steps" in nothing


def test_a_target_must_be_one_that_the_aux_sides_can_see() -> None:
    assert least_target(200, 200) == pytest.approx(0.5 + 1.645 / 2 * hanley_mcneil_error(0.5, 200, 200), abs=1e-4)
    require_visible(0.525, 200, 200)
    with pytest.raises(InputError, match=r"target_auc 0.55 .*20 members-aux and 20 .* the least is 0.576"):
        require_visible(0.55, 20, 20)


def test_the_first_trained_pass_begins_no_decay() -> None:
    """Its own AUC holds the luck of the split; the later ones are compared with it."""
    first = dataclasses.replace(checks((10, 0.2, 0.64))[0], is_first=True)
    assert course_of(RULES, [first], 1000).decay_from == 800
    seen = [first, *checks((20, 0.3, 0.55))]  # .0025 a step, the next check is 10 ahead: .55 + .0025 * 11.875
    assert course_of(StopRules(0.5798, 0.25), seen, 1000).decay_from == 800
    assert course_of(StopRules(0.5796, 0.25), seen, 1000).decay_from == 20


def test_luck_in_who_is_easy_to_learn_is_no_leak() -> None:
    """Members that are easier by chance: told apart by the falls, and not by what came since the first pass."""
    draws = np.random.default_rng(0)
    easy, noise = draws.normal(size=(2, 400)), draws.normal(size=(2, 400)) * 0.1
    easy[0] += 0.5
    before = {"members": torch.tensor(0.2 * easy[0]), "non_members": torch.tensor(0.2 * easy[1])}
    sides = [side((0.5 * easy[place] + noise[place]).tolist()) for place in (0, 1)]
    raw, fair = gap_between(50, *sides, {}, is_early=True), gap_between(50, *sides, before, is_early=False)
    assert raw.auc > 0.62 and fair.low < 0.5 < fair.high
    assert fair.high - fair.low < 0.5 * (raw.high - raw.low)  # what is left of chance
    planted = [side((sides[0].falls + 0.25).tolist()), sides[1]]  # half of the spread: Phi(.5 / sqrt 2) = .638
    assert gap_between(50, *planted, before, is_early=False).auc == pytest.approx(0.638, abs=0.03)


def test_the_interval_without_luck_covers_the_true_auc_in_groups() -> None:
    """40 + 40 persons of 4 pictures; how easy they are explains .88 of the spread, half of that between persons."""
    draws, hits, width = np.random.default_rng(1), 0, []
    groups = ([str(n // 4) for n in range(160)], [str(100 + n // 4) for n in range(160)])
    for _ in range(200):
        easy = np.repeat(draws.normal(size=(2, 40)), 4, axis=1) * 0.5**0.5 + draws.normal(size=(2, 160)) * 0.5**0.5
        rest = np.repeat(draws.normal(size=(2, 40)), 4, axis=1) * 0.25 + draws.normal(size=(2, 160)) * 0.25
        now = easy + rest
        now[0] += 0.3  # learnt by heart; the spread is sqrt(1.125), so the AUC is Phi(.3 / 1.5) = .579
        _, low, high = auc_without_luck((easy[0], easy[1]), (now[0], now[1]), groups)
        hits += low <= 0.579 <= high
        width.append(high - low)
    assert 0.92 <= hits / 200 <= 0.99 and np.mean(width) < 0.1  # of the falls themselves it is .2


def test_the_gap_compares_what_members_and_others_gained() -> None:
    gap = gap_between(7, side([0.3, 0.4, 0.5]), side([0.1, 0.2, 0.35]), {}, is_early=True)
    assert gap.is_first and not gap_between(0, side([0.0, 0.0]), side([0.0, 0.0]), {}, is_early=False).is_first
    assert gap.learnt_low < gap.learnt < gap.learnt_high
    assert gap.learnt == pytest.approx(1 - math.exp(-np.mean([0.1, 0.2, 0.35])))
    assert gap.learnt + gap.by_heart == pytest.approx(1 - math.exp(-0.4)) and gap.auc == pytest.approx(8 / 9)
    assert gap.low <= gap.auc <= gap.high and (gap.done, gap.members, gap.non_members) == (7, 3, 3)
