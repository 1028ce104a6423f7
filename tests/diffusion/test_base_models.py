"""What a person says of the base and what its files bear out: SD 2.x, velocity, another VAE, hub ids, old names."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from library.diffusion import memory, single_file
from library.diffusion.families.recognise import FAMILIES, family_of_file, family_of_unet
from library.diffusion.families.sd1 import SD1
from library.diffusion.families.sd2 import SD2
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.model_files import load_model, open_base
from library.diffusion.single_file import shipped_tokenizer
from library.diffusion.text import encode_text, tokenize
from library.diffusion.weight_files import fill
from library.errors import Faults, InputError
from networks import lora
from tests.helpers import ldm_layout, tiny
from tests.helpers.base_models import assert_same_weights, rules


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
    assert model.family is SD2 and not model.predicts_velocity()


def test_v2_is_checked_against_the_file_both_ways(second, model_folder: Path) -> None:
    with pytest.raises(InputError, match="is an SD 2.x model, but v2 is not set; add --v2"):
        open_base(rules(second[2]), config_folder=second[0])
    with pytest.raises(InputError, match="is an SD 1.x model; leave --v2 out"):
        open_base(rules(model_folder, v2=True))


def test_an_sd2_folder_is_told_from_an_sd1_folder(tmp_path: Path, model_folder: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "two"))
    UNet2DConditionModel(**tiny.UNET, use_linear_projection=True).save_pretrained(folder / "unet")
    assert open_base(rules(folder, v2=True)).family is SD2
    with pytest.raises(InputError, match="add --v2"):
        open_base(rules(folder))


def test_a_single_sd2_file_is_what_the_flag_says_and_a_notice_says_so(second, caplog) -> None:
    folder, _, file = second
    with caplog.at_level(logging.INFO, logger="library"):
        assert not open_base(rules(file, v2=True), config_folder=folder).predicts_velocity()
        model = open_base(rules(file, v2=True, v_parameterization=True), config_folder=folder)
    assert model.predicts_velocity()
    told = [record.getMessage() for record in caplog.records if "does not state its target" in record.getMessage()]
    assert len(told) == 2 and "read as noise" in told[0] and "read as velocity" in told[1]


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
    assert model.schedule_summary() == "v_prediction zero SNR"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "parameters", "text_modules", "gigabytes"),
    [(SD1, (859.5, 83.7, 123.1), 72, "3.20"), (SD2, (865.9, 83.7, 340.4), 138, "3.65")],
    ids=["sd1", "sd2"],
)
def test_shipped_dimensions_are_the_published_ones(family, parameters, text_modules: int, gigabytes: str) -> None:
    """Parameters in millions, LoRA modules, and the memory that kohya.md section 7 works out for 512 pixels in bf16."""
    folder = family.settings
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet")).to(torch.bfloat16)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder")).to(torch.bfloat16)
        network = lora.create_network(1.0, 16, 16, vae, text_encoder, unet)
    counted = [sum(weight.numel() for weight in part.parameters()) / 1e6 for part in (unet, vae, text_encoder)]
    assert tuple(round(count, 1) for count in counted) == parameters
    assert (len(network.unet_loras), len(network.text_encoder_loras)) == (192, text_modules)
    plain, saving = (memory.saved_activations(unet, (64, 64), gradient_checkpointing=saved) for saved in (False, True))
    assert 455e6 < plain < 463e6 and 0.150e9 < 2 * saving < 0.155e9  # 463 M counts the rank's own numbers too
    for part in (unet, vae, text_encoder):
        part.requires_grad_(False)
    model = LatentDiffusion(None, text_encoder, vae, unet, None, "", {}, family)
    words = memory.memory_summary(model, (512, 512), 9_437_000, 1, memory.MemoryRules(False, False, False))
    assert f"estimated: {gigabytes} GB" in words and "VAE 0.17" in words and "Adam 0.15" in words


@pytest.mark.parametrize("family", FAMILIES, ids=["sd1", "sd2", "sdxl"])
def test_every_tensor_of_a_file_of_the_published_size_finds_its_place(family) -> None:
    """Names and shapes alone, on tensors without data: the width, depth and 23 layers of the real models."""
    folder = family.settings
    with torch.device("meta"):
        unet, vae, *text_encoders = parts = single_file.unfilled_parts(folder, family)
        tensors = ldm_layout.original_tensors(*parts)
    assert family_of_file(Path("file"), tensors) is family_of_unet(unet.config) is family
    widths = [one.config.hidden_size for one in text_encoders]
    assert sum(widths) == family.context_width == unet.config.cross_attention_dim
    faults = Faults()
    for part, state in single_file.converted(Path("x"), parts, tensors, family).values():
        fill(part, state, "file", faults)
    faults.raise_if_any()


def test_the_sd2_tokenizer_has_clips_vocabulary_and_pads_with_id_0() -> None:
    one, two = (shipped_tokenizer(family.settings / "tokenizer", family) for family in (SD1, SD2))
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
    assert "of old files" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"addition_embed_type": "text_time"}, "not a diffusers folder of an SDXL model: it has no text_encoder_2"),
     ({"addition_embed_type": "image"}, "takes conditions beside the text"),
     ({"in_channels": 9}, "is an inpainting model"),
     ({"in_channels": 7}, "not a plain text-to-image model")],
)  # fmt: skip
def test_a_folder_of_another_kind_is_called_what_it_is(tmp_path: Path, model_folder: Path, settings, message) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "other"))
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(InputError, match=message):
        load_model(str(folder))
