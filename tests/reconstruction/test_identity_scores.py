"""How alike outputs are to a person: the public space, the best output, ranks."""

import pytest
import torch

from library.audit.reconstruction.pictures.identity_scores import (
    best_output_cosines,
    fit_space,
    own_above_others,
)
from library.audit.reconstruction.retrieval import ranks_of
from library.seeding import stream


def public(persons: int = 60, nuisance: float = 5.0) -> tuple[torch.Tensor, list[str]]:
    """Four numbers of the person, and two much louder ones of the single picture."""
    chance = stream(1)
    person = torch.randn(persons, 1, 4, generator=chance).expand(-1, 4, -1)
    picture = nuisance * torch.randn(persons, 4, 2, generator=chance)
    small = 0.1 * torch.randn(persons, 4, 4, generator=chance)
    return torch.cat([person + small, picture], 2).flatten(0, 1), [f"p{n}" for n in range(persons) for _ in range(4)]


def test_the_best_output_counts_for_every_picture_by_hand() -> None:
    outputs = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])  # two outputs of one victim
    pictures = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    scores = best_output_cosines(outputs, pictures, torch.tensor([0, 0, 1]), 2)
    assert scores.tolist() == [[1.0, 0.0]]  # set 0: (1 + 1) / 2; set 1: the better of -1 and 0


def test_whitening_lets_the_person_be_seen_behind_louder_things() -> None:
    features, persons = public()
    owners = torch.arange(60).repeat_interleave(4)
    found = {}
    for whitened in (False, True):
        space = fit_space("toy", features, persons, components=6, whitened=whitened)
        shown = space.project(features).unflatten(0, (60, 4))
        others = shown[:, 1:].flatten(0, 1)
        scores = best_output_cosines(shown[:, :1], others, owners.unflatten(0, (60, 4))[:, 1:].flatten(), 60)
        found[whitened] = ranks_of(scores, range(60)).mean()
    assert found[True] < 5 < found[False]


def test_random_outputs_are_at_chance() -> None:
    outputs = torch.randn(200, 2, 8, generator=stream(4))
    pictures = torch.randn(200, 8, generator=stream(5))
    scores = best_output_cosines(outputs, pictures, torch.arange(200), 200)
    assert abs(float(ranks_of(scores, range(200)).mean()) - 100.5) < 13  # 3 standard errors
    assert abs(float(own_above_others(scores, range(200)).mean())) < 0.06


def test_ties_count_against_the_attacker() -> None:
    assert ranks_of(torch.zeros(2, 5), [0, 1]).tolist() == [5, 5]
    assert own_above_others(torch.zeros(2, 5), [0, 1]).tolist() == [0, 0]


def test_own_above_others_by_hand() -> None:
    assert own_above_others(torch.tensor([[0.9, 0.1, 0.3]]), [0]).tolist() == pytest.approx([0.7])


def test_what_cannot_be_scored_is_refused_with_a_number() -> None:
    pictures, owners = torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="1 of 2 victims have outputs that are not finite"):
        best_output_cosines(torch.stack([torch.full((1, 3), torch.nan), torch.ones(1, 3)]), pictures, owners, 2)
    with pytest.raises(ValueError, match="each of the 3 sets needs a picture"):
        best_output_cosines(torch.ones(1, 1, 3), pictures, owners, 3)
    features, persons = public(persons=3)
    with pytest.raises(ValueError, match="32 components need more public pictures"):
        fit_space("toy", features, persons, whitened=False)
    with pytest.raises(ValueError, match="12 public pictures, but 11 names"):
        fit_space("toy", features, persons[1:], components=2, whitened=False)
    with pytest.raises(ValueError, match="at least two public pictures each"):
        fit_space("toy", features, [str(n) for n in range(12)], components=2, whitened=True)
    with pytest.raises(ValueError, match="6 features a picture are needed, got 3"):
        fit_space("toy", features, persons, components=2, whitened=False).project(torch.ones(1, 3))
