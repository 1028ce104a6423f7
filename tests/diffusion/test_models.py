"""Opening models: folders and single files give the right weights; wrong files are named; no pickle runs."""

import os
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from library.diffusion.denoising import Denoiser, fixed_draws
from library.diffusion.families.sd1 import SD1
from library.diffusion.model_files import load_model
from library.diffusion.noise import Draw
from library.diffusion.text import encode_text, tokenize
from library.errors import InputError
from library.seeding import stream
from tests.helpers import ldm_layout
from tests.helpers.base_models import assert_same_weights


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory):
    """Config folder, parts, and the tensors of a checkpoint in the original layout."""
    folder, unet, vae, text_encoder = ldm_layout.build(tmp_path_factory.mktemp("original") / "config")
    return folder, (unet, vae, text_encoder), ldm_layout.original_tensors(unet, vae, text_encoder)


def test_a_safetensors_checkpoint_in_the_original_layout_opens_bit_for_bit(tmp_path: Path, original) -> None:
    folder, parts, tensors = original
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_model(str(tmp_path / "model.safetensors"), config_folder=folder)
    assert_same_weights(model, parts)
    assert not any(
        weight.requires_grad for part in (model.unet, model.vae, model.text_encoder) for weight in part.parameters()
    )
    assert len(model.file_hashes["ss_new_sd_model_hash"]) == 64 and len(model.file_hashes["ss_sd_model_hash"]) == 8


def test_a_ckpt_nested_under_state_dict_opens_too(tmp_path: Path, original) -> None:
    folder, parts, tensors = original
    torch.save({"state_dict": tensors, "global_step": 7}, tmp_path / "model.ckpt")
    assert_same_weights(load_model(str(tmp_path / "model.ckpt"), config_folder=folder), parts)


class Payload:
    """What a malicious checkpoint holds."""

    def __reduce__(self):
        return os.system, ("touch RAN",)


def test_a_pickle_with_a_payload_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"x": torch.zeros(1)}, "extra": Payload()}, "zip.ckpt")
    with Path("plain.ckpt").open("wb") as file:
        pickle.dump({"state_dict": Payload()}, file, protocol=2)
    for name in ("zip.ckpt", "plain.ckpt"):
        with pytest.raises(InputError, match="was not opened: its pickle holds more than tensors"):
            load_model(name)
    assert not Path("RAN").exists()


def test_a_truncated_file_is_named(tmp_path: Path, original) -> None:
    save_file(original[2], tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="model.safetensors' is no whole safetensors file"):
        load_model(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("first_stage_model.", "it has no VAE"),
        ("cond_stage_model.", "it has no text encoder"),
        (
            "model.diffusion_model.middle_block.0.in_layers.2.weight",
            "UNet: 1 tensors are missing: 'mid_block.resnets.0.conv1.weight'",
        ),
    ],
)
def test_what_a_file_lacks_is_named(tmp_path: Path, original, lost: str, message: str) -> None:
    save_file(
        {name: value for name, value in original[2].items() if not name.startswith(lost)}, tmp_path / "m.safetensors"
    )
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path / "m.safetensors"), config_folder=original[0])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_unet_mid_block.alpha", "is a LoRA, not a base model"),
        ("conditioner.embedders.0.model.x", "is SDXL's refiner"),
        ("conditioner.embedders.0.transformer.x", "not a whole SDXL checkpoint: it has no UNet"),
        ("something.else", "not a whole SD 1.x checkpoint: it has no UNet"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, name: str, message: str) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path / "m.safetensors"))
    assert message in str(caught.value)


def test_every_broken_part_of_a_diffusers_folder_is_reported(tmp_path: Path, model_folder: Path) -> None:
    broken = Path(shutil.copytree(model_folder, tmp_path / "broken"))
    unet = broken / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(unet)
    tensors["stranger"] = tensors.pop("conv_in.weight")
    save_file(tensors, unet, metadata={"format": "pt"})
    vae = broken / "vae" / "diffusion_pytorch_model.safetensors"
    vae.write_bytes(vae.read_bytes()[:100])
    with pytest.raises(InputError) as caught:
        load_model(str(broken))
    text = str(caught.value)
    assert "1 tensors are missing: 'conv_in.weight'" in text and "unexpected: 'stranger'" in text
    assert "vae/diffusion_pytorch_model.safetensors' is no whole safetensors file" in text


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no unet, vae, text_encoder, scheduler, tokenizer"):
        load_model(str(tmp_path))


