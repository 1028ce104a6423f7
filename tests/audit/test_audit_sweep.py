"""The sweep: its statistics against slow twins, its independence of batches, its cache."""

import dataclasses

import numpy as np
import pytest
import torch

from library.audit.queries.answer_cache import AnswerCache, cache_key, pooled_map
from library.audit.queries.ask import Asker, clipped_caption, fill_cache
from library.audit.queries.audited_model import moved_along, noised
from library.audit.queries.error_statistics import (
    BANDS,
    COLUMNS,
    FIRST_BAND,
    SQUARE,
    band_energies,
    difference_statistics,
    noise_for,
    residual_statistics,
)
from library.audit.queries.query_plan import FULL, LITE
from library.tensor_files import write_tensors
from networks.per_sample_gradients import GradientReader
from tests.helpers.audit_toy import toy_model, toy_pictures

SMALL = dataclasses.replace(
    FULL,
    noise_timesteps=(100, 200),
    chain_nodes=(0, 10, 100, 110),
    pia_timesteps=(10, 200),
    crop_timesteps=(100,),
    clipped_shares=(0.5,),
    clipped_timesteps=(400,),
    gradient_timesteps=(300, 600),
)


def test_the_profiles_cost_what_the_report_says():
    assert sum(LITE.passes().values()) == 26
    assert sum(FULL.passes().values()) == 119


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (3, 4, 16, 12), (1, 4, 64, 64)])
def test_band_energies_add_up_to_the_mean_square(shape):
    residual = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(band_energies(residual).sum(1), residual.square().mean((1, 2, 3)), rtol=1e-5)


def test_a_constant_residual_lies_in_the_lowest_band_and_the_finest_in_the_highest():
    checkers = torch.ones(1, 4, 64, 64) * (1 - 2 * ((torch.arange(64)[:, None] + torch.arange(64)) % 2))
    assert band_energies(torch.ones(1, 4, 64, 64))[0].tolist() == pytest.approx([1] + [0] * (BANDS - 1), abs=1e-6)
    assert band_energies(checkers)[0].tolist() == pytest.approx([0] * (BANDS - 1) + [1], abs=1e-6)


def test_noise_depends_on_the_picture_timestep_and_draw_alone_and_comes_in_mirrored_pairs():
    shape = (4, 8, 8)
    assert torch.equal(noise_for("a", 100, 0, shape), -noise_for("a", 100, 1, shape))
    assert not torch.equal(noise_for("a", 100, 0, shape), noise_for("a", 100, 2, shape))
    assert not torch.equal(noise_for("a", 100, 0, shape), noise_for("b", 100, 0, shape))
    assert not torch.equal(noise_for("a", 100, 0, shape), noise_for("a", 200, 0, shape))


def test_residual_statistics_agree_with_their_slow_twin():
    prediction, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    found = dict(zip(COLUMNS, residual_statistics(prediction, noise)[0].tolist(), strict=False))
    residual = (prediction - noise).flatten().tolist()
    assert found["square"] == pytest.approx(sum(value**2 for value in residual) / 256, rel=1e-4)
    assert found["absolute"] == pytest.approx(sum(abs(value) for value in residual) / 256, rel=1e-4)
    assert found["fourth"] == pytest.approx(sum(value**4 for value in residual) / 256, rel=1e-4)
    assert found["with_noise"] == pytest.approx(float((prediction * noise).mean()), rel=1e-4)


def test_secmis_t_error_is_the_difference_of_consecutive_predictions():
    """psi(phi(z_t)) - z_t = sqrt(a_t) (s_{t+k} - s_t) (e1 - e2), s = sqrt((1 - a) / a), in double precision."""
    audited = toy_model()
    latents, states = (
        torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2)),
        audited.encode_text(["a"] * 3),
    )
    alpha_here, alpha_there = audited.alpha_bar(100), audited.alpha_bar(110)
    with torch.no_grad():
        first = audited.predict_noise(latents, torch.full((3,), 100), states)
        there = moved_along(latents.double(), first.double(), alpha_here, alpha_there)
        second = audited.predict_noise(there.float(), torch.full((3,), 110), states)
    back = moved_along(there, second.double(), alpha_there, alpha_here)
    spread_here, spread_there = ((1 - alpha) ** 0.5 / alpha**0.5 for alpha in (alpha_here, alpha_there))
    expected = alpha_here**0.5 * (spread_there - spread_here) * (first - second).double()
    assert torch.allclose(back - latents.double(), expected, rtol=1e-4, atol=1e-9)


def test_pia_is_the_one_jump_chain_with_a_clean_first_node():
    plan = dataclasses.replace(SMALL, chain_nodes=(0, 200), secmi_edge=(0, 200), pia_timesteps=(200,))
    records = Asker(toy_model(), plan, 8).passes(toy_pictures(3))
    assert torch.allclose(records["edges"][:, 0], records["pia"][:, 0], rtol=1e-4)


