"""What is said of a ranking: ties, chance, intervals, and no row without its controls."""

import dataclasses

import numpy as np
import pytest
import torch

from library.audit.reconstruction.retrieval import (
    CEILING,
    CONTROLS,
    NOTHING,
    OTHERS,
    PERMUTED,
    MissingControls,
    RetrievalRow,
    checked_rows,
    cosine_scores,
    direction_scores,
    mean_figure,
    public_space,
    rank_p,
    ranks_of,
    retrieval,
    row_of,
)
from library.seeding import stream


def candidates(count: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 6, generator=stream(seed, "candidates"))


def row(**changes: object) -> RetrievalRow:
    sets = candidates()
    scores = direction_scores(sets, sets)
    noise = direction_scores(candidates(seed=1), sets)
    made = row_of(
        attack="x", title="an attack", knows=("weights",), target="private set", shadows=3, scores=scores,
        true=range(20), nothing=torch.zeros_like(scores), others=noise, ceiling=scores,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_ranks_worked_out_by_hand_count_ties_against_the_attacker() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.2, 0.1], [0.3, 0.8, 0.5]])
    assert ranks_of(scores, [0, 1, 2]).tolist() == [1, 2, 2]


def test_perfect_predictions_are_first_and_constant_ones_are_last() -> None:
    sets = candidates()
    perfect = retrieval(ranks_of(direction_scores(sets, sets), range(20)), 20)
    assert (perfect.top_1.value, perfect.auc.value, perfect.median_rank.value) == (1, 1, 1)
    assert 0.83 < perfect.top_1.low < 0.84, "exact interval: 20 of 20 still leave 17 %"
    constant = retrieval(ranks_of(torch.zeros(20, 20), range(20)), 20)
    assert (constant.top_1.value, constant.auc.value) == (0, 0)


def test_figures_of_known_ranks() -> None:
    found = retrieval(np.array([1, 1, 6, 11]), 11)
    assert (found.top_1.value, found.top_5.value, found.mean_rank.value, found.median_rank.value) == (
        0.5, 0.5, 4.75, 3.5,
    )  # fmt: skip
    assert found.auc.value == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert found.top_1.low == pytest.approx(0.0676, abs=1e-3)
    assert found.auc.low < 0.5 < found.auc.high
    with pytest.raises(ValueError, match="1 .. 11"):
        retrieval(np.array([12]), 11)


def test_random_predictions_are_at_chance() -> None:
    sets = candidates(200)
    found = retrieval(ranks_of(direction_scores(candidates(200, seed=5), sets), range(200)), 200)
    assert found.auc.low < 0.5 < found.auc.high and found.top_1.value <= 3 / 200


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ranks_of(torch.tensor([[torch.nan, 1.0]]), [0])


def test_a_row_without_one_of_its_controls_is_refused() -> None:
    assert checked_rows([row()])[0].controls.keys() == set(CONTROLS)
    for missing in CONTROLS:
        controls = {name: ranks for name, ranks in row().controls.items() if name != missing}
        with pytest.raises(MissingControls, match=missing):
            checked_rows([row(), row(controls=controls)])


def test_only_what_the_controls_do_not_give_is_credited() -> None:
    good = row()
    name, gap = good.advantage()
    assert good.reads_the_weights() and name in (PERMUTED, NOTHING, OTHERS) and gap.low > 0.2
    same = row(controls={**good.controls, OTHERS: good.ranks})
    assert not same.reads_the_weights() and same.advantage()[1].value == 0
    assert good.controls[CEILING].tolist() == [1] * 20


def test_the_permuted_pairing_of_a_perfect_attack_never_finds_the_set() -> None:
    assert (row().controls[PERMUTED] > 1).all()


def test_the_public_space_keeps_what_public_pictures_differ_in() -> None:
    chance = stream(0, "pictures")
    plane = torch.randn(50, 2, generator=chance) @ torch.randn(2, 64, generator=chance)
    space = public_space(plane.reshape(50, 4, 4, 4), components=2)
    lost = plane - space.mean - space.coefficients(plane) @ space.basis.T
    assert lost.abs().max() < 1e-4
    torch.testing.assert_close(space.basis.T @ space.basis, torch.eye(2), rtol=0, atol=1e-5)
    centre = space.coefficients(plane).mean(0)
    scores = cosine_scores(space.coefficients(plane), space.coefficients(plane), centre)
    assert torch.allclose(scores.diagonal(), torch.ones(50), atol=1e-4)


def test_one_loras_p_value_is_its_rank_among_all_sets() -> None:
    assert rank_p(1, 50) == 0.02 and rank_p(50, 50) == 1


def test_a_mean_has_an_interval_over_victims() -> None:
    figure = mean_figure(np.array([0.0, 1.0, 2.0, 3.0]))
    assert figure.value == 1.5 and 0 <= figure.low < 1.5 < figure.high <= 3
