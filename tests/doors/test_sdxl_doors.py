"""Whole runs on SDXL: a single file of the real layout, every door, previews, resume, and the audit of a LoRA."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

import audit
import DPLoRA
import PLoRA
import SPLoRA
from library.diffusion import model_files
from library.diffusion.single_file import open_single_file
from library.lora_files.metadata_leaks import leaks_of
from library.tensor_files import read_tensors
from networks.lora_targets import all_text_targets, unet_targets
from tests.helpers import tiny, tiny_sdxl
from tests.helpers.runs import assert_same_tensors, records

SHORT = {"max_train_steps": 2, "train_batch_size": 2, "attack_eval_draws": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL in diffusers layout."""
    return tiny_sdxl.write_model(tmp_path_factory.mktemp("sdxl") / "tiny")


@pytest.fixture
def xl(flags, folder: Path):
    """Flags of a short run on the tiny SDXL."""
    return lambda **changed: flags(pretrained_model_name_or_path=folder, **{**SHORT, **changed})


def test_a_single_file_of_the_real_layout_trains_two_steps_and_saves_exactly_kohyas_keys(
    flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrow, with random weights, offline; at 64 px the deepest attention has four places, so that it learns."""
    settings, file, (unet, _, *text_encoders) = tiny_sdxl.write_file(tmp_path)
    monkeypatch.setattr(
        model_files, "open_single_file", lambda place, dtype, config_folder: open_single_file(place, dtype, settings)
    )
    assert SPLoRA.main(flags(pretrained_model_name_or_path=file, **SHORT, resolution=64, sdxl=True)) == 0
    tensors, metadata = read_tensors(tmp_path / "out" / "last.safetensors")
    model = open_single_file(file, torch.float32, settings)
    modules = {*unet_targets(model.unet), *all_text_targets(model.family, model.text_encoder)}
    assert len(modules) == 5 * 12 + 6 * 22 + 12 + 18  # transformers of one and two blocks; two and three text layers
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(tensors) == {f"{module}.{part}" for module in modules for part in parts}
    assert all(
        tensors[f"{module}.lora_up.weight"].any()
        for module in modules
        if "lora_te1_text_model_encoder_layers_1" not in module
    )  # fmt: skip  its states are not read
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0" and metadata["ss_v2"] == "False"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora" and leaks_of(metadata) == []
    assert len(metadata["ss_new_sd_model_hash"]) == 64 and "modelspec.encoder_layer" not in metadata
    steps = [one for one in records(tmp_path / "out") if "adaptation_loss" in one and "step" in one]
    assert steps and all(one["adaptation_loss"] == one["adaptation_loss"] for one in steps)


@pytest.mark.slow
def test_a_resumed_run_is_the_straight_one_with_mirrors_buckets_and_two_rates(xl, tmp_path: Path) -> None:
    """Framings belong to the use of a picture, so a state need not keep them; a rate of 0 leaves its encoder alone."""
    pictures = tiny.write_pictures(tmp_path / "wide", 12, sizes=((48, 32), (32, 48), (40, 40)))
    more = ["--enable_bucket", "--flip_aug", "--text_encoder_lr", "1e-2", "0"]
    size = {"resolution": "32", "min_bucket_reso": 16, "max_bucket_reso": 64, "bucket_reso_steps": 8}
    make = partial(xl, train_data_dir=pictures, save_state=True, **size)
    assert PLoRA.main([*make(output_dir=tmp_path / "one", max_train_steps=4), *more]) == 0
    assert PLoRA.main([*make(output_dir=tmp_path / "two", max_train_steps=2), *more]) == 0
    state = tmp_path / "two" / "state" / "last-state"
    assert PLoRA.main([*make(output_dir=tmp_path / "two", max_train_steps=4, resume=state), *more]) == 0
    assert_same_tensors(tmp_path / "one" / "last.safetensors", tmp_path / "two" / "last.safetensors")
    tensors = read_tensors(tmp_path / "one" / "last.safetensors")[0]
    moved = {name[:8] for name, value in tensors.items() if name.endswith("lora_up.weight") and value.any()}
    assert moved == {"lora_te1", "lora_une"}


def test_frozen_text_is_encoded_once_and_gives_the_same_lora_as_encoding_at_each_use(xl, tmp_path: Path) -> None:
    """With activation checkpointing, whose frozen embeddings require a gradient; caption dropout encodes each time."""
    words = {"network_train_unet_only": True, "gradient_checkpointing": True}
    assert SPLoRA.main(xl(output_dir=tmp_path / "once", cache_text_encoder_outputs=True, **words)) == 0
    assert SPLoRA.main(xl(output_dir=tmp_path / "each", caption_dropout_every_n_epochs=99, **words)) == 0
    once, each = (read_tensors(tmp_path / name / "last.safetensors")[0] for name in ("once", "each"))
    assert set(once) == set(each) and all(torch.allclose(once[name], each[name], atol=1e-4) for name in once)


def test_a_private_run_on_sdxl_states_its_guarantee(xl, tmp_path: Path) -> None:
    arguments = xl(attack_lr=None, attack_eval_draws=None, dp_noise_multiplier=1.0, dp_batch_size=4, dp_draws=1)
    assert DPLoRA.main(arguments) == 0
    tensors, metadata = read_tensors(tmp_path / "out" / "last.safetensors")
    assert metadata["ss_privacy_method"] == "DPLoRA" and float(metadata["ss_privacy_dp_epsilon"]) > 0
    assert any(name.startswith("lora_te2_") for name in tensors)


@pytest.mark.slow
def test_a_plain_lora_is_painted_and_audited_and_loads_in_diffusers(xl, folder: Path, tmp_path: Path) -> None:
    """Previews while it trains; then the membership audit with drawings; then the client."""
    pictures = tiny.write_pictures(tmp_path / "many", 48)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --n a dog --s 2\n")
    more = {"param_alpha": 0, "k_steps": 0, "attack_lr": None, "attack_eval_draws": None, "sample_prompts": prompts,
            "sample_every_n_steps": 2, "train_data_dir": pictures}  # fmt: skip
    assert PLoRA.main(xl(**more)) == 0
    out = tmp_path / "out"
    assert len(list((out / "sample").glob("*.png"))) == 2
    words = [str(out), "--cache_dir", str(tmp_path / "cache"), "--target_fpr", "0.1", "--generated_images", "1",
             "--generation_steps", "1", "--generation_captions", "2"]  # fmt: skip
    assert audit.main(words) == 0
    findings = json.loads(next((out / "audit").rglob("findings.json")).read_text())
    assert findings
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.load_lora_weights(out, weight_name="last.safetensors")
    assert pipeline.get_list_adapters().keys() >= {"unet"}


def test_dry_run_estimates_the_memory_of_both_text_encoders(xl, capsys: pytest.CaptureFixture[str]) -> None:
    assert SPLoRA.main([*xl(), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "second text encoder 0.00" in said and "time, from timed passes" in said and "sdxl = true" in said
