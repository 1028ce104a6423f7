"""One tensor carries all that a caption tells a UNet: the second state of SDXL arrives where the UNet expects it."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel

from library.audit.reconstruction.prompt_states import packed, unpacked
from library.audit.reconstruction.stacked_lora import StackedModel, attention_layers
from library.diffusion.conditioning import Conditioning
from library.errors import InputError
from library.seeding import stream
from tests.helpers import tiny_sdxl
from tests.helpers.stacked_toy import random_factors

WIDTH, POOLED = tiny_sdxl.SHAPE["cross_attention_dim"], tiny_sdxl.SECOND["projection_dim"]


def sdxl() -> StackedModel:
    """The tiny SDXL's UNet; its VAE has two pixels for a latent."""
    torch.manual_seed(3)
    unet = UNet2DConditionModel(**tiny_sdxl.UNET).eval().requires_grad_(False)
    alphas = torch.linspace(0.999, 0.01, 1000)
    return StackedModel(unet, attention_layers(unet), alphas, "tiny sdxl", latent_factor=2)


def told(rows: int) -> Conditioning:
    """States of captions, without a framing."""
    chance = stream(1, "captions")
    return Conditioning(torch.randn(rows, 77, WIDTH, generator=chance), torch.randn(rows, POOLED, generator=chance))


def test_the_states_of_a_family_without_a_captions_state_are_the_tensor() -> None:
    states = torch.randn(2, 5, 16)
    assert packed(Conditioning(states)) is states
    back = unpacked(states, SimpleNamespace(addition_embed_type=None), (16, 16))
    assert back.states is states and back.pooled is None and back.framing is None


def test_what_sdxl_is_told_comes_back_bit_for_bit_with_an_uncropped_framing() -> None:
    given = told(3)
    context = packed(given)
    assert context.shape == (3, 78, WIDTH)
    back = unpacked(context, sdxl().unet.config, (24, 16))
    assert given.pooled is not None and back.pooled is not None and back.framing is not None
    assert torch.equal(back.states, given.states) and torch.equal(back.pooled, given.pooled)
    assert back.framing.tolist() == [[16, 24, 0, 0, 16, 24]] * 3


def test_a_stack_on_sdxl_answers_as_the_unet_with_each_lora_merged_into_its_weights() -> None:
    model, given = sdxl(), told(4)
    chance = stream(2, "latents")
    latents, times = torch.randn(4, 4, 8, 8, generator=chance), torch.tensor([10, 300, 600, 900])
    factors = random_factors(model, 2)
    with torch.no_grad():
        stacked = model.predict(factors, latents, times, packed(given))
        base = model.predict(None, latents, times, packed(given))
    added = {"text_embeds": given.pooled, "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]]).expand(4, -1)}
    own = {name: layer.weight.clone() for name, layer in model.layers.items()}
    for number, rows in ((None, slice(0, 4)), (0, slice(0, 2)), (1, slice(2, 4))):
        if number is not None:
            for name, layer in model.layers.items():
                change = factors.scale_of(name) * factors.up[name][number] @ factors.down[name][number]
                layer.weight.data = own[name] + change
        with torch.no_grad():
            some = {name: value[rows] for name, value in added.items()}
            merged = model.unet(latents[rows], times[rows], given.states[rows], added_cond_kwargs=some).sample
        torch.testing.assert_close((base if number is None else stacked)[rows], merged, rtol=1e-4, atol=1e-5)
    assert (stacked - base).abs().max() > 1e-3, "the LoRAs change something"


def test_the_captions_state_counts() -> None:
    """A tensor whose last row were dropped on the way would pass the tests of the tokens' states."""
    model, given = sdxl(), told(1)
    other = Conditioning(given.states, given.pooled + 1.0)  # type: ignore[operator]
    latents, times = torch.randn(1, 4, 8, 8, generator=stream(3, "latents")), torch.tensor([500])
    with torch.no_grad():
        answers = [model.predict(None, latents, times, packed(one)) for one in (given, other)]
    assert (answers[0] - answers[1]).abs().max() > 1e-5


def test_a_captions_state_wider_than_the_tokens_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match="16 numbers for a token and 20 for a caption"):
        packed(Conditioning(torch.zeros(1, 5, 16), torch.zeros(1, 20)))
