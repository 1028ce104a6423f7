"""Attacks on weights in a toy whose LoRAs carry a planted person: what they find, and what they must not find."""

import dataclasses

import pytest
import torch
from torch import Tensor

from library.audit.reconstruction.gallery import gallery_drops, open_gallery
from library.audit.reconstruction.kernel import fit_kernel, module_kernels
from library.audit.reconstruction.persons import check_disjoint, persons_of
from library.audit.reconstruction.probes import probe_answers, public_probes, zero_shot
from library.audit.reconstruction.retrieval import (
    CEILING,
    NOTHING,
    OTHERS,
    PERMUTED,
    checked_rows,
    cosine_scores,
    public_space,
    ranks_of,
    retrieval,
)
from library.audit.reconstruction.stacked_lora import Factors, StackedModel, joined
from library.audit.reconstruction.weight_attacks import (
    KERNEL,
    RAW,
    Asked,
    PublicKnowledge,
    asked,
    emptied,
    fitted_readers,
    reader_rows,
    repeated,
    shadow_free_readers,
)
from library.audit.reconstruction.weight_defences import WeightDefence, noised_up, regauged, truncated, utility
from library.errors import InputError
from library.seeding import stream
from tests.helpers.stacked_toy import random_factors, stacked_toy, toy_persons, toy_states

SHADOWS, VICTIMS, OTHER = 60, 20, 10


def planted(model: StackedModel, means: Tensor, keys: list[str]) -> Factors:
    """LoRAs whose change is a fixed linear map of their person's mean picture, plus noise, in a random gauge."""
    rank = 3
    down, up = {}, {}
    for name, layer in model.layers.items():
        d_out, d_in = layer.weight.shape
        chance = stream(0, "planted", name)
        left = torch.randn(d_out * rank, means.shape[1], generator=chance) / means.shape[1] ** 0.5
        up[name] = 0.2 * (means @ left.T).reshape(len(means), d_out, rank)
        down[name] = torch.randn(rank, d_in, generator=chance).expand(len(means), -1, -1) / d_in**0.5
    return regauged(Factors(down, up, 1.0), keys, seed=4)


@pytest.fixture(scope="module")
def scene():
    """Model, public knowledge and the LoRAs of disjoint persons."""
    model = stacked_toy()
    shadows, victims, others = toy_persons(SHADOWS), toy_persons(VICTIMS, first=100), toy_persons(OTHER, first=200)
    check_disjoint({"shadows": shadows, "victims": victims, "others": others})
    space = public_space(shadows.latents.flatten(0, 1), components=8)
    probes = public_probes(model, shadows.latents.flatten(0, 1), toy_states(["portrait"])[0], seed=0, count=6)
    loras = {
        name: planted(model, persons.means(), list(persons.names))
        for name, persons in (("shadows", shadows), ("victims", victims), ("others", others))
    }
    known = PublicKnowledge(space, probes, loras["shadows"], space.coefficients(shadows.means()))
    return model, known, loras, space.coefficients(victims.means())


def rows_of(scene, victims: Factors):
    model, known, loras, sets = scene
    shadows = asked(model, known.shadows, known)
    readers = [*fitted_readers(known, shadows.answers), *shadow_free_readers()]
    return reader_rows(
        readers, asked(model, victims, known), asked(model, loras["others"], known), {"private set": sets}, sets,
        range(VICTIMS), known,
    )  # fmt: skip


def test_the_kernel_is_the_inner_product_of_the_changes_also_of_other_ranks() -> None:
    model = stacked_toy()
    first, second = random_factors(model, 3, rank=4), random_factors(model, 2, rank=2, seed=1, scale=0.7)
    for name, kernel in module_kernels(first, second).items():
        changes = [one.scale * (one.up[name] @ one.down[name]).flatten(1).double() for one in (first, second)]
        torch.testing.assert_close(kernel, changes[0] @ changes[1].T, rtol=1e-5, atol=1e-5)


def test_the_kernel_finds_planted_persons_and_every_control_is_at_chance(scene) -> None:
    rows = {row.attack: row for row in checked_rows(rows_of(scene, scene[2]["victims"]))}
    kernel = rows[KERNEL]
    assert kernel.figures().top_1.value >= 0.9 and kernel.reads_the_weights()
    for name in (PERMUTED, NOTHING, OTHERS):
        control = retrieval(kernel.controls[name], VICTIMS)
        assert control.top_1.value <= 3 / VICTIMS and control.auc.low < 0.5, name
    assert rows[RAW].figures().top_1.value <= 3 / VICTIMS, "the gauge hides a person from whoever reads raw factors"


