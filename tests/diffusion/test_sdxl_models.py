"""SDXL as a base: files and folders open offline, texts are encoded as the pipeline does, wrong files are named."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from library.diffusion.conditioning import joined, uncropped
from library.diffusion.families.sdxl import SDXL, is_sdxl_place
from library.diffusion.model_files import load_model, open_base
from library.diffusion.text import read_captions
from library.errors import InputError
from tests.helpers import tiny_sdxl
from tests.helpers.base_models import rules

CAPTIONS = ["a walrus", "an ocelot in the rain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL in diffusers layout."""
    return tiny_sdxl.write_model(tmp_path_factory.mktemp("sdxl") / "tiny")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory):
    """Settings, single file and parts of a narrow SDXL in the original layout."""
    return tiny_sdxl.write_file(tmp_path_factory.mktemp("narrow"))


def test_a_single_file_opens_bit_for_bit_with_both_text_encoders(narrow) -> None:
    settings, file, parts = narrow
    model = open_base(rules(file), config_folder=settings)
    assert model.family is SDXL and model.version().base_model == "sdxl_base_v1-0" and is_sdxl_place(file)
    for opened, made in zip((model.unet, model.vae, *model.text_encoders()), parts, strict=True):
        ours, theirs = opened.state_dict(), made.state_dict()
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [one.pad_token for one in model.tokenizers()] == ["<|endoftext|>", "!"]


def test_a_ckpt_and_a_half_precision_file_open_too(narrow, tmp_path: Path) -> None:
    settings, file, parts = narrow
    tensors = {name: value.half() for name, value in load_file(file).items()}
    torch.save({"state_dict": tensors}, tmp_path / "m.ckpt")
    model = load_model(str(tmp_path / "m.ckpt"), config_folder=settings)
    assert {model.unet.dtype, model.vae.dtype, *(one.dtype for one in model.text_encoders())} == {torch.float32}
    opened = model.text_encoders()[1].state_dict()
    assert all(torch.equal(opened[name], value.half().float()) for name, value in parts[3].state_dict().items())


def test_text_states_are_those_of_diffusers_pipeline(folder: Path) -> None:
    """Last but one states of both, side by side, and the second one's caption state; whatever clip_skip says."""
    model = load_model(str(folder))
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    tokens, _ = read_captions(model.tokenizer, CAPTIONS, 75, weighted=False)
    with torch.no_grad():
        ours = model.family.encode(model.text_encoder, tokens, 2, None)
        states, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, device="cpu", do_classifier_free_guidance=False)
    assert tokens.shape == (2, 2, 1, 77) and torch.allclose(ours.states, states, atol=1e-6)
    assert ours.pooled is not None and torch.allclose(ours.pooled, pooled, atol=1e-6)


def test_long_captions_keep_the_caption_state_of_their_first_piece(folder: Path) -> None:
    model = load_model(str(folder))
    long = "a walrus " * 40
    tokens, weights = read_captions(model.tokenizer, [long, f"({long}:1.5)"], 225, weighted=True)
    assert tokens.shape == (2, 2, 3, 77) and weights is not None and weights.shape == (2, 3, 77)
    with torch.no_grad():
        plain, weighted = (model.family.encode(model.text_encoder, tokens[:1], 1, one) for one in (None, weights[1:]))
        first = model.family.encode(model.text_encoder, tokens[:1, :, :1], 1, None)
    assert plain.states.shape == (1, 227, 40) and torch.allclose(plain.pooled, first.pooled, atol=1e-6)
    assert torch.allclose(weighted.states[:, 1:-1], 1.5 * plain.states[:, 1:-1])


def test_framing_reaches_the_unet_of_this_family_alone(folder: Path, model_folder: Path) -> None:
    for place, takes_framing in ((folder, True), (model_folder, False)):
        model = load_model(str(place))
        tokens, _ = read_captions(model.tokenizer, ["a walrus"], 75, weighted=False)
        with torch.no_grad():
            states = model.family.encode(model.text_encoder, tokens, 1, None)
            framings = [uncropped((16, 16))[None], torch.tensor([[512, 512, 100, 0, 16, 16]])]
            both = joined([states.framed(one) for one in framings])
            shown = both.predicted(model.unet, torch.ones(2, 4, 8, 8), torch.tensor([300, 300]))
        assert (not torch.equal(shown[0], shown[1])) is takes_framing and (both.framing is not None) is takes_framing


