"""What a person says of the base and what its files bear out: SD 2.x, velocity, another VAE, hub ids, old names."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from library.check import InputError
from library.config import Config
from library.diffusion import hub, memory
from library.diffusion.latent_diffusion import LatentDiffusion, vae_dtype
from library.diffusion.model_files import ModelRules, load_model, open_base
from library.diffusion.single_file import SD2_FOLDER, SD15_FOLDER, shipped_tokenizer
from library.diffusion.text import encode_text, tokenize
from library.rules import pick
from networks import lora
from tests import ldm_layout, tiny
from tests.test_models import assert_same_weights


def rules(path: Path | str, **changed: object) -> ModelRules:
    """kohya's defaults, but for the path and what is given."""
    options = {"pretrained_model_name_or_path": str(path), **changed}
    return pick(dataclasses.replace(Config(), **options), ModelRules)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory):
    """A narrow SD 2.x: config folder, parts, and the file in the original layout."""
    place = tmp_path_factory.mktemp("second")
    folder, *parts = ldm_layout.build(place / "config", second=True)
    save_file(ldm_layout.original_tensors(*parts), place / "model.safetensors")
    return folder, parts, place / "model.safetensors"


@pytest.fixture
def velocity_folder(tmp_path: Path, model_folder: Path) -> Path:
    """The tiny model as a diffusers folder whose schedule states velocity."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "velocity"))
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "v_prediction"}))
    return folder


def test_an_sd2_file_opens_bit_for_bit_and_its_unused_layer_is_left_out(second) -> None:
    folder, parts, file = second
    model = open_base(rules(file, v2=True), config_folder=folder)
    assert_same_weights(model, parts)
    assert model.is_v2 and not model.predicts_velocity()


def test_v2_is_checked_against_the_file_both_ways(second, model_folder: Path) -> None:
    with pytest.raises(InputError, match="is an SD 2.x model, and v2 is not set; add --v2"):
        open_base(rules(second[2]), config_folder=second[0])
    with pytest.raises(InputError, match="is an SD 1.x model; leave --v2 out"):
        open_base(rules(model_folder, v2=True))


def test_an_sd2_folder_is_told_from_an_sd1_folder(tmp_path: Path, model_folder: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "two"))
    UNet2DConditionModel(**tiny.UNET, use_linear_projection=True).save_pretrained(folder / "unet")
    assert open_base(rules(folder, v2=True)).is_v2
    with pytest.raises(InputError, match="add --v2"):
        open_base(rules(folder))


def test_a_single_sd2_file_is_what_the_flag_says_and_a_notice_says_so(second, caplog) -> None:
    folder, _, file = second
    with caplog.at_level(logging.INFO, logger="library"):
        assert not open_base(rules(file, v2=True), config_folder=folder).predicts_velocity()
        model = open_base(rules(file, v2=True, v_parameterization=True), config_folder=folder)
    assert model.predicts_velocity()
    told = [record.getMessage() for record in caplog.records if "does not state its target" in record.getMessage()]
    assert len(told) == 2 and "taken as noise" in told[0] and "taken as velocity" in told[1]


def test_a_folders_stated_target_is_checked_against_the_flag_both_ways(velocity_folder: Path, model_folder) -> None:
    assert open_base(rules(velocity_folder, v_parameterization=True)).predicts_velocity()
    with pytest.raises(InputError, match="predicts velocity.*add --v_parameterization"):
        open_base(rules(velocity_folder))
    with pytest.raises(InputError, match="predicts noise; leave --v_parameterization out"):
        open_base(rules(model_folder, v_parameterization=True))


def test_everything_said_wrongly_of_a_base_is_reported_at_once(model_folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_base(rules(model_folder, v2=True, v_parameterization=True, clip_skip=3, vae="nowhere"))
    assert len(str(caught.value).splitlines()) == 4 and "clip_skip must be at most 2" in str(caught.value)


def test_zero_terminal_snr_is_for_velocity_models(model_folder: Path) -> None:
    with pytest.raises(InputError, match="zero_terminal_snr is for velocity models.*v_parameterization"):
        open_base(rules(model_folder, zero_terminal_snr=True))


def test_zero_terminal_snr_reaches_the_schedule_and_keeps_the_rest(velocity_folder: Path) -> None:
    plain = open_base(rules(velocity_folder, v_parameterization=True)).scheduler
    model = open_base(rules(velocity_folder, v_parameterization=True, zero_terminal_snr=True))
    assert plain.alphas_cumprod[-1] > 0 and model.scheduler.alphas_cumprod[-1] == 0
    assert model.scheduler.config.set_alpha_to_one is False and model.scheduler.config.steps_offset == 1
    assert model.schedule_in_words() == "v_prediction zero SNR"


@pytest.mark.parametrize(
    ("folder", "parameters", "text_modules", "gigabytes"),
    [(SD15_FOLDER, (859.5, 83.7, 123.1), 72, "3.20"), (SD2_FOLDER, (865.9, 83.7, 340.4), 138, "3.65")],
    ids=["sd1", "sd2"],
)
def test_shipped_dimensions_are_the_published_ones(folder: Path, parameters, text_modules: int, gigabytes: str) -> None:
    """Parameters in millions, LoRA modules, and the memory that kohya.md section 7 works out for 512 pixels in bf16."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")).to(torch.bfloat16)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")).to(torch.bfloat16)
        network = lora.create_network(1.0, 16, 16, vae, text_encoder, unet)
    counted = [sum(weight.numel() for weight in part.parameters()) / 1e6 for part in (unet, vae, text_encoder)]
    assert tuple(round(count, 1) for count in counted) == parameters
    assert (len(network.unet_loras), len(network.text_encoder_loras)) == (192, text_modules)
    width = text_encoder.config.hidden_size
    plain, saving = (
        memory.saved_activations(unet, (64, 64), width, gradient_checkpointing=saved) for saved in (False, True)
    )
    assert 455e6 < plain < 463e6 and 0.150e9 < 2 * saving < 0.155e9  # 463 M counts the rank's own numbers too
    for part in (unet, vae, text_encoder):
        part.requires_grad_(False)
    model = LatentDiffusion(None, text_encoder, vae, unet, None, "", {}, False)
    words = memory.estimate_in_words(model, (512, 512), 9_437_000, 1, memory.MemoryRules(False, False, False))
    assert f"estimated: {gigabytes} GB" in words and "VAE 0.17" in words and "Adam 0.15" in words


