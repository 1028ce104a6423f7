"""Loss and noise by closed forms, slow twins and edges; and what the proxy attacker sees of them: nothing."""

import dataclasses
import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from library.diffusion.loss import (
    LossRules,
    adaptation_loss,
    element_loss,
    huber_threshold,
    loss_weights,
    signal_to_noise,
)
from library.diffusion.noise import NoiseRules, draw_noise, offset, pyramid
from library.errors import Faults
from library.options.declarations import Config
from library.options.joint_checks import check_together
from library.rules import pick
from library.seeding import stream
from tests.helpers import tiny


def schedule(prediction_type: str = "epsilon") -> DDPMScheduler:
    """Stable Diffusion's noise schedule."""
    kept = {name: tiny.SCHEDULE[name] for name in ("beta_start", "beta_end", "beta_schedule", "clip_sample")}
    return DDPMScheduler(**kept, prediction_type=prediction_type)


def without_end_signal(scheduler: DDPMScheduler) -> DDPMScheduler:
    """The same with betas rescaled for zero terminal SNR (arXiv 2305.08891), as load_model does it."""
    return DDPMScheduler.from_config(scheduler.config, rescale_betas_zero_snr=True)


def loss_rules(**changed: object) -> LossRules:
    """Rules as the doors make them."""
    return pick(dataclasses.replace(Config(), **changed), LossRules)


def noise_rules(**changed: object) -> NoiseRules:
    """Rules as the doors make them."""
    return pick(dataclasses.replace(Config(), **changed), NoiseRules)


def weights_of(scheduler: DDPMScheduler, timesteps: Tensor, **changed: object) -> Tensor:
    """Weights by the options that differ from the defaults."""
    plain = {"min_snr_gamma": None, "debiased_estimation_loss": False, "scale_v_pred_loss_like_noise_pred": False,
             "v_pred_like_loss": None}  # fmt: skip
    return loss_weights(scheduler, timesteps, **{**plain, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_weights_equal_their_closed_forms(prediction_type: str) -> None:
    scheduler, timesteps = schedule(prediction_type), torch.tensor([0, 300, 950])
    signal = scheduler.alphas_cumprod[timesteps].double()
    snr, plus = signal / (1 - signal), 0 if prediction_type == "epsilon" else 1
    by_snr = weights_of(scheduler, timesteps, min_snr_gamma=5.0)
    assert torch.allclose(by_snr.double(), snr.clamp(max=5) / (snr + plus), rtol=1e-3)
    capped = snr.clamp(max=1000)
    debiased = weights_of(scheduler, timesteps, debiased_estimation_loss=True)
    assert torch.allclose(debiased.double(), capped.rsqrt() if plus == 0 else 1 / (capped + 1), rtol=1e-3)
    scaled = weights_of(scheduler, timesteps, scale_v_pred_loss_like_noise_pred=True)
    assert torch.allclose(scaled.double(), capped / (capped + 1), rtol=1e-3)
    like = weights_of(scheduler, timesteps, v_pred_like_loss=0.5)
    assert torch.allclose(like.double(), 1 + 0.5 * (capped + 1) / capped, rtol=1e-3)
    assert torch.equal(weights_of(scheduler, timesteps), torch.ones(3))


def test_two_weights_multiply() -> None:
    scheduler, timesteps = schedule(), torch.tensor([10, 700])
    both = weights_of(scheduler, timesteps, min_snr_gamma=5.0, debiased_estimation_loss=True)
    one = weights_of(scheduler, timesteps, min_snr_gamma=5.0)
    assert torch.allclose(both, one * weights_of(scheduler, timesteps, debiased_estimation_loss=True))


@pytest.mark.parametrize("course", ["constant", "exponential", "snr"])
def test_huber_thresholds_by_hand(course: str) -> None:
    """c = 0.1 on 1000 steps: exponential gives 0.1^0.5 in the middle; snr goes by sigma = sqrt((1 - a) / a)."""
    scheduler, timesteps = schedule(), torch.tensor([0, 500, 999])
    scale = 1.0 if course == "snr" else 2.0
    found = huber_threshold(timesteps, scheduler, loss_rules(huber_schedule=course, huber_c=0.1, huber_scale=scale))
    sigma = [math.sqrt((1 - a) / a) for a in scheduler.alphas_cumprod[timesteps].tolist()]
    by_hand = {
        "constant": [0.2, 0.2, 0.2],
        "exponential": [2.0, 2 * 0.1**0.5, 2 * 0.1**0.999],
        "snr": [0.9 / (1 + each) ** 2 + 0.1 for each in sigma],
    }
    assert found.tolist() == pytest.approx(by_hand[course], rel=1e-4)


def test_pseudo_huber_by_hand_and_in_its_limits() -> None:
    """c = 3, d = 4: sqrt(16 + 9) - 3 = 2, so smooth_l1 4 and huber 12; large c is d^2, small c is 2 |d|."""
    scheduler, timesteps = schedule(), torch.tensor([3])
    four = torch.full((1, 1, 1, 1), 4.0, dtype=torch.double)

    def loss(kind: str, c: float) -> float:
        rules = loss_rules(loss_type=kind, huber_schedule="constant", huber_c=c)
        return element_loss(four, timesteps, scheduler, rules).item()

    assert loss("smooth_l1", 3) == pytest.approx(4) and loss("huber", 3) == pytest.approx(12)
    assert loss("huber", 1e3) == pytest.approx(16, rel=1e-3) and loss("smooth_l1", 1e-6) == pytest.approx(8, rel=1e-3)
    assert loss("l1", 3) == 4 and loss("l2", 3) == 16


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "smooth_l1"])
def test_the_loss_equals_a_slow_twin_pixel_by_pixel_in_kohyas_order(kind: str) -> None:
    scheduler, timesteps = schedule(), torch.tensor([5, 400, 900])
    generator = stream(3)
    difference = torch.randn(3, 4, 2, 2, generator=generator)
    weights, mask = torch.tensor([1.0, 0.5, 2.0]), torch.rand(3, 1, 2, 2, generator=generator)
    rules = loss_rules(loss_type=kind, min_snr_gamma=5.0)
    total = 0.0
    for image in range(3):
        c = huber_threshold(timesteps[image : image + 1], scheduler, rules).item()
        signal = scheduler.alphas_cumprod[timesteps[image]].item()
        snr = signal / (1 - signal)
        elements = 0.0
        for channel in range(4):
            for row in range(2):
                for column in range(2):
                    d = difference[image, channel, row, column].item()
                    root = math.sqrt(d * d + c * c) - c
                    value = {"l2": d * d, "l1": abs(d), "huber": 2 * c * root, "smooth_l1": 2 * root}[kind]
                    elements += value * mask[image, 0, row, column].item()
        total += elements / 16 * weights[image].item() * min(snr, 5) / snr
    found = adaptation_loss(difference, timesteps, scheduler, rules, weights, mask)
    assert found.item() == pytest.approx(total / 3, rel=1e-4)


