"""Previews: prompt files in kohya's three formats, samplers that follow the model's target, pictures that are whole."""

import dataclasses
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler

from library.diffusion.memory import saved_activations
from library.diffusion.model_files import load_model
from library.diffusion.previews import SAMPLERS, PreviewRules, paint, prompts_for, sampler_of, text_states
from library.diffusion.prompt_files import Prompt, read_prompts
from library.diffusion.vae import decoded, posterior_encoder
from library.errors import InputError
from library.options.declarations import Config
from library.rules import pick
from tests.helpers import tiny

NAMES = list(SAMPLERS)
ZERO_SNR = [
    name
    for name in SAMPLERS
    if name in ("ddim", "euler", "k_euler", "euler_a", "k_euler_a", "dpmsolver", "dpmsolver++")
]


def written(place: Path, content: object) -> str:
    """A prompts file."""
    place.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(place)


def read(file: str) -> list[Prompt]:
    """With a training size of 16 pixels, seed 9, and sides of 4."""
    return read_prompts(file, (16, 16), 9, 4, NAMES)


def test_lines_read_kohyas_letters(tmp_path: Path) -> None:
    lines = "# comment\n\na cat --n dog --w 32 --h 16 --d 5 --l 2.5 --s 7 --ss euler_a\na red-hot -- thing\n"
    first, second = read(written(tmp_path / "p.txt", lines))
    assert first == Prompt("a cat", "dog", 32, 16, 5, 2.5, 7, "euler_a")
    assert second == Prompt("a red-hot -- thing", "", 16, 16, 9, 7.5, 30, "ddim")


def test_toml_subsets_share_the_table_and_beat_it(tmp_path: Path) -> None:
    text = """
    [prompt]
    width = 32
    negative_prompt = "dog"
    scale = 4
    [[prompt.subset]]
    prompt = "one"
    seed = 3
    [[prompt.subset]]
    prompt = "two"
    width = 8
    sample_steps = 5
    sample_sampler = "heun"
    """
    assert read(written(tmp_path / "p.toml", text)) == [
        Prompt("one", "dog", 32, 16, 3, 4, 30, "ddim"), Prompt("two", "dog", 8, 16, 9, 4, 5, "heun"),
    ]  # fmt: skip
    assert read(written(tmp_path / "q.toml", '[prompt]\nprompt = "alone"'))[0].text == "alone"


def test_json_holds_objects_or_lines(tmp_path: Path) -> None:
    entries = [{"prompt": "one", "scale": 1.5, "seed": 2}, "two --s 3 --n dog"]
    assert read(written(tmp_path / "p.json", entries)) == [
        Prompt("one", "", 16, 16, 2, 1.5, 30, "ddim"), Prompt("two", "dog", 16, 16, 9, 7.5, 3, "ddim"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "faults"),
    [
        ("p.txt", "a --w 3\nb --zz 3\nc --s many\nd --w\ne --ss eulr\nf --g 3\ng --cn x.png\nh --d -1\ni --s 0\n", 9),
        ("p.txt", "# nothing\n", 1),
        ("p.json", [{"prompt": "a", "widht": 8, "seed": 1.5}, 3, {"seed": True}], 5),
        ("p.json", "{", 2),
        ("p.toml", "[prompts]\nprompt = 'a'", 2),
        ("p.toml", "prompt = [", 2),
        ("p.yaml", "a", 2),
    ],
)
def test_every_fault_of_a_prompts_file_is_reported_at_once(tmp_path: Path, name: str, content, faults: int) -> None:
    with pytest.raises(InputError) as caught:
        read(written(tmp_path / name, content))
    assert len(str(caught.value).splitlines()) == faults, str(caught.value)


def test_what_the_previews_cannot_do_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(written(tmp_path / "p.json", [{"prompt": "a", "guidance_scale": 3.5, "controlnet_image": "x.png"}]))
    assert "belongs to FLUX" in str(caught.value) and "without a ControlNet" in str(caught.value)


