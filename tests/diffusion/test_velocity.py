"""Models of velocity, SD 2.x and another VAE through the door and in front of the audit."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

import SPLoRA
from library.audit.images import generated
from library.audit.queries import audited_model
from library.audit.targets import lora_runs, provenance
from library.diffusion.conditioning import Conditioning, uncropped
from library.diffusion.denoising import Denoiser
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.noise import Draw
from library.diffusion.text import encode_text, tokenize
from library.errors import InputError
from library.options.declarations import Config
from library.tensor_files import read_tensors
from tests.helpers import tiny

CPU = torch.device("cpu")


def random_normal(seed: int, *shape: int) -> torch.Tensor:
    """Fixed noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def asked(model: LatentDiffusion) -> audited_model.AuditedModel:
    """The model as the audit asks it, without any adapter."""
    return audited_model.audited_model_of(
        model, [], lambda state: None, clip_skip=1, max_token_length=75, weighted_captions=False, precision=None
    )


def settings_of(**changed: object) -> Mapping[str, Any]:
    """The options of a run as an audit reads them."""
    return {**dataclasses.asdict(Config()), **changed}


@pytest.fixture
def velocity_folder(tmp_path: Path, model_folder: Path) -> Path:
    """The tiny model as an SD 2.x 768-v: linear projections, and a schedule that states velocity."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "velocity"))
    torch.manual_seed(3)
    UNet2DConditionModel(**tiny.UNET, use_linear_projection=True).save_pretrained(folder / "unet")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    return folder


@pytest.fixture
def opened(velocity_folder: Path) -> LatentDiffusion:
    """The same, as the audit opens it."""
    return audited_model.open_model(
        settings_of(pretrained_model_name_or_path=str(velocity_folder), v2=True, v_parameterization=True)
    )


def test_the_audit_reads_the_noise_out_of_an_exact_velocity() -> None:
    """By hand: v = sqrt(a) e - sqrt(1 - a) z0 (arXiv 2202.00512), asked at z_t, must come back as e."""
    scheduler = DDPMScheduler.from_config(tiny.SCHEDULE, prediction_type="v_prediction")
    clean, noise, timesteps = random_normal(1, 3, 4, 8, 8), random_normal(2, 3, 4, 8, 8), torch.tensor([0, 400, 999])
    alpha = scheduler.alphas_cumprod[timesteps][:, None, None, None]
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean

    class Exact(torch.nn.Linear):
        def forward(self, latents, timesteps, states):
            return SimpleNamespace(sample=velocity)

    model: Any = SimpleNamespace(unet=Exact(1, 1), scheduler=scheduler)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    found = asked(model).predict_noise(noisy, timesteps, Conditioning(torch.zeros(3, 77, 16)))
    assert torch.allclose(found, noise, atol=1e-5)


@torch.no_grad()
def test_the_audits_loss_is_the_trainings_times_the_share_of_signal(opened: LatentDiffusion) -> None:
    """|e' - e|^2 = a |v' - v|^2: the noise that attacks ask for carries the velocity's own error."""
    clean, noise, timesteps = random_normal(1, 3, 4, 8, 8), random_normal(2, 3, 4, 8, 8), torch.tensor([5, 400, 990])
    tokens = tokenize(opened.tokenizer, ["a", "b", "c"], 75)
    training = Denoiser(opened.unet, opened.text_encoder, opened.scheduler, latent_scale=1.0, clip_skip=1)
    draw = Draw(timesteps, noise, None)
    of_velocity = training.difference(clean, training.context(tokens, None), draw).square()
    alpha = opened.scheduler.alphas_cumprod[timesteps][:, None, None, None]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    found = asked(opened).predict_noise(noisy, timesteps, Conditioning(encode_text(opened.text_encoder, tokens, 1)))
    assert torch.allclose((found - noise).square(), alpha * of_velocity, atol=1e-5)