@pytest.mark.parametrize("changed", [{"min_snr_gamma": 5.0}, {"debiased_estimation_loss": True},
                                     {"scale_v_pred_loss_like_noise_pred": True}], ids=str)  # fmt: skip
def test_zero_terminal_snr_ends_at_exactly_zero_and_no_weight_is_lost_there(changed: dict) -> None:
    scheduler = without_end_signal(schedule("v_prediction"))
    assert signal_to_noise(scheduler, torch.tensor([999])).item() == 0
    assert signal_to_noise(scheduler, torch.tensor([0])) == pytest.approx(
        signal_to_noise(schedule(), torch.tensor([0])), rel=1e-3
    )
    last, rules = torch.tensor([999]), loss_rules(**changed)
    loss = adaptation_loss(torch.ones(1, 4, 2, 2), last, scheduler, rules, torch.ones(1), None)
    assert torch.isfinite(loss)


def test_a_weight_that_is_not_finite_raises() -> None:
    """A noise model at SNR 0 has no debiased weight."""
    scheduler = without_end_signal(schedule("v_prediction"))
    scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(ValueError, match="not finite"):
        weights_of(scheduler, torch.tensor([999]), debiased_estimation_loss=True)
    assert weights_of(scheduler, torch.tensor([999]), min_snr_gamma=5.0).item() == 1  # the limit


def test_plain_noise_is_drawn_as_ever_timesteps_first() -> None:
    latents, one, other = torch.zeros(2, 4, 8, 8), stream(1, "x"), stream(1, "x")
    draw = draw_noise(noise_rules(), latents, 1000, one)
    assert torch.equal(draw.timesteps, torch.randint(0, 1000, (2,), generator=other))
    assert torch.equal(draw.noise, torch.randn(latents.shape, generator=other)) and draw.perturbation is None


