"""Pictures of attacks and controls: painted from the same noise, kept privately, and put in one table."""

import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler

from library.audit.reconstruction.pictures import picture_rows
from library.audit.reconstruction.pictures.attribution import (
    BASE,
    CLASS,
    HELD_OUT,
    MEAN_CODE,
    OF_CODES,
    ON_BASE,
    OTHERS,
    PERMUTED,
    PRIVATE,
    TRIGGER,
)
from library.audit.reconstruction.pictures.identity_scores import fit_space
from library.audit.reconstruction.pictures.picture_rows import CODE, EDIT, PictureSettings, Sitters, Studio, paint_rows
from library.audit.reconstruction.pictures.picture_table import Sets, View, flat_latents, likenesses, rows_of, table
from library.audit.reconstruction.pictures.samplers import Course
from library.audit.reconstruction.retrieval import MissingControls
from library.audit.reconstruction.stacked_lora import StackedModel, attention_layers, fresh_factors
from library.errors import InputError
from library.seeding import stream
from tests.helpers.tiny import SCHEDULE, build_parts

VICTIMS, SHAPE = 3, (4, 8, 8)


def numbers(*shape: int, name: str) -> torch.Tensor:
    return torch.randn(*shape, generator=stream(name))


@pytest.fixture(scope="module")
def studio() -> Studio:
    unet = build_parts(514)[0].requires_grad_(False).eval()
    model = StackedModel(unet, attention_layers(unet), DDIMScheduler(**SCHEDULE).alphas_cumprod.float(), "tiny")
    course = Course(model.alphas_cumprod, 3, 980, 4.0)
    return Studio(model, PictureSettings(course, course.started_at(300, 2), samples=2, together=2, seed=1), SHAPE)


@pytest.fixture(scope="module")
def sitters(studio: Studio) -> Sitters:
    def loras(count: int, name: str):
        start = fresh_factors(studio.model.layers, 2, 1.0, [stream(name, one) for one in range(count)])
        return start.changed(lambda value: value + 0.2 * numbers(*value.shape, name=name))

    return Sitters(
        factors=loras(VICTIMS, "victims"),
        class_prompt=numbers(5, 16, name="class"),
        true_prompts=numbers(VICTIMS, 5, 16, name="true"),
        codes=numbers(VICTIMS, 4, 16, name="codes"),
        others=loras(2, "others"),
        other_codes=numbers(2, 4, 16, name="other codes"),
        guesses=numbers(VICTIMS, *SHAPE, name="guesses"),
    )


@pytest.fixture(scope="module")
def painted(studio: Studio, sitters: Sitters, tmp_path_factory) -> dict[str, torch.Tensor]:
    return paint_rows(studio, sitters, tmp_path_factory.mktemp("pictures"))


def test_every_attack_and_every_control_is_painted_for_every_victim(painted) -> None:
    assert {CODE, EDIT, BASE, CLASS, TRIGGER, ON_BASE, MEAN_CODE, PERMUTED, OTHERS} < set(painted)
    assert {one.shape for one in painted.values()} == {(VICTIMS, 2, *SHAPE)}


def test_the_base_paints_the_same_for_everybody_and_the_tuned_models_do_not(painted) -> None:
    assert torch.equal(painted[BASE][0], painted[BASE][1])
    assert not torch.allclose(painted[CLASS][0], painted[CLASS][1])


def test_a_victim_s_pictures_do_not_depend_on_who_is_painted_beside(studio, sitters, painted) -> None:
    alone = studio.paint(sitters.factors.rows([2]), sitters.codes[2:])
    assert torch.allclose(alone, painted[CODE][2:], atol=1e-4)


def test_permuted_weights_are_the_next_victim_s_code_on_this_victim_s_model(studio, sitters, painted) -> None:
    expected = studio.paint(sitters.factors.rows([0]), sitters.codes[1:2])
    assert torch.allclose(expected, painted[PERMUTED][:1], atol=1e-4)


def test_lora_of_other_persons_is_painted_with_their_own_code_and_begins_again(painted) -> None:
    assert torch.equal(painted[OTHERS][0], painted[OTHERS][2])


def test_untrained_loras_paint_what_the_base_paints(studio, sitters) -> None:
    nothing = sitters.factors.changed(torch.zeros_like)
    prompts = sitters.class_prompt.expand(VICTIMS, -1, -1)
    assert torch.allclose(studio.paint(nothing, prompts), studio.paint(None, prompts), atol=1e-5)
    guided = studio.paint(nothing, prompts, 10.0)
    assert torch.allclose(guided, studio.paint(None, prompts), atol=1e-4)


def test_what_was_painted_is_kept_privately_and_not_painted_again(studio, sitters, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "pictures"
    names = {CODE: picture_rows.painters(studio, sitters)[CODE]}
    first = paint_rows(studio, sitters, folder, names)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    again = paint_rows(studio, sitters, folder, {CODE: lambda: pytest.fail("painted again")})
    assert torch.equal(first[CODE], again[CODE])
    other = dataclasses.replace(sitters, codes=sitters.codes + 1)
    assert not torch.equal(paint_rows(studio, other, folder, {CODE: lambda: first[CODE] + 1})[CODE], first[CODE])


def test_pictures_of_nan_are_refused_by_row(studio, sitters, tmp_path) -> None:
    with pytest.raises(InputError, match="row 'encoder' holds NaN"):
        paint_rows(studio, sitters, tmp_path, {CODE: lambda: torch.full((1, 1, *SHAPE), torch.nan)})


def test_a_code_without_other_persons_loras_is_refused(studio, sitters) -> None:
    with pytest.raises(InputError, match="LoRAs of other persons"):
        picture_rows.painters(studio, dataclasses.replace(sitters, others=None))


def sides(painted, own=range(VICTIMS)) -> dict:
    """Sets that are what the encoder's row painted, nearly."""
    features = numbers(60, 4 * 8 * 8, name="public")
    view = View(fit_space("VAE", features, [str(n // 2) for n in range(60)], components=8, whitened=True), flat_latents)
    made = painted[CODE][:, 0]
    sets = Sets(torch.cat([made, made + 0.01]), torch.arange(VICTIMS).repeat(2))
    return {side: likenesses(painted, view, sets, own, 1) for side in (PRIVATE, HELD_OUT)}


def test_planted_pictures_are_found_by_the_row_that_made_them(painted) -> None:
    lines = table(sides(painted), "VAE")
    found = {(line["row"], line["side"]): line for line in lines}
    assert found[CODE, PRIVATE]["top_1"]["value"] == 1.0
    assert {row for row, _ in found} >= set(OF_CODES)
    assert found[CODE, HELD_OUT]["verdict"]["because"] and "memorised" in found[CODE, PRIVATE]


def test_a_table_without_a_control_raises(painted) -> None:
    found = {side: {n: one for n, one in rows.items() if n != MEAN_CODE} for side, rows in sides(painted).items()}
    with pytest.raises(MissingControls, match="'encoder' lacks mean code"):
        table(found, "VAE")


def test_a_guided_row_is_turned_against_others_sets_as_its_permuted_control(painted) -> None:
    rows = {row.title: row for row in rows_of(sides(painted)[PRIVATE], "VAE", PRIVATE)}
    assert rows["guided, w 5"].controls[PERMUTED].own == [1, 2, 0]
