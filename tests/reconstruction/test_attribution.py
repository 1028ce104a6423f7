"""The verdict on pictures: credit for what the controls do not give, and no row without its controls."""

import dataclasses

import pytest
import torch

from library.audit.reconstruction.pictures.attribution import (
    MEAN_CODE,
    OF_CODES,
    OF_PICTURES,
    ON_BASE,
    PERMUTED,
    PRIVATE,
    Likeness,
    PictureRow,
    attribution,
    memorised,
    random_outputs,
)
from library.audit.reconstruction.retrieval import MissingControls
from library.seeding import stream

VICTIMS = 40


def likeness(own: float, seed: int) -> Likeness:
    """Scores of noise, with ``own`` added where victim and set belong together."""
    noise = 0.1 * torch.randn(VICTIMS, VICTIMS, generator=stream(seed))
    return Likeness(noise + own * torch.eye(VICTIMS), range(VICTIMS), 2)


def row(found: float, *, reads_code: bool = True, **controls: float) -> PictureRow:
    """A row whose controls show nothing but what is named (underscores for what is no letter)."""
    names = OF_CODES if reads_code else OF_PICTURES
    given = {name: controls.get(name.replace(" ", "_"), 0.0) for name in names}
    made = {name: likeness(own, seed) for seed, (name, own) in enumerate(given.items(), start=1)}
    return PictureRow("toy", ("weights",), "space", PRIVATE, reads_code, likeness(found, 0), made)


def test_a_code_that_does_better_than_mean_and_permuted_is_credited() -> None:
    assert attribution(row(0.5)).credited


def test_a_code_is_not_credited_with_what_the_tuned_model_shows_under_any_code() -> None:
    found = attribution(row(0.5, mean_code=0.5, permuted_weights=0.5))
    assert not found.credited and "nothing was read" in found.because


def test_a_code_that_only_does_better_than_one_of_the_two_is_not_credited() -> None:
    assert not attribution(row(0.5, mean_code=0.5)).credited
    assert not attribution(row(0.5, permuted_weights=0.5)).credited


def test_a_code_that_shows_its_person_on_the_base_is_credited() -> None:
    found = attribution(row(0.5, mean_code=0.5, permuted_weights=0.5, code_on_the_base=0.3))
    assert found.credited and found.on_base is not None and found.on_base.low > 0


def test_a_code_of_nothing_is_at_chance() -> None:
    found = attribution(row(0.0))
    assert not found.credited
    assert all(one.low <= 0 for one in found.gains.values())


def test_guided_pictures_must_beat_the_class_prompt() -> None:
    assert attribution(row(0.5, reads_code=False)).credited
    controls = row(0.5, reads_code=False)
    held = dataclasses.replace(controls, controls={name: controls.found for name in controls.controls})
    assert not attribution(held).credited


@pytest.mark.parametrize("name", OF_CODES)
def test_a_row_without_one_of_its_controls_raises(name: str) -> None:
    whole = row(0.5)
    kept = {other: one for other, one in whole.controls.items() if other != name}
    with pytest.raises(MissingControls, match=name.replace("(", r"\(").replace(")", r"\)")):
        attribution(dataclasses.replace(whole, controls=kept))


def test_a_row_without_a_code_needs_no_controls_of_codes() -> None:
    assert {ON_BASE, MEAN_CODE} <= set(OF_CODES) - set(OF_PICTURES) and PERMUTED in OF_PICTURES
    attribution(row(0.5, reads_code=False))
    with pytest.raises(MissingControls):
        attribution(dataclasses.replace(row(0.5, reads_code=False), reads_code=True))


def test_a_few_victims_or_a_single_file_get_no_verdict() -> None:
    """A bootstrap over one victim has no width: everything would be credited."""
    whole = row(5.0)
    few = Likeness(whole.found.scores[:19], range(19), 2)
    controls = {name: Likeness(one.scores[:19], range(19), 2) for name, one in whole.controls.items()}
    found = attribution(dataclasses.replace(whole, found=few, controls=controls))
    assert not found.credited and "19 victims" in found.because


def test_controls_of_another_experiment_are_refused() -> None:
    whole = row(0.5)
    other = Likeness(torch.zeros(3, 3), range(3), 2)
    with pytest.raises(ValueError, match="mean code"):
        attribution(dataclasses.replace(whole, controls=dict(whole.controls) | {MEAN_CODE: other}))


def test_planted_likeness_is_found_and_turned_pairing_is_chance() -> None:
    found = likeness(2.0, 0)
    assert found.retrieval().top_1.value == 1.0
    assert found.turned().retrieval().top_1.value <= 0.1
    own, others = found.cosines()
    assert own.value == pytest.approx(2.0, abs=0.1) and others.value == pytest.approx(0.0, abs=0.1)


def test_memory_is_what_private_pictures_have_beyond_other_pictures_of_the_person() -> None:
    assert memorised(likeness(0.8, 0), likeness(0.5, 1)).low > 0.2
    even = memorised(likeness(0.5, 0), likeness(0.5, 1))
    assert even.low < 0 < even.high


def test_random_vectors_have_the_spread_of_the_pictures() -> None:
    pictures = torch.randn(500, 3, generator=stream(6)) * torch.tensor([1.0, 5.0, 0.1])
    made = random_outputs(400, 2, pictures, 1)
    assert made.shape == (400, 2, 3)
    assert torch.allclose(made.flatten(0, 1).std(0), pictures.std(0), rtol=0.1)