def test_clip_skip_has_no_effect_and_a_notice_says_so(folder: Path, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="library"):
        open_base(rules(folder, clip_skip=2))
    assert "clip_skip has no effect here: SDXL takes the last but one states" in caplog.text


def test_velocity_is_checked_where_the_model_states_it(folder: Path, narrow, tmp_path: Path, caplog) -> None:
    """A folder's schedule states the target, and so does a single file with the mark of velocity models."""
    settings, file, _ = narrow
    of_velocity = tiny_sdxl.write_model(tmp_path / "v", prediction_type="v_prediction")
    assert open_base(rules(of_velocity, v_parameterization=True)).predicts_velocity()
    with pytest.raises(InputError, match="predicts velocity.*add --v_parameterization"):
        open_base(rules(of_velocity))
    with pytest.raises(InputError, match="predicts noise; leave --v_parameterization out"):
        open_base(rules(folder, v_parameterization=True))
    with caplog.at_level(logging.INFO, logger="library"):
        assert open_base(rules(file, v_parameterization=True), config_folder=settings).predicts_velocity()
    assert "models tuned to velocity need --v_parameterization" in caplog.text
    save_file({**load_file(file), "v_pred": torch.zeros(1)}, tmp_path / "marked.safetensors")
    with pytest.raises(InputError, match="predicts velocity.*add --v_parameterization"):
        open_base(rules(tmp_path / "marked.safetensors"), config_folder=settings)


def test_v2_with_an_sdxl_model_is_told(folder: Path) -> None:
    with pytest.raises(InputError, match="v2 is set, but .* is an SDXL model; leave --v2 out"):
        open_base(rules(folder, v2=True))


@pytest.mark.parametrize(
    ("lost", "message"),
    [("conditioner.embedders.1.", "is not a whole SDXL checkpoint: it has no second text encoder"),
     ("conditioner.embedders.0.", "is not a whole SDXL checkpoint: it has no text encoder"),
     ("first_stage_model.", "it has no VAE"),
     ("model.diffusion_model.label_emb.0.0.", "lacks|tensors are missing: 'add_embedding.linear_1")],
)  # fmt: skip
def test_what_a_single_file_lacks_is_named(narrow, tmp_path: Path, lost: str, message: str) -> None:
    settings, file, _ = narrow
    tensors = {name: value for name, value in load_file(file).items() if not name.startswith(lost)}
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=message):
        load_model(str(tmp_path / "m.safetensors"), config_folder=settings)


def test_an_inpainting_model_and_the_refiner_are_called_what_they_are(narrow, folder: Path, tmp_path: Path) -> None:
    settings, file, _ = narrow
    tensors = load_file(file)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**tensors, first: torch.zeros(32, 9, 3, 3)}, tmp_path / "inpainting.safetensors")
    refiner = {name.replace("embedders.1.", "embedders.0."): value for name, value in tensors.items()
               if "embedders.0." not in name}  # fmt: skip
    save_file(refiner, tmp_path / "refiner.safetensors")
    for name, message in (("inpainting", "is an inpainting model"), ("refiner", "is SDXL's refiner")):
        with pytest.raises(InputError, match=message):
            load_model(str(tmp_path / f"{name}.safetensors"), config_folder=settings)
    other = Path(shutil.copytree(folder, tmp_path / "refiner"))
    shutil.rmtree(other / "text_encoder")
    with pytest.raises(InputError, match="is SDXL's refiner"):
        load_model(str(other))


def test_a_folder_says_what_it_lacks_and_what_does_not_go_together(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "half"))
    shutil.rmtree(other / "text_encoder_2")
    shutil.rmtree(other / "tokenizer_2")
    with pytest.raises(InputError, match="of an SDXL model: it has no text_encoder_2, tokenizer_2"):
        load_model(str(other))
    other = Path(shutil.copytree(folder, tmp_path / "mixed"))
    file = other / "tokenizer_2" / "vocab.json"
    words = json.loads(file.read_text())
    file.write_text(json.dumps({**words, '"': words["#"], "#": words['"']}))
    with pytest.raises(InputError, match="tokenizers with different word lists"):
        load_model(str(other))
