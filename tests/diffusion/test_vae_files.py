"""A VAE in place of the base's own: every form is taken, another latent space is refused, half precision is safe."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from library.diffusion.latent_diffusion import vae_dtype
from library.diffusion.model_files import load_model, open_base
from library.errors import InputError
from tests.helpers import ldm_layout
from tests.helpers.base_models import rules


@pytest.fixture
def other_vae() -> AutoencoderKL:
    """A VAE of the shape of ``ldm_layout``'s with other weights."""
    torch.manual_seed(5)
    return AutoencoderKL(**ldm_layout.VAE)


@pytest.fixture
def whole(tmp_path: Path):
    """A single SD 1.x file with its config folder and parts."""
    folder, *parts = ldm_layout.build(tmp_path / "config")
    save_file(ldm_layout.original_tensors(*parts), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", folder, parts


def vae_in_every_form(place: Path, vae: AutoencoderKL, parts) -> dict[str, Path]:
    """Folders and files that hold one VAE."""
    unet, _, text_encoder = parts
    original = ldm_layout.original_tensors(unet, vae, text_encoder)
    alone = {name[18:]: value for name, value in original.items() if name.startswith("first_stage_model.")}
    vae.save_pretrained(place / "folder")
    vae.save_pretrained(place / "pipeline" / "vae")
    save_file(original, place / "full.safetensors")
    save_file(alone, place / "alone.safetensors")
    torch.save({"state_dict": {**alone, "loss.logvar": torch.zeros(1)}}, place / "alone.pt")
    torch.save(vae.state_dict(), place / "diffusers.bin")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = vae.state_dict()
    for new, before in old.items():
        renamed = {name.replace(f".{new}.", f".{before}."): value for name, value in renamed.items()}
    save_file(renamed, place / "old.safetensors")
    old_folder = Path(shutil.copytree(place / "folder", place / "old"))
    save_file(renamed, old_folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    names = ("folder", "pipeline", "full.safetensors", "alone.safetensors", "alone.pt", "diffusers.bin",
             "old.safetensors", "old")  # fmt: skip
    return {name: place / name for name in names}


@pytest.mark.slow
def test_a_vae_is_taken_from_every_form_and_changes_the_fingerprint(tmp_path: Path, whole, other_vae) -> None:
    file, folder, parts = whole
    plain = open_base(rules(file), config_folder=folder)
    for name, place in vae_in_every_form(tmp_path, other_vae, parts).items():
        model = open_base(rules(file, vae=str(place)), config_folder=folder)
        ours, theirs = model.vae.state_dict(), other_vae.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
        assert model.fingerprint != plain.fingerprint and model.file_hashes == plain.file_hashes
        assert not any(weight.requires_grad for weight in model.vae.parameters())


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"latent_channels": 16}, "makes latents of 16 channels, the UNet takes 4"),
     ({"scaling_factor": 0.13025}, "scales latents by 0.13025.*another family"),
     ({"block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2,
       "up_block_types": ("UpDecoderBlock2D",) * 2}, "reduces sides by 2, the base model's own by 8")],
    ids=["channels", "scale", "sides"],
)  # fmt: skip
def test_a_vae_of_another_latent_space_is_refused(tmp_path: Path, whole, changed, message: str) -> None:
    AutoencoderKL(**{**ldm_layout.VAE, **changed}).save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match=message):
        open_base(rules(whole[0], vae=str(tmp_path / "vae")), config_folder=whole[1])


def test_a_vae_file_that_is_none_or_has_other_channels_is_named(tmp_path: Path, whole) -> None:
    save_file({"lora_unet_x.alpha": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file(AutoencoderKL(**{**ldm_layout.VAE, "latent_channels": 16}).state_dict(), tmp_path / "flux.safetensors")
    for name, message in (("lora", "does not hold a VAE"), ("flux", "latents of 16 channels")):
        with pytest.raises(InputError, match=message):
            open_base(rules(whole[0], vae=str(tmp_path / f"{name}.safetensors")), config_folder=whole[1])


def test_a_vae_never_computes_in_fp16() -> None:
    cpu = torch.device("cpu")
    assert vae_dtype(torch.float16, cpu, full_precision=False) == torch.float32
    assert vae_dtype(torch.bfloat16, cpu, full_precision=False) == torch.bfloat16
    assert vae_dtype(torch.bfloat16, cpu, full_precision=True) == torch.float32


def test_the_vae_keeps_full_precision_weights_until_it_is_prepared(model_folder: Path) -> None:
    stored = load_file(model_folder / "vae" / "diffusion_pytorch_model.safetensors")
    for full in (True, False):
        model = load_model(str(model_folder), torch.bfloat16)
        model.prepare(torch.device("cpu"), full_precision_vae=full, gradient_checkpointing=False)
        assert model.vae.dtype == (torch.float32 if full else torch.bfloat16) and model.unet.dtype == torch.bfloat16
        assert torch.equal(model.vae.state_dict()["encoder.conv_in.weight"], stored["encoder.conv_in.weight"]) == full