def test_the_sd2_tokenizer_has_clips_vocabulary_and_pads_with_id_0() -> None:
    one, two = (shipped_tokenizer(folder / "tokenizer") for folder in (SD15_FOLDER, SD2_FOLDER))
    tokens = tokenize(two, ["a photo of an astronaut"], 150)
    assert tokens[0, 0, :8].tolist() == [49406, 320, 1125, 539, 550, 18376, 49407, 0]
    assert tokens[0, 1, :4].tolist() == [49406, 49407, 0, 0] and len(two) == 49408
    assert tokenize(one, ["a photo"], 75)[0, 0, 3:6].tolist() == [49407, 49407, 49407]


def test_clip_skip_and_long_prompts_work_for_an_sd2_text_encoder(second) -> None:
    model = open_base(rules(second[2], v2=True, clip_skip=2), config_folder=second[0])
    tokens = tokenize(model.tokenizer, ["x " * 400], 225)
    assert encode_text(model.text_encoder, tokens, 2).shape == (1, 227, 16)


@pytest.mark.parametrize("old", ["encoder.layers.", "embeddings.", "final_layer_norm."])
def test_old_text_encoder_names_are_read_as_if_they_were_current(tmp_path: Path, old: str, caplog) -> None:
    """A file of the first releases, and one where only some names lack ``text_model.``; EMA copies are not read."""
    folder, *parts = ldm_layout.build(tmp_path / "config")
    prefix = "cond_stage_model.transformer."
    tensors = {
        name.replace("text_model.", "") if name.startswith(f"{prefix}text_model.{old}") else name: value
        for name, value in ldm_layout.original_tensors(*parts).items()
    }
    tensors |= {f"model_ema.{index}": torch.zeros(1) for index in range(101)}
    save_file(tensors, tmp_path / "old.safetensors")
    with caplog.at_level(logging.INFO, logger="library"):
        assert_same_weights(load_model(str(tmp_path / "old.safetensors"), config_folder=folder), parts)
    assert "as old files do" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"addition_embed_type": "text_time"}, "is an SDXL model"), ({"in_channels": 9}, "is an inpainting model"),
     ({"in_channels": 7}, "no plain text-to-image model")],
)  # fmt: skip
def test_a_folder_of_another_kind_is_called_what_it_is(tmp_path: Path, model_folder: Path, settings, message) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "other"))
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(InputError, match=message):
        load_model(str(folder))