def preview_rules(**changed: object) -> PreviewRules:
    """kohya's defaults, but for what is given."""
    return pick(dataclasses.replace(Config(), **changed), PreviewRules)


def schedule(prediction_type: str, zero_snr: bool = False) -> DDPMScheduler:
    """SD 1.x's own."""
    more = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {}
    return DDPMScheduler.from_config(
        {**tiny.SCHEDULE, "num_train_timesteps": 1000}, prediction_type=prediction_type, **more
    )


def sampled(
    sampler, scheduler: DDPMScheduler, clean: torch.Tensor, *, steps: int = 20, stop: int | None = None
) -> torch.Tensor:
    """Where a sampler is after ``stop`` calls of a model that knows the one picture and answers in its own target."""
    sampler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(clean.shape, generator=generator) * sampler.init_noise_sigma
    signal = scheduler.alphas_cumprod.double()
    for timestep in sampler.timesteps[:stop]:
        asked = sampler.scale_model_input(latents, timestep).double()
        low, part = int(timestep), float(timestep) - int(timestep)  # some ask between two timesteps of the schedule
        alpha = signal[low] * (1 - part) + signal[min(low + 1, 999)] * part
        noise = (asked - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        answer = noise if scheduler.config.prediction_type == "epsilon" else velocity
        latents = sampler.step(answer.float(), timestep, latents, **drawn_from(sampler, generator)).prev_sample
    return latents


def drawn_from(sampler, generator: torch.Generator) -> dict[str, torch.Generator]:
    """The generator, where a sampler takes one."""
    return {"generator": generator} if "generator" in inspect.signature(sampler.step).parameters else {}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_samplers_read_the_models_target(name: str) -> None:
    """A model of noise and one of velocity that know the same picture lead along the same way, and to the picture."""
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    models = [schedule("epsilon"), schedule("v_prediction")]
    noise, velocity = (sampled(sampler_of(name, model), model, clean, stop=6) for model in models)
    mistaken = sampled(sampler_of(name, models[0]), models[1], clean, stop=6)
    scale = noise.abs().mean()
    assert (noise - velocity).abs().mean() < 0.01 * scale < 0.05 * scale < (noise - mistaken).abs().mean()
    assert all((sampled(sampler_of(name, model), model, clean) - clean).abs().mean() < 0.05 for model in models)


@pytest.mark.parametrize("name", NAMES)
def test_samplers_start_from_zero_snr_or_are_refused(name: str) -> None:
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    scheduler = schedule("v_prediction", zero_snr=True)
    if name in ZERO_SNR:
        sampler = sampler_of(name, scheduler)
        found = sampled(sampler, scheduler, clean)
        assert sampler.timesteps[0] == 999 and (found - clean).abs().mean() < 0.05
    else:
        with pytest.raises(InputError, match="cannot start from zero SNR.*use one of ddim, euler"):
            sampler_of(name, scheduler)
    with pytest.raises(InputError, match="predicts noise: the first step divides by zero"):
        sampler_of(name, schedule("epsilon", zero_snr=True))


def test_a_prompts_own_sampler_is_checked_against_the_schedule_before_training(tmp_path: Path, model_folder) -> None:
    model = load_model(str(model_folder))
    model.scheduler = schedule("v_prediction", zero_snr=True)
    file = written(tmp_path / "p.txt", "a\nb --ss lms\nc --ss heun\n")
    rules = preview_rules(sample_prompts=file)
    with pytest.raises(InputError) as caught:
        prompts_for(rules, (16, 16), 1, model)
    assert len(str(caught.value).splitlines()) == 2
    assert prompts_for(dataclasses.replace(rules, sample_prompts=None), (16, 16), 1, model) == []


@pytest.mark.parametrize("sampler", NAMES)
def test_every_sampler_paints(model_folder: Path, tmp_path: Path, sampler: str) -> None:
    model = load_model(str(model_folder))
    prompts = read(written(tmp_path / "p.txt", f"a cat --s 4 --ss {sampler}\n"))
    one, again = (paint(model, prompts, preview_rules())[0] for _ in range(2))
    assert one.size == (16, 16) and one.tobytes() == again.tobytes()


def test_clip_skip_and_the_target_change_what_is_painted(model_folder: Path, tmp_path: Path) -> None:
    """Clip skip changes the text states; a model of velocity is painted as one."""
    model = load_model(str(model_folder))
    prompts = read(written(tmp_path / "p.txt", "a cat --s 4\n"))
    plain = paint(model, prompts, preview_rules())[0].tobytes()
    assert paint(model, prompts, preview_rules(clip_skip=2))[0].tobytes() != plain
    model.scheduler = schedule("v_prediction")
    assert paint(model, prompts, preview_rules())[0].tobytes() != plain


def test_prompts_are_weighted_where_the_training_weighs_captions(model_folder: Path) -> None:
    """Without weighted_captions brackets are letters; with them they change no letter but the states."""
    model = load_model(str(model_folder))
    plain, marked = (text_states(model, [text], preview_rules()).states for text in ("a cat", "a (cat:1.5)"))
    assert torch.equal(plain, text_states(model, ["a cat"], preview_rules(weighted_captions=True)).states)
    weighted = text_states(model, ["a (cat:1.5)"], preview_rules(weighted_captions=True)).states
    changed = ((weighted - plain).abs().amax(2) > 0).nonzero()[:, 1].tolist()  # tokens: start, a, c, a, t
    assert changed == [2, 3, 4] and torch.allclose(weighted[0, 2:5], 1.5 * plain[0, 2:5])
    assert not torch.equal(marked, plain)


class Overflowing(torch.nn.Module):
    """A VAE that leaves the range of bf16 for bright pictures, and any range for the brightest."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16), requires_grad=False)
        self.config = SimpleNamespace(scaling_factor=1.0)

    dtype = property(lambda self: self.weight.dtype)
    device = property(lambda self: self.weight.device)

    def answer(self, values: torch.Tensor) -> torch.Tensor:
        limit = 10.0 if self.dtype == torch.float32 else 1.0
        return torch.where(values > limit, torch.full_like(values, torch.nan), values)

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        mean = self.answer(pixels)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=mean.abs()))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.answer(latents))


def test_pictures_that_overflow_half_precision_are_encoded_again_in_fp32_and_said_so(caplog) -> None:
    vae, pixels = Overflowing(), torch.tensor([0.5, 2.0, 20.0])[:, None, None, None].expand(3, 3, 2, 2)
    mean, std = posterior_encoder(vae)(pixels)
    assert torch.equal(mean[:2], pixels[:2]) and torch.equal(std[:2], pixels[:2])
    assert mean[2].isnan().all()  # the caller names the picture
    assert vae.dtype == torch.bfloat16 and "2 images are encoded again in fp32" in caplog.text


def test_a_preview_that_overflows_is_decoded_again_and_one_that_stays_broken_is_grey(caplog) -> None:
    vae = Overflowing()
    assert torch.equal(decoded(vae, torch.full((1, 3, 2, 2), 2.0)), torch.full((1, 3, 2, 2), 2.0))
    assert vae.dtype == torch.bfloat16 and "decoded again in fp32" in caplog.text
    assert torch.equal(decoded(vae, torch.full((1, 3, 2, 2), 20.0)), torch.zeros(1, 3, 2, 2))
    assert "the LoRA has diverged" in caplog.text


def test_activations_are_counted_without_running_the_model_and_checkpointing_saves_most(model_folder: Path) -> None:
    unet = load_model(str(model_folder)).unet
    small, large = (saved_activations(unet, size) for size in ((8, 8), (16, 16)))
    assert 3.5 * small < large < 4.5 * small  # fused attention keeps no [h * w, h * w] weights
    assert saved_activations(unet, (16, 16), gradient_checkpointing=True) < 0.4 * large
