"""The set-level test: by hand, against a slow twin, with a planted leak and without one."""

import math

import numpy as np
import pytest

from library.audit.statistics.set_test import median_distance, set_test, squared_mmd


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_squared_mmd_by_hand() -> None:
    """Points 0, 1 and 0, 2 on a line, width 2: k(d) is the mean of exp(-d^2 / 2) and exp(-2 d^2)."""

    def kernel(distance: float) -> float:
        return (math.exp(-(distance**2) / 2) + math.exp(-2 * distance**2)) / 2

    first, second = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    across = (1 + kernel(2) + 2 * kernel(1)) / 4
    assert squared_mmd(first, second, 2.0) == pytest.approx(kernel(1) + kernel(2) - 2 * across)


def test_the_median_distance_by_hand_and_of_equal_rows() -> None:
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == 2.0
    assert median_distance(np.zeros((3, 2))) == 1.0


def test_the_difference_is_that_of_four_squared_mmds() -> None:
    """The slow way: MMD to members minus MMD to the others, with the LoRA minus without; terms between pictures go."""
    draw = generator(1)
    real, on, off = draw.normal(size=(9, 3)), draw.normal(size=(6, 3)), draw.normal(size=(6, 3))
    is_member = np.arange(9) < 4
    found = set_test((on, off), real, is_member, [str(row) for row in range(9)], space="toy", generator=draw)
    width = median_distance(np.concatenate([real, on, off]))
    slow = [squared_mmd(drawn, real[side], width) for drawn in (on, off) for side in (is_member, ~is_member)]
    assert [found.to_members, found.to_non_members] == pytest.approx(slow[:2])
    assert [found.to_members_of_base, found.to_non_members_of_base] == pytest.approx(slow[2:])
    assert found.difference == pytest.approx(slow[0] - slow[1] - slow[2] + slow[3])
    assert (found.drawings, found.members, found.non_members, found.groups) == (6, 4, 5, 4)


def planted(share: float, seed: int, people: int = 40, each: int = 3) -> float:
    """p where a share of the LoRA's drawings shows members; persons differ, pictures of one are alike."""
    draw = generator(seed)
    persons = draw.normal(size=(people, 8))
    real = np.repeat(persons, each, 0) + 0.3 * draw.normal(size=(people * each, 8))
    groups = [f"person {row // each}" for row in range(len(real))]
    is_member = np.arange(len(real)) < len(real) // 2
    off, on = (draw.normal(size=(80, 8)) for _ in range(2))
    shown = int(80 * share)
    on[:shown] = persons[draw.integers(0, people // 2, shown)] + 0.3 * draw.normal(size=(shown, 8))
    return set_test((on, off), real, is_member, groups, space="toy", generator=draw).p


def test_drawings_that_show_members_are_found() -> None:
    assert max(planted(1.0, seed) for seed in range(5)) < 0.05


def test_without_a_leak_p_is_even() -> None:
    """40 seeds: as many below a half as above, and hardly any below 0.05."""
    found = np.array([planted(0.0, seed) for seed in range(40)])
    assert 10 <= (found < 0.5).sum() <= 30 and (found < 0.05).sum() <= 6


def test_a_side_of_one_picture_and_a_group_on_both_sides_are_refused() -> None:
    rows, drawn = np.zeros((3, 2)), (np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"needs two pictures a side, got 1 \+ 2"):
        set_test(drawn, rows, np.array([True, False, False]), list("abc"), space="toy", generator=generator())
    with pytest.raises(ValueError, match="1 groups hold members and non-members"):
        set_test(
            drawn,
            np.zeros((4, 2)),
            np.array([True, True, False, False]),
            list("abbc"),
            space="toy",
            generator=generator(),
        )