def test_the_shipped_tokenizer_is_clips() -> None:
    """Ids from CLIP's published vocabulary."""
    tokenizer = CLIPTokenizer.from_pretrained(SD1.settings / "tokenizer", local_files_only=True)
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of an astronaut riding a horse").input_ids == [
        49406,
        320,
        1125,
        539,
        550,
        18376,
        6765,
        320,
        4558,
        49407,
    ]


@pytest.mark.parametrize(("length", "positions"), [(75, 77), (150, 152), (225, 227)])
def test_long_prompts_are_encoded_in_pieces(model_folder: Path, length: int, positions: int) -> None:
    model = load_model(str(model_folder))
    tokens = tokenize(model.tokenizer, ["x " * 400, "short"], length)
    assert tokens.shape == (2, length // 75, 77)
    assert (tokens[..., 0] == model.tokenizer.bos_token_id).all() and (
        tokens[..., -1] == model.tokenizer.eos_token_id
    ).all()
    assert encode_text(model.text_encoder, tokens, 1).shape == (2, positions, 16)


def test_clip_skip_takes_the_hidden_state_from_the_end_with_the_final_norm(model_folder: Path) -> None:
    model = load_model(str(model_folder))
    tokens = tokenize(model.tokenizer, ["a cat"], 75)
    output = model.text_encoder(tokens[:, 0], output_hidden_states=True)
    assert torch.equal(encode_text(model.text_encoder, tokens, 1), output.last_hidden_state)
    inner = getattr(model.text_encoder, "text_model", model.text_encoder)
    assert torch.equal(encode_text(model.text_encoder, tokens, 2), inner.final_layer_norm(output.hidden_states[-2]))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_error_map_is_the_squared_difference_to_the_models_own_target(
    model_folder: Path, prediction_type: str
) -> None:
    model = load_model(str(model_folder))
    model.scheduler.register_to_config(prediction_type=prediction_type)
    denoiser = Denoiser(model.unet, model.text_encoder, model.scheduler, latent_scale=0.5, clip_skip=1)
    latents, tokens = torch.randn(3, 4, 8, 8, generator=stream(1)), tokenize(model.tokenizer, ["a", "b", "c"], 75)
    timesteps, noise = torch.tensor([5, 500, 990]), torch.randn(3, 4, 8, 8, generator=stream(2))
    with torch.no_grad():
        context = denoiser.context(tokens, None)
        together = denoiser.difference(latents * 0.5, context, Draw(timesteps, noise, None)).square()
        for row in range(3):
            signal = model.scheduler.alphas_cumprod[timesteps[row]]
            noisy = signal.sqrt() * latents[row] * 0.5 + (1 - signal).sqrt() * noise[row]
            context = encode_text(model.text_encoder, tokens[row : row + 1], 1)
            prediction = model.unet(noisy[None], timesteps[row], context).sample[0]
            velocity = signal.sqrt() * noise[row] - (1 - signal).sqrt() * latents[row] * 0.5
            target = noise[row] if prediction_type == "epsilon" else velocity
            assert torch.allclose(together[row], (prediction - target) ** 2, atol=1e-5)


def test_fixed_draws_belong_to_the_picture_and_spread_over_the_schedule() -> None:
    draws = [fixed_draws([stream(0, name, draw) for name in ("p", "q")], draw, 4, (4, 8, 8), 1000) for draw in range(4)]
    for draw, (timesteps, noise) in enumerate(draws):
        assert ((timesteps >= 250 * draw) & (timesteps < 250 * (draw + 1))).all()
        alone = fixed_draws([stream(0, "q", draw)], draw, 4, (4, 8, 8), 1000)
        assert timesteps[1] == alone[0][0] and torch.equal(noise[1], alone[1][0])


def test_checkpointing_gives_a_lora_in_the_text_encoder_the_same_gradients_without_a_warning(
    model_folder: Path,
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_model(str(model_folder))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.prepare(torch.device("cpu"), full_precision_vae=False, gradient_checkpointing=checkpointing)
        weight = model.text_encoder.get_parameter(next(
            name for name, _ in model.text_encoder.named_parameters() if name.endswith("self_attn.q_proj.weight")
        )).requires_grad_(True)  # fmt: skip
        encode_text(model.text_encoder, tokenize(model.tokenizer, ["a walrus"], 75), 1).square().sum().backward()
        assert weight.grad is not None and weight.grad.abs().sum() > 0
        gradients.append(weight.grad)
    assert torch.allclose(*gradients)
