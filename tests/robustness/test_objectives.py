"""What an attack raises: values by hand, gradients against differences, the same noise for every model."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from library.audit.queries.error_statistics import noise_for
from library.audit.robustness.damage import Redrawing, moved, redrawing_noise
from library.audit.robustness.objectives import (
    FRESH,
    KNOWN,
    TIMESTEPS,
    CodeDistance,
    DenoisingLoss,
    LossOfPixels,
    LossOfText,
    encoder_of,
    noises_of,
)
from library.diffusion.conditioning import Conditioning, joined
from library.diffusion.vae import decoder_of
from library.seeding import stream
from tests.helpers import audit_toy, tiny

PICTURES = audit_toy.toy_pictures(2)


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """Random weights."""
    torch.manual_seed(4)
    return AutoencoderKL(**tiny.VAE).requires_grad_(False).eval()


def pixels() -> Tensor:
    """[2, 3, 16, 16] in 0..1."""
    return torch.rand(2, 3, 16, 16, generator=stream(12)) * 0.8 + 0.1


def toy_loss(draw: int = KNOWN) -> DenoisingLoss:
    """Of the toy model."""
    return DenoisingLoss(audit_toy.toy_model(), noises_of(PICTURES, draw, torch.device("cpu")))


def states() -> Conditioning:
    """Of the pictures' captions."""
    return audit_toy.toy_text_states([one.caption for one in PICTURES])


def test_of_a_model_that_predicts_nothing_the_loss_is_the_noise_itself() -> None:
    silent = replace(audit_toy.toy_model(), predict_noise=lambda latents, timesteps, states: torch.zeros_like(latents))
    loss = DenoisingLoss(silent, noises_of(PICTURES, KNOWN, torch.device("cpu")))
    by_hand = [
        sum(float(noise_for(one.identity, step, KNOWN, (4, 8, 8)).square().mean()) for step in TIMESTEPS) / 2
        for one in PICTURES
    ]
    assert loss.of(torch.zeros(2, 4, 8, 8), states()).tolist() == pytest.approx(by_hand, rel=1e-5)


def test_fresh_noise_is_other_noise_and_the_same_for_every_model() -> None:
    known, fresh = (noises_of(PICTURES, draw, torch.device("cpu")) for draw in (KNOWN, FRESH))
    for (_, one), (_, other) in zip(known, fresh, strict=True):
        assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.2
    again = noises_of(PICTURES[::-1], KNOWN, torch.device("cpu"))
    assert torch.equal(again[0][1].flip(0), known[0][1])


def test_gradients_of_pixels_and_text_agree_with_differences(vae: AutoencoderKL) -> None:
    of_pixels = LossOfPixels(encoder_of(vae), toy_loss(), states())
    of_text = LossOfText(toy_loss(), encoder_of(vae)(pixels()), states())
    of_code = CodeDistance(encoder_of(vae), encoder_of(vae)(pixels()))
    for target, point in ((of_pixels, pixels()), (of_text, states().states), (of_code, pixels() * 0.9)):
        values, gradient = target.ascent(point)
        assert torch.allclose(values, target.values(point), rtol=1e-5)
        direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, *[1] * (point.dim() - 1))
        step = 1e-2
        measured = (target.values(point + step * direction) - target.values(point - step * direction)) / (2 * step)
        assert torch.allclose(measured, gradient.flatten(1).norm(dim=1), rtol=0.05)


def test_the_distance_of_a_code_is_relative_to_the_code() -> None:
    codes = torch.full((2, 4, 8, 8), 2.0)
    distance = CodeDistance(lambda pixels: codes + pixels, codes)
    assert distance.values(torch.full((2, 4, 8, 8), 0.5)).tolist() == pytest.approx([0.25, 0.25])
    assert float(distance.values(torch.zeros(2, 4, 8, 8)).max()) < 1e-9


def test_a_drawing_of_the_same_picture_is_the_same_and_a_larger_change_moves_it_more(vae: AutoencoderKL) -> None:
    redraw = Redrawing(
        audit_toy.toy_model(), encoder_of(vae), decoder_of(vae), redrawing_noise(PICTURES, torch.device("cpu")),
        joined([states(), audit_toy.toy_text_states([""] * 2)]), 4,
    )  # fmt: skip
    drawn = redraw.of(pixels())
    assert moved(redraw.of(pixels()), drawn).tolist() == [0.0, 0.0]
    little, much = (moved(redraw.of((pixels() + size).clamp(0, 1)), drawn) for size in (0.01, 0.1))
    assert bool((little > 0).all()) and bool((much > little).all())


def test_what_moves_in_a_drawing_is_a_root_mean_square() -> None:
    assert moved(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.3)).tolist() == pytest.approx([0.3])