def test_drawings_of_a_zero_snr_model_begin_at_the_last_step_with_signal(velocity_folder: Path) -> None:
    model = audited_model.open_model(
        settings_of(pretrained_model_name_or_path=str(velocity_folder), v2=True, v_parameterization=True,
                    zero_terminal_snr=True)
    )  # fmt: skip
    assert model.scheduler.alphas_cumprod[-1] == 0
    picture: Any = SimpleNamespace(
        latent=torch.zeros(4, 8, 8), identity="x", caption="a cat", framing=uncropped((16, 16))
    )
    drawn = generated.drawn_latents(asked(model), [picture], 0, 4, 2.0)
    assert drawn.isfinite().all() and drawn.abs().mean() > 0


def other_vae(place: Path) -> Path:
    """A VAE of the tiny model's shape with other weights."""
    torch.manual_seed(11)
    AutoencoderKL(**tiny.VAE).save_pretrained(place)
    return place


def test_a_velocity_sd2_model_with_another_vae_trains_paints_and_can_be_audited(
    flags, tmp_path: Path, velocity_folder: Path
) -> None:
    """And the audit opens the same base, VAE and schedule from config.toml."""
    (tmp_path / "prompts.txt").write_text("a cat --s 2 --ss euler\n")
    options = {"pretrained_model_name_or_path": velocity_folder, "v2": True, "v_parameterization": True,
               "vae": other_vae(tmp_path / "vae"), "zero_terminal_snr": True, "max_token_length": 150,
               "sample_prompts": tmp_path / "prompts.txt"}  # fmt: skip
    assert SPLoRA.main(flags(**options)) == 0
    out = tmp_path / "out"
    tensors, metadata = read_tensors(out / "last.safetensors")
    assert metadata["modelspec.prediction_type"] == "v"
    assert tensors["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"].dim() == 2
    assert any(value.abs().sum() > 0 for name, value in tensors.items() if "lora_up" in name)
    assert (out / "sample" / "last_final_00.png").is_file()

    settings = settings_of(**lora_runs.read_settings(out / "config.toml"))
    model = audited_model.open_model(settings)
    provenance.check_base(out / "last.safetensors", metadata, model.fingerprint, model.file_hashes)
    theirs = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(model.vae.state_dict()["encoder.conv_in.weight"], theirs["encoder.conv_in.weight"])
    assert model.scheduler.alphas_cumprod[-1] == 0
    plain = audited_model.open_model({**settings, "vae": None})
    with pytest.raises(InputError, match="was trained on another base model.*--vae if it had another"):
        provenance.check_base(out / "last.safetensors", metadata, plain.fingerprint, plain.file_hashes)


@pytest.mark.slow
def test_another_vae_makes_the_latent_cache_anew(flags, tmp_path: Path) -> None:
    cache, vae = tmp_path / "cache", other_vae(tmp_path / "vae")
    counts = []
    for name, more in (("one", {}), ("two", {}), ("three", {"vae": vae})):
        chosen = {"cache_latents_to_disk": True, "cache_dir": cache, "max_train_steps": 1, **more}
        assert SPLoRA.main(flags(output_dir=tmp_path / name, **chosen)) == 0
        counts.append(len(list((cache / "latents").glob("*.safetensors"))))
    assert counts[0] == counts[1] and counts[2] == 2 * counts[0]


def test_a_door_says_all_that_is_wrong_with_the_base_and_writes_nothing(flags, tmp_path: Path) -> None:
    """A velocity flag on a model of noise, an SD 2.x flag on SD 1.x."""
    with pytest.raises(InputError) as caught:
        SPLoRA.main(flags(v2=True, v_parameterization=True))
    assert "leave --v2 out" in str(caught.value) and "leave --v_parameterization out" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_dry_run_shows_the_memory_of_other_batch_sizes(flags, capsys: pytest.CaptureFixture) -> None:
    assert SPLoRA.main([*flags(gradient_checkpointing=True), "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("memory of a step, estimated"))
    assert lines[start + 1].split()[-5:] == ["1", "2", "4", "8", "16"]
    assert lines[start + 2].strip().startswith("checkpointing off")
    assert lines[start + 3].strip().startswith("checkpointing on")