def test_the_same_weights_as_a_shadows_give_rank_1_and_permuted_weights_give_chance(scene) -> None:
    _, known, loras, _ = scene
    found = fit_kernel(known.shadows, known.means, 1e-6).predict(known.shadows)
    scores = cosine_scores(found, known.means, known.centre)
    assert (ranks_of(scores, range(SHADOWS)) == 1).all()
    order = torch.randperm(SHADOWS, generator=stream(1, "permuted"))
    permuted = fit_kernel(known.shadows, known.means, 1e-6).predict(known.shadows.rows(order))
    ranks = ranks_of(cosine_scores(permuted, known.means, known.centre), range(SHADOWS))
    assert (ranks == 1).sum() <= 3 and retrieval(ranks, SHADOWS).auc.low < 0.5


def test_a_regauged_lora_gives_every_invariant_attack_the_same_scores(scene) -> None:
    model, known, loras, sets = scene
    victims = loras["victims"]
    turned = regauged(victims, [f"again {i}" for i in range(VICTIMS)], seed=9)
    shadows = asked(model, known.shadows, known)
    own, other = asked(model, victims, known), asked(model, turned, known)
    for reader in [*fitted_readers(known, shadows.answers), *shadow_free_readers()]:
        first, second = (reader.direct(one.factors, one.answers) for one in (own, other))
        alike = torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max()))
        assert alike == (reader.attack != RAW), reader.attack
    gallery = open_gallery(model, toy_persons(4, first=100).latents, toy_states(["portrait"])[0], 0, images=1)
    torch.testing.assert_close(
        gallery_drops(model, turned.rows(range(4)), gallery),
        gallery_drops(model, victims.rows(range(4)), gallery), rtol=0, atol=1e-4,
    )  # fmt: skip


def test_loras_that_change_nothing_give_exact_zeros_and_chance(scene) -> None:
    model, known, loras, sets = scene
    empty = emptied(Asked(loras["victims"], torch.zeros(VICTIMS, 6, 8))).factors
    assert torch.equal(probe_answers(model, empty, known.probes, known.space), torch.zeros(VICTIMS, 6, 8))
    gallery = open_gallery(model, toy_persons(4, first=100).latents, toy_states(["portrait"])[0], 0, images=1)
    assert torch.equal(gallery_drops(model, empty.rows(range(4)), gallery), torch.zeros(4, 4))
    for row in rows_of(scene, empty):
        assert row.figures().top_1.value <= 3 / VICTIMS, row.title
        assert not row.reads_the_weights(), row.title


def test_no_attack_learns_from_anything_private(scene) -> None:
    """With other private pictures the ceiling alone changes, and each LoRA is read by itself."""
    model, known, loras, sets = scene
    shadows, victims = asked(model, known.shadows, known), asked(model, loras["victims"], known)
    readers = [*fitted_readers(known, shadows.answers), *shadow_free_readers()]
    others = asked(model, loras["others"], known)
    given = ({"private set": sets}, sets, {"private set": sets}, torch.randn(sets.shape, generator=stream(7)))
    first, second = (
        reader_rows(readers, victims, others, given[i], given[i + 1], range(VICTIMS), known) for i in (0, 2)
    )
    for one, other in zip(first, second, strict=True):
        assert one.ranks.tolist() == other.ranks.tolist(), one.title
        for name in (PERMUTED, NOTHING, OTHERS):
            assert one.controls[name].tolist() == other.controls[name].tolist()
        assert one.controls[CEILING].tolist() != other.controls[CEILING].tolist()
    for reader in readers:
        together = reader.direct(victims.factors, victims.answers)
        alone = reader.direct(victims.factors.rows([3]), victims.answers[[3]])
        torch.testing.assert_close(alone[0], together[3], rtol=1e-4, atol=1e-5)


def test_persons_on_two_sides_are_refused() -> None:
    with pytest.raises(InputError, match="share 2 persons and 8 pictures"):
        check_disjoint({"shadows": toy_persons(5), "victims": toy_persons(4, first=3)})
    other_names = dataclasses.replace(toy_persons(4, first=3), names=list("abcd"))
    with pytest.raises(InputError, match="share 0 persons and 8 pictures"):
        check_disjoint({"shadows": toy_persons(5), "victims": other_names})