def test_every_record_agrees_with_a_naive_twin_that_asks_one_picture_at_a_time():
    audited, (picture,) = toy_model(), toy_pictures(1)
    records = Asker(audited, SMALL, 8).passes([picture])
    states, empty = audited.encode_text([picture.caption]), audited.encode_text([""])

    @torch.no_grad()
    def asked(latent, timestep, state):
        return audited.predict_noise(latent[None], torch.tensor([timestep]), state)[0]

    noise = noise_for(picture.identity, 200, 1, (4, 8, 8))
    at_200 = noised(picture.latent, noise, audited.alpha_bar(200))
    assert float(records["noise"][0, 1, 1, 0, SQUARE]) == pytest.approx(
        float((asked(at_200, 200, states) - noise).square().mean()), rel=1e-4
    )
    assert float(records["noise"][0, 1, 1, 1, SQUARE]) == pytest.approx(
        float((asked(at_200, 200, empty) - noise).square().mean()), rel=1e-4
    )
    first = asked(picture.latent, 0, states)
    jump = asked(noised(picture.latent, first, audited.alpha_bar(200)), 200, states)
    assert torch.allclose(records["pia"][0, 1], difference_statistics((first - jump)[None])[0], rtol=1e-4)
    clipped = asked(
        noised(picture.latent, noise_for(picture.identity, 400, 0, (4, 8, 8)), audited.alpha_bar(400)),
        400,
        audited.encode_text([clipped_caption(picture.caption, 0.5)]),
    )
    residual = clipped - noise_for(picture.identity, 400, 0, (4, 8, 8))
    assert float(records["clipped"][0, 0, 0, 0, SQUARE]) == pytest.approx(float(residual.square().mean()), rel=1e-4)
    assert records["noise"].shape == (1, 2, 2, 2, FIRST_BAND + BANDS + 3)


def test_records_of_the_clean_latent_the_unit_jump_the_chain_and_the_crop_agree_with_a_naive_twin():
    audited, (picture,) = toy_model(), toy_pictures(1)
    records, states = Asker(audited, SMALL, 8).passes([picture]), audited.encode_text([picture.caption])

    @torch.no_grad()
    def asked(latent, timestep):
        return audited.predict_noise(latent[None], torch.tensor([timestep]), states)[0]

    def near(found, difference):
        assert torch.allclose(found, difference_statistics(difference[None])[0], rtol=1e-3, atol=1e-6)

    for place, timestep in enumerate(SMALL.sima_timesteps):
        near(records["sima"][0, place], asked(picture.latent, timestep))
    first = asked(picture.latent, 0)
    unit = first / (first.abs().mean() * (torch.pi / 2) ** 0.5)
    near(records["pian"][0, 0], unit - asked(noised(picture.latent, unit, audited.alpha_bar(200)), 200))
    here, before, alpha = picture.latent, first, 1.0
    for place, node in enumerate(SMALL.chain_nodes[1:]):
        clean = (here - (1 - alpha) ** 0.5 * before) / alpha**0.5
        alpha = audited.alpha_bar(node)
        here = alpha**0.5 * clean + (1 - alpha) ** 0.5 * before
        after = asked(here, node)
        near(records["edges"][0, place], after - before)
        before = after
    noise = noise_for(picture.identity, 100, 0, (4, 8, 8))
    residual = asked(noised(picture.cropped, noise, audited.alpha_bar(100)), 100) - noise
    assert float(records["crop"][0, 0, SQUARE]) == pytest.approx(float(residual.square().mean()), rel=1e-4)


@pytest.mark.slow
def test_answers_do_not_depend_on_batch_size_or_order(tmp_path):
    pictures = toy_pictures(5)
    asker = Asker(toy_model(), SMALL, 8)
    stores = [AnswerCache(tmp_path / name) for name in ("one", "many", "turned")]
    fill_cache(stores[0], pictures, lambda batch: asker.passes(batch) | asker.gradients(batch), 1, lambda count: None)
    fill_cache(stores[1], pictures, lambda batch: asker.passes(batch) | asker.gradients(batch), 5, lambda count: None)
    both = AnswerCache(tmp_path / "two threads")
    fill_cache(both, pictures, lambda batch: asker.passes(batch) | asker.gradients(batch), 1, lambda count: None, 2)
    stores.append(both)
    turned = pictures[::-1]
    fill_cache(stores[2], turned, lambda batch: asker.passes(batch) | asker.gradients(batch), 2, lambda count: None)
    keys = [picture.key for picture in pictures]
    one, *others = [store.gather(keys) for store in stores]
    for other in others:
        for name, values in one.items():
            tolerance = 2e-2 if name.startswith("map") else 2e-4  # maps are kept in half precision
            np.testing.assert_allclose(values, other[name], rtol=tolerance, atol=1e-4, err_msg=name)


def test_the_adapter_off_is_the_base_bit_for_bit_and_a_fresh_one_changes_nothing():
    audited = toy_model()
    asker, pictures = Asker(audited, SMALL, 8), toy_pictures(2)
    answers = {}
    for state in ("on", "off", "fresh"):
        audited.switch(state)
        answers[state] = asker.passes(pictures)["noise"]
    assert torch.equal(answers["off"], Asker(toy_model(strength=0.0), SMALL, 8).passes(pictures)["noise"])
    assert torch.equal(answers["off"], answers["fresh"])
    assert not torch.allclose(answers["off"], answers["on"], rtol=1e-3)