# Another VAE


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
       "up_block_types": ("UpDecoderBlock2D",) * 2}, "shrinks sides by 2, the base's own by 8")],
    ids=["channels", "scale", "sides"],
)  # fmt: skip
def test_a_vae_of_another_latent_space_is_refused(tmp_path: Path, whole, changed, message: str) -> None:
    AutoencoderKL(**{**ldm_layout.VAE, **changed}).save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match=message):
        open_base(rules(whole[0], vae=str(tmp_path / "vae")), config_folder=whole[1])


def test_a_vae_file_that_is_none_or_has_other_channels_is_named(tmp_path: Path, whole) -> None:
    save_file({"lora_unet_x.alpha": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file(AutoencoderKL(**{**ldm_layout.VAE, "latent_channels": 16}).state_dict(), tmp_path / "flux.safetensors")
    for name, message in (("lora", "holds no VAE"), ("flux", "latents of 16 channels")):
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


# Hub ids


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> list[list[str]]:
    """A hub whose every repository is the tiny model; the patterns asked for are noted."""
    asked: list[list[str]] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(model_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_opens_like_the_folder_that_it_stands_for(fake_hub, model_folder: Path) -> None:
    model, local = open_base(rules("someone/tiny-model")), open_base(rules(model_folder))
    assert_same_weights(model, (local.unet, local.vae, local.text_encoder))
    assert model.fingerprint == local.fingerprint
    assert not any(pattern.endswith((".bin", ".ckpt", "*")) for patterns in fake_hub for pattern in patterns)
    assert not any("safetensors" in pattern for pattern in fake_hub[0])  # settings are looked at before weights come


def test_a_vae_may_be_a_hub_id(fake_hub, model_folder: Path) -> None:
    assert open_base(rules(model_folder, vae="someone/vae")).fingerprint != open_base(rules(model_folder)).fingerprint
    assert fake_hub == [list(hub.VAE)]


def test_an_sdxl_repository_is_refused_before_its_weights_are_fetched(
    fake_hub, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "xl"))
    (folder / "text_encoder_2").mkdir()
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: fake_hub.append(name) or str(folder)
    )
    with pytest.raises(InputError, match="is an SDXL model"):
        open_base(rules("someone/xl"))
    assert fake_hub == ["someone/xl"]


def test_a_fetched_tokenizer_is_kept_in_its_own_cache_and_taken_from_there(
    fake_hub, tmp_path: Path, model_folder: Path
) -> None:
    cache = tmp_path / "tokenizers"
    open_base(rules("someone/tiny-model", tokenizer_cache_dir=str(cache)))
    kept = cache / "someone_tiny-model"
    assert {file.name for file in kept.iterdir()} == {file.name for file in (model_folder / "tokenizer").iterdir()}
    (kept / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!", "tokenizer_class": "CLIPTokenizer"}))
    (kept / "special_tokens_map.json").unlink()
    fake_hub.clear()
    model = open_base(rules("someone/tiny-model", tokenizer_cache_dir=str(cache)))
    assert model.tokenizer.pad_token == "!" and [path.name for path in cache.iterdir()] == ["someone_tiny-model"]
    assert not any("tokenizer" in pattern for patterns in fake_hub for pattern in patterns)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(LocalEntryNotFoundError("x"), "the hub does not answer, and the local cache does not hold it"),
     (FileNotFoundError("no such repository\nmore"), "no such repository"), (ValueError("bad id"), "bad id")],
)  # fmt: skip
def test_a_hub_id_that_cannot_be_fetched_names_itself_the_reason_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def refuse(name: str, allow_patterns: list[str]) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError) as caught:
        open_base(rules("someone/model"))
    text = str(caught.value)
    assert "'someone/model'" in text and reason in text and "give the folder's path" in text
    assert issubclass(RepositoryNotFoundError, OSError)  # so that it is answered too


def hub_cache(place: Path, model_folder: Path) -> Path:
    """The hub's own cache layout with one repository in it."""
    repository = place / "models--someone--tiny"
    shutil.copytree(model_folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return place


def test_offline_a_cached_repository_opens_and_another_is_named(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub itself, not a stand-in: with HF_HUB_OFFLINE it looks into its cache alone."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub_cache(tmp_path / "cache", model_folder)))
    assert open_base(rules("someone/tiny")).fingerprint == load_model(str(model_folder)).fingerprint
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, and the local cache does not hold it"):
        open_base(rules("someone/absent"))