def test_persons_with_too_few_pictures_are_left_out_and_a_folder_without_any_is_refused() -> None:
    latents = [torch.full((4, 2, 2), float(i)) for i in range(7)]
    groups = ["b", "a", "b", "b", "a", "c", "a"]
    found = persons_of(latents, groups, [f"h{i}" for i in range(7)], 3)
    assert list(found.names) == ["a", "b"] and found.pictures[0] == ["h1", "h4", "h6"]
    assert found.means()[0].tolist() == pytest.approx([11 / 3] * 16)
    with pytest.raises(InputError, match="the most is 3"):
        persons_of(latents, groups, [f"h{i}" for i in range(7)], 4)


def test_a_direction_planted_in_the_answers_is_what_zero_shot_reads() -> None:
    answers = torch.tensor([[[1.0, 0.0], [3.0, -2.0]]])
    assert zero_shot(answers).tolist() == [[-2.0, 1.0]]


def test_defences_on_a_file_do_what_they_say() -> None:
    model = stacked_toy()
    factors = random_factors(model, 2, rank=4)
    cut = truncated(factors, 1)
    name = next(iter(factors.down))
    change = factors.up[name] @ factors.down[name]
    values = torch.linalg.svdvals(change)
    lost = torch.linalg.matrix_norm(change - cut.up[name] @ cut.down[name])
    torch.testing.assert_close(lost, values[:, 1:].square().sum(1).sqrt(), rtol=1e-3, atol=1e-4)
    assert cut.down[name].shape[1] == 1
    noisy = noised_up(factors, 3.0, ["a", "b"], seed=0)
    ratio = (noisy.up[name] - factors.up[name]).std() / factors.up[name].std()
    assert 2.5 < ratio < 3.5 and torch.equal(noisy.down[name], factors.down[name])
    alone = noised_up(factors.rows([1]), 3.0, ["b"], seed=0)
    torch.testing.assert_close(alone.up[name][0], noisy.up[name][1])
    assert WeightDefence("noise", 3.0).title() == "noise on B, 3 x its deviation"


def test_a_lora_that_changes_nothing_has_no_utility() -> None:
    model, persons = stacked_toy(), toy_persons(2)
    empty = Factors(random_factors(model, 2).down, {n: 0 * v for n, v in random_factors(model, 2).up.items()}, 1.0)
    assert utility(model, empty, persons, toy_states(["a", "b"]), seed=0).abs().max() < 1e-6


def test_bad_input_is_refused_where_it_is_used(scene) -> None:
    model, known, loras, _ = scene
    some = list(known.shadows.down)[:-1]
    with pytest.raises(InputError, match="1 modules are on one side alone"):
        fit_kernel(known.shadows, known.means).predict(loras["victims"].only(some))
    nothing = Factors(known.shadows.down, {n: 0 * v for n, v in known.shadows.up.items()}, 1.0)
    with pytest.raises(InputError, match="change nothing"):
        fit_kernel(nothing, known.means)
    with pytest.raises(InputError, match="public pictures are needed"):
        public_probes(model, torch.zeros(3, 4, 8, 8), toy_states(["x"])[0], seed=0, count=6)
    with pytest.raises(InputError, match="give a public folder"):
        fitted_readers(dataclasses.replace(known, shadows=None), torch.zeros(1, 6, 8))


def test_strangers_are_used_again_where_there_are_fewer_of_them(scene) -> None:
    _, known, loras, _ = scene
    again = repeated(Asked(loras["others"], torch.arange(OTHER)[:, None, None].float()), 15)
    assert again.answers.flatten().tolist() == [*range(10), *range(5)] and again.factors.count == 15


def test_mixed_ranks_and_scales_enter_one_kernel(scene) -> None:
    """A shadow of rank 3 and the same one written at rank 6 with half the scale are the same LoRA."""
    _, known, loras, _ = scene
    one = loras["victims"].rows([0])
    wide = Factors(
        {n: torch.cat([v, v], dim=1) for n, v in one.down.items()},
        {n: torch.cat([v, v], dim=2) for n, v in one.up.items()}, 0.5,
    )  # fmt: skip
    fitted = fit_kernel(known.shadows, known.means)
    torch.testing.assert_close(fitted.predict(wide), fitted.predict(one), rtol=1e-4, atol=1e-5)
    assert joined([one, one]).count == 2