def test_gradients_per_picture_equal_a_loop_of_single_backward_passes():
    audited, pictures = toy_model(), toy_pictures(3)
    latents = torch.stack([picture.latent for picture in pictures])
    states = audited.encode_text([picture.caption for picture in pictures])
    with GradientReader(audited.layers) as reader:
        losses = audited.predict_noise(latents, torch.full((3,), 300), states).square().mean((1, 2, 3))
        taken = reader.taken(losses.sum(), 3)
        modules = reader.modules
    for row in range(3):
        for module in modules:
            module.weight.grad = None
        audited.predict_noise(latents[row : row + 1], torch.tensor([300]), states.row(row)).square().mean().backward()
        for batched, module in zip(taken, modules, strict=False):
            assert torch.allclose(batched[row], module.weight.grad, rtol=1e-3, atol=1e-6)


def test_a_fresh_adapter_has_gradients_in_its_up_factors_only():
    audited = toy_model()
    audited.switch("fresh")
    norms = Asker(audited, SMALL, 8).gradients(toy_pictures(2))["gradient_norms"]
    assert torch.equal(norms[..., 0::2], torch.zeros_like(norms[..., 0::2]))
    assert (norms[..., 1::2] > 0).any()


def test_a_killed_sweep_goes_on_where_it_stopped_and_ends_the_same(tmp_path):
    pictures, asker, asked = toy_pictures(6), Asker(toy_model(), SMALL, 8), []

    def dying(batch):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(batch)
        return asker.passes(batch)

    with pytest.raises(KeyboardInterrupt):
        fill_cache(AnswerCache(tmp_path / "killed"), pictures, dying, 2, lambda count: None)
    resumed = AnswerCache(tmp_path / "killed")
    assert resumed.missing([picture.key for picture in pictures]) == [4, 5]
    fill_cache(resumed, pictures, asker.passes, 2, lambda count: None)
    whole = AnswerCache(tmp_path / "whole")
    fill_cache(whole, pictures, asker.passes, 2, lambda count: None)
    keys = [picture.key for picture in pictures]
    for name, values in whole.gather(keys).items():
        np.testing.assert_array_equal(values, AnswerCache(tmp_path / "killed").gather(keys)[name])


def test_the_cache_is_private_and_names_no_caption(tmp_path):
    pictures = toy_pictures(2)
    store = AnswerCache(tmp_path / "store")
    fill_cache(store, pictures, Asker(toy_model(), SMALL, 8).passes, 2, lambda count: None)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    (shard,) = (tmp_path / "store").iterdir()
    assert shard.stat().st_mode & 0o777 == 0o600
    assert b"three four" not in shard.read_bytes()


def test_a_damaged_shard_is_asked_again(tmp_path):
    pictures, asker = toy_pictures(2), Asker(toy_model(), SMALL, 8)
    fill_cache(AnswerCache(tmp_path / "store"), pictures, asker.passes, 1, lambda count: None)
    next((tmp_path / "store").iterdir()).write_bytes(b"half a file")
    assert len(AnswerCache(tmp_path / "store").missing([picture.key for picture in pictures])) == 1


def test_a_flipped_bit_in_an_answer_is_found_told_and_asked_again(tmp_path, caplog):
    store = AnswerCache(tmp_path / "store")
    for number in range(2):
        store.add([f"p{number}"], {"loss": torch.full((1, 4), 0.5)})
    shard, _ = store.row_of["p1"]
    content = bytearray(shard.read_bytes())
    content[-2] ^= 1  # of the last number: 0.5 becomes 0.50390625
    shard.write_bytes(content)
    assert AnswerCache(tmp_path / "store").missing(["p0", "p1"]) == [1]
    assert f"the answers in '{shard}' are damaged and are asked again" in caplog.text


def test_answers_of_a_version_without_checksums_are_read(tmp_path):
    write_tensors(tmp_path / "old.safetensors", {"loss": torch.ones(1, 4)}, {"pictures": "p0"})
    assert AnswerCache(tmp_path).gather(["p0"])["loss"].tolist() == [[1.0] * 4]


def test_a_model_that_answers_nan_is_refused(tmp_path):
    audited = toy_model()
    audited.layers[0].up.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        fill_cache(AnswerCache(tmp_path), toy_pictures(1), Asker(audited, SMALL, 8).passes, 1, lambda count: None)


def test_every_part_of_the_key_names_another_store():
    assert len({cache_key("a", "b"), cache_key("ab", ""), cache_key("a", "c"), cache_key("b", "a")}) == 4


def test_maps_of_one_size_are_kept_and_others_are_pooled():
    maps = torch.rand(1, 4, 8, 8)
    assert torch.equal(pooled_map(maps, 8), maps.half())
    assert pooled_map(torch.rand(1, 4, 12, 6), 8).shape == (1, 4, 8, 8)
