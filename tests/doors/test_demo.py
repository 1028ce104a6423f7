"""The embedded demo: a model that loads everywhere, pictures with room for an audit, families on one side."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from library.data.split import SIDES, draw_split
from library.data.split_file import read_secret
from library.diffusion.model_files import load_model
from library.diffusion.prompt_files import read_prompts
from library.diffusion.text import encode_text, tokenize
from library.lora_files.format import write_lora
from library.options.resolve import read_config
from library.seeding import stream
from networks.lora import create_network
from tests.helpers import data_toy

DEMO = Path(__file__).parent.parent.parent / "demo"


@pytest.fixture(scope="module")
def examples():
    """The private pictures."""
    return data_toy.read(DEMO / "images", strict_captions=True).candidates


def test_the_base_is_small_and_in_half_precision_under_ordinary_names() -> None:
    weights = sorted((DEMO / "base").rglob("*.safetensors"))
    assert [file.name for file in weights] == ["model.safetensors"] + ["diffusion_pytorch_model.safetensors"] * 2
    assert sum(file.stat().st_size for file in weights) <= 24e6
    assert b"F16" in weights[0].read_bytes()[:2000] and b"F32" not in weights[0].read_bytes()[:2000]


def test_there_are_enough_pictures_with_unique_captions_and_their_licence(examples) -> None:
    assert len(examples) == 800
    assert len({example.caption for example in examples}) == len(examples)
    assert len({example.pixels for example in examples}) == len(examples)
    assert {(example.width, example.height) for example in examples} == {(64, 64)}
    assert "Creative Commons" in (DEMO / "LICENSE-images.txt").read_text()


@pytest.mark.parametrize("name", ["plora_demo", "splora_demo", "lora_demo"])
def test_the_shipped_split_has_200_test_pictures_a_side_and_keeps_persons_together(examples, name: str) -> None:
    door = "SPLoRA" if name.startswith("s") else "PLoRA"
    config = read_config(door, ["--config_file", str(DEMO.parent / "configs" / f"{name}.toml")])
    split = draw_split(examples, [], nonmember_share=config.nonmember_share, aux_share=config.aux_share,
                       inclusion=config.inclusion, secret=read_secret(DEMO / "public_secret.hex"))  # fmt: skip
    assert set(split.sizes().values()) == {200}
    groups = json.loads((DEMO / "images" / "groups.json").read_text())
    assert set(groups) == {example.path.stem for example in examples}
    side_of: dict[str, str] = {}
    for side in SIDES:
        for example in split.sides[side]:
            assert side_of.setdefault(groups[example.path.stem], side) == side


def test_the_prompts_are_captions_of_nobody_among_the_private_pictures(examples) -> None:
    prompts = read_prompts(str(DEMO / "prompts.txt"), (64, 64), 0, 16, ["ddim"])
    assert len(prompts) == 8 and not {prompt.text for prompt in prompts} & {example.caption for example in examples}


@pytest.mark.slow
def test_a_lora_on_the_demo_base_means_the_same_to_diffusers(tmp_path: Path) -> None:
    """Issue 2: the written file through ``load_lora_weights``, same UNet output to 1e-3 relative."""
    model = load_model(str(DEMO / "base"))
    network = create_network(1.0, 8, 4, model.vae, model.text_encoder, model.unet)
    network.apply_to(model.text_encoder, model.unet, True, True)
    with torch.no_grad():
        for index, lora in enumerate(network.modules_of_both()):
            lora.lora_up.weight.copy_(0.2 * torch.randn(lora.lora_up.weight.shape, generator=stream(1, index)))
    write_lora(tmp_path / "lora.safetensors", network.state_dict(), {}, "fp16")
    tokens = tokenize(model.tokenizer, ["voxel folk portrait, bald", "another"], 75)
    pipeline = StableDiffusionPipeline.from_pretrained(DEMO / "base", local_files_only=True, safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    outputs, latents = [], torch.randn(2, 4, 16, 16, generator=stream(2))
    with torch.no_grad():
        for unet, text_encoder in ((model.unet, model.text_encoder), (pipeline.unet, pipeline.text_encoder)):
            outputs.append(unet(latents, 400, encode_text(text_encoder, tokens, 1)).sample)
    network.set_multiplier(0.0)
    with torch.no_grad():
        base = model.unet(latents, 400, encode_text(model.text_encoder, tokens, 1)).sample
    assert (outputs[1] - outputs[0]).norm() < 1e-3 * outputs[0].norm()
    assert (outputs[0] - base).norm() > 0.05 * base.norm()
