"""Pictures painted with one file, as the audit's door scores them: sets of few pictures and sides of many."""

import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler

from library.audit.reconstruction import one_lora
from library.audit.reconstruction.one_lora import CEILING, NOTHING, OTHERS, SHUFFLED, checked_one
from library.audit.reconstruction.pictures.attribution import CLASS
from library.audit.reconstruction.pictures.one_file import Painted, painted_rows
from library.audit.reconstruction.pictures.picture_rows import PictureSettings
from library.audit.reconstruction.pictures.samplers import Course
from library.audit.reconstruction.probes import Probes
from library.audit.reconstruction.retrieval import public_space
from library.audit.reconstruction.stacked_lora import Factors, StackedModel, attention_layers, fresh_factors
from library.audit.reconstruction.weight_attacks import PublicKnowledge
from library.seeding import stream
from tests.helpers.tiny import SCHEDULE, build_parts

SHAPE = (4, 8, 8)
PAINTED = (CLASS, "guided, w 3", "guided, w 5", "guided, w 10")


def numbers(*shape: int, name: str) -> torch.Tensor:
    return torch.randn(*shape, generator=stream(name))


@pytest.fixture(scope="module")
def model() -> StackedModel:
    unet = build_parts(514)[0].requires_grad_(False).eval()
    return StackedModel(unet, attention_layers(unet), DDIMScheduler(**SCHEDULE).alphas_cumprod.float(), "tiny")


def loras(model: StackedModel, count: int, name: str) -> Factors:
    start = fresh_factors(model.layers, 2, 1.0, [stream(name, one) for one in range(count)])
    return start.changed(lambda value: value + 0.3 * numbers(*value.shape, name=name))


def known(model: StackedModel, shadows: Factors | None = None) -> PublicKnowledge:
    public = numbers(30, *SHAPE, name="public")
    space = public_space(public)
    probes = Probes(public[:8], torch.full((8,), 500), numbers(5, 16, name="class"))
    return PublicKnowledge(space, probes, shadows, space.coefficients(public.flatten(1)))


def painted(
    model: StackedModel, target: Factors, pictures: one_lora.TestPictures, shadows: Factors | None = None
) -> Painted:
    course = Course(model.alphas_cumprod, 3, 980, 4.0)
    settings = PictureSettings(course, course, samples=2, together=1, seed=1)
    return painted_rows(model, target, known(model, shadows), pictures, settings, 0)


def sides(members: torch.Tensor, others: int) -> one_lora.TestPictures:
    """These members, and non-members of noise, each a group of its own."""
    latents = torch.cat([members, numbers(others, *SHAPE, name="non-members")])
    return one_lora.TestPictures(
        latents, [row < len(members) for row in range(len(latents))], [str(n) for n in range(len(latents))]
    )


def test_what_a_lora_paints_is_found_among_sets_and_stands_beside_its_controls(model) -> None:
    target, nobody = loras(model, 1, "target"), sides(numbers(2, *SHAPE, name="nobody"), 60)
    own = painted(model, target, nobody).outputs["guided, w 10"]
    found = painted(model, target, sides(own, 60), shadows=loras(model, 2, "shadows"))
    rows = {row.title.removeprefix("pictures: "): row for row in checked_one(found.rows)}
    assert tuple(rows) == PAINTED
    assert (rows["guided, w 10"].kind, rows["guided, w 10"].value) == ("rank", 1.0)
    assert {NOTHING, SHUFFLED, OTHERS, CEILING, CLASS} == set(rows["guided, w 10"].controls)
    assert CLASS not in rows[CLASS].controls
    assert set(found.outputs) == {"base, class prompt", *PAINTED}


def test_many_members_are_compared_with_non_members_by_their_nearest_output(model) -> None:
    found = painted(model, loras(model, 1, "target"), sides(numbers(20, *SHAPE, name="members"), 20))
    assert {row.kind for row in found.rows} == {"AUC"}
    assert all(row.low <= row.value <= row.high and row.members == row.others == 20 for row in found.rows)


def test_an_untrained_lora_paints_what_the_base_paints(model) -> None:
    target = loras(model, 1, "target")
    empty = dataclasses.replace(target, up={name: torch.zeros_like(value) for name, value in target.up.items()})
    found = painted(model, empty, sides(numbers(4, *SHAPE, name="members"), 40))
    assert all(row.value == row.controls[NOTHING] and not row.beats_its_controls() for row in found.rows)
    base = found.outputs["base, class prompt"]
    assert all(torch.allclose(made, base, atol=1e-4) for made in found.outputs.values())