def test_zero_is_off_as_in_kohya() -> None:
    """GUI exports write 0 for what is not used."""
    zeros = noise_rules(noise_offset=0.0, multires_noise_iterations=0, ip_noise_gamma=0.0)
    latents = torch.zeros(2, 4, 8, 8)
    plain, off = (draw_noise(rules, latents, 1000, stream(1)) for rules in (noise_rules(), zeros))
    assert torch.equal(plain.noise, off.noise) and off.perturbation is None
    weights = weights_of(schedule(), torch.tensor([9]), min_snr_gamma=0.0, v_pred_like_loss=0.0)
    assert torch.equal(weights, torch.ones(1))


def test_timesteps_keep_to_their_range_with_the_end_excluded() -> None:
    rules = noise_rules(min_timestep=100, max_timestep=103)
    steps = draw_noise(rules, torch.zeros(500, 1, 1, 1), 1000, stream(2)).timesteps
    assert set(steps.tolist()) == {100, 101, 102}


def test_noise_offset_adds_one_constant_per_channel_of_the_size_asked_for() -> None:
    latents = torch.randn(4000, 4, 2, 2, generator=stream(0))
    added = offset(noise_rules(noise_offset=0.05), latents, stream(1))
    assert added.shape == (4000, 4, 1, 1) and added.std().item() == pytest.approx(0.05, rel=0.02)
    random = offset(noise_rules(noise_offset=0.05, noise_offset_random_strength=True), latents, stream(1))
    assert random.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.05)  # E[u^2] = 1/3 of a uniform size
    plain = draw_noise(noise_rules(), latents[:2], 1000, stream(5)).noise
    moved = draw_noise(noise_rules(noise_offset=0.05), latents[:2], 1000, stream(5)).noise - plain
    assert torch.allclose(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-6)


def test_adaptive_noise_scale_adds_the_absolute_mean_of_the_channel_and_stops_at_zero() -> None:
    """0.1 + 0.5 |-2| = 1.1 and max(0, 0.1 - 0.5 |-2|) = 0."""
    latents = torch.full((2000, 1, 2, 2), -2.0)
    added = offset(noise_rules(noise_offset=0.1, adaptive_noise_scale=0.5), latents, stream(1))
    unit = offset(noise_rules(noise_offset=1.0), latents, stream(1))
    assert torch.allclose(added, unit * 1.1)
    assert offset(noise_rules(noise_offset=0.1, adaptive_noise_scale=-0.5), latents, stream(1)).abs().max() == 0


def test_pyramid_noise_has_unit_deviation_and_slow_waves() -> None:
    plain = torch.randn(200, 4, 16, 16, generator=stream(3))
    found = pyramid(plain, 6, 0.9, stream(4))
    assert torch.allclose(found.std(dim=(1, 2, 3)), torch.ones(200), atol=1e-5)
    assert found.mean(dim=(2, 3)).var() > 5 * plain.mean(dim=(2, 3)).var()
    alone = torch.cat([plain[:1] * 2, plain[1:]])
    assert torch.equal(pyramid(alone, 1, 0.5, stream(4))[1:], pyramid(plain, 1, 0.5, stream(4))[1:])  # image by image


def test_pyramid_noise_equals_a_twin_that_adds_level_by_level() -> None:
    plain, generator, twin = torch.randn(1, 2, 9, 6, generator=stream(3)), stream(4), stream(4)
    total = plain.clone()
    for level in range(3):
        factor = (2 + 2 * torch.rand((), generator=twin).item()) ** level
        height, width = max(1, int(9 / factor)), max(1, int(6 / factor))
        coarse = torch.randn(1, 2, height, width, generator=twin)
        total += torch.nn.Upsample(size=(9, 6), mode="bilinear")(coarse) * 0.3**level
        if height == 1 or width == 1:
            break
    assert torch.allclose(pyramid(plain, 3, 0.3, generator), total / total.std(), atol=1e-6)


def test_input_perturbation_changes_the_input_and_not_the_target() -> None:
    latents = torch.zeros(3000, 1, 2, 2)
    draw = draw_noise(noise_rules(ip_noise_gamma=0.1), latents, 1000, stream(1))
    assert torch.equal(draw.noise, draw_noise(noise_rules(), latents, 1000, stream(1)).noise)
    assert draw.perturbation is not None and draw.perturbation.std().item() == pytest.approx(0.1, rel=0.02)
    rules = noise_rules(ip_noise_gamma=0.1, ip_noise_gamma_random_strength=True)
    random = draw_noise(rules, latents, 1000, stream(1)).perturbation
    assert random is not None and random.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


def test_huber_scale_without_effect_is_refused() -> None:
    faults = Faults()
    check_together("PLoRA", dataclasses.replace(Config(), loss_type="huber", huber_scale=2.0), {}, faults)
    assert any("huber_scale 2.0 has no effect with huber_schedule snr" in text for text in faults.messages)
