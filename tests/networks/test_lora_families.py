"""Which family a LoRA file is for, from names, widths and header; what is said where none of them tells."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from library.diffusion.families.sd1 import SD1
from library.diffusion.model_files import load_model
from library.diffusion.single_file import unfilled_parts
from library.errors import InputError
from library.lora_files.clients import verdicts_of
from library.lora_files.families import check_width, family_name
from library.lora_files.format import write_lora
from library.lora_files.lora_file import read_lora
from library.lora_files.sdxl_names import diffusers_name, original_name
from library.options.declarations import Config
from library.rules import pick
from library.seeding import stream
from networks import protocol
from networks.base_weights import merge_base_weights
from networks.lora import create_network
from tests.helpers import ldm_layout, tiny_sdxl
from tests.helpers.tiny_sdxl import unet_output

STATES_SDXL, STATES_SD1 = (
    {"ss_base_model_version": "sdxl_base_v1-0"},
    {"modelspec.architecture": "stable-diffusion-v1/lora"},
)
LAYER = "text_model_encoder_layers_0_self_attn_q_proj"
ATTENTION = "transformer_blocks_0_attn1_to_q"
CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
COMFYUIS_CROSS = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_v"
TEXT_PATH = "text_model.encoder.layers.0.mlp.fc1"


def lora_of(*names: str, width: int = 640) -> dict[str, Tensor]:
    """LoRA modules of these names."""
    parts = {"lora_down.weight": torch.ones(2, width), "lora_up.weight": torch.ones(640, 2)}
    return {f"{name}.{part}": value.clone() for name in names for part, value in parts.items()}


def loha_of(name: str, width: int) -> dict[str, Tensor]:
    """A LoHa module, whose name shows no width of a lower factor."""
    sides = {"a": torch.ones(4, 2), "b": torch.ones(2, width)}
    return {f"{name}.hada_w{number}_{side}": value.clone() for number in "12" for side, value in sides.items()}


TELLING = {
    "kohya's text encoder alone": (lora_of(f"lora_te1_{LAYER}"), {}, "SDXL"),
    "the same, stated otherwise": (lora_of(f"lora_te1_{LAYER}", width=768), STATES_SD1, "SD 1.x"),
    "diffusers' text encoder alone, stated": (lora_of(f"text_encoder.{TEXT_PATH}"), STATES_SDXL, "SDXL"),
    "kohya's blocks alone": (lora_of(f"lora_unet_middle_block_1_{ATTENTION}"), {}, "SDXL"),
    "diffusers' blocks by width": (lora_of(CROSS,
                                           width=2048), {}, "SDXL"),
    "LoHa by width": (loha_of(CROSS, 2048), {}, "SDXL"),
    "te1 beside diffusers' blocks": (lora_of(f"lora_te1_{LAYER}", width=768)
                                     | lora_of("lora_unet_mid_block_attentions_0_proj_in"), {}, "SD 1.x"),
    "ComfyUI's blocks by width": (lora_of(COMFYUIS_CROSS, width=2048),
                                  {}, "SDXL"),
    "the same of SD 1.x": (lora_of(COMFYUIS_CROSS, width=768), {},
                           "SD 1.x"),
    "a block that only SD 1.x has": (lora_of("diffusion_model.output_blocks.11.1.proj_in")
                                     | lora_of(f"lora_te_{LAYER}", width=768), {}, "SD 1.x"),
    "ComfyUI's second text encoder": (lora_of(f"text_encoders.clip_g.transformer.{TEXT_PATH}"), {},
                                      "SDXL"),
}  # fmt: skip


@pytest.mark.parametrize("case", TELLING)
def test_the_family_is_told_from_names_widths_and_header(tmp_path: Path, case: str) -> None:
    tensors, metadata, family = TELLING[case]
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    lora = read_lora(tmp_path / "x.safetensors")
    assert family_name(lora.tensors) == family
    in_kohyas = ("lora_te1_", "lora_te2_", "lora_unet_input", "lora_unet_middle", "lora_unet_output")
    assert all(name.startswith(in_kohyas) for name in lora.tensors) == (family == "SDXL")
    check_width("x", lora.tensors, {"SDXL": 2048, "SD 1.x": 768}[family], family)


UNTOLD = {
    "two families": (lora_of(f"lora_te2_{LAYER}")
                     | lora_of(CROSS, width=768),
                     "it mixes layers of two families: .*lora_te2_.* is SDXL's, .*attn2_to_k.* is not"),
    "neither": (lora_of("diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"),
                r"fit SD 1.x, SD 2.x and SDXL alike .*; state it in the file's metadata \(ss_base_model_version"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNTOLD)
def test_a_file_that_fits_several_families_or_none_says_what_to_do(tmp_path: Path, case: str) -> None:
    tensors, message = UNTOLD[case]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message) as caught:
        read_lora(tmp_path / "x.safetensors")
    assert str(caught.value).startswith(f"'{tmp_path / 'x.safetensors'}'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL in diffusers layout."""
    return tiny_sdxl.write_model(tmp_path_factory.mktemp("sdxl") / "tiny")


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoCon of the tiny SDXL whose every module does something."""
    model, place = load_model(str(folder)), tmp_path_factory.mktemp("lora") / "lora.safetensors"
    network = create_network(1.0, 4, 3.0, None, model.text_encoder, model.unet, conv_dim="2")
    network.apply_to(model.text_encoder, model.unet, True, True)
    with torch.no_grad():
        for index, lora in enumerate(network.modules_of_both()):
            lora.lora_up.weight.copy_(0.1 * torch.randn(lora.lora_up.weight.shape, generator=stream(1, index)))
    write_lora(place, network.state_dict(), {}, "float")
    return place


@torch.no_grad()
def answers_of(model) -> tuple[Tensor, ...]:
    """UNet and both text encoders on fixed input."""
    tokens = torch.arange(77)[None]
    return unet_output(model.unet), *(one(tokens).last_hidden_state for one in model.text_encoder)


@pytest.mark.parametrize(("part", "moves"), [("lora_te1_", (False, True, False)), ("lora_te2_", (False, False, True)),
                                             ("lora_unet_", (True, False, False))])  # fmt: skip
def test_a_file_of_one_part_alone_changes_that_part_of_sdxl(
    folder: Path, file: Path, tmp_path: Path, part: str, moves: tuple[bool, ...]
) -> None:
    """As part of the base, and as the start of a training with its ranks."""
    alone = tmp_path / "alone.safetensors"
    save_file({name: value for name, value in load_file(file).items() if name.startswith(part)}, alone)
    base, whole, merged, started = (load_model(str(folder)) for _ in range(4))
    merge_base_weights(whole, [str(file)], [])
    merge_base_weights(merged, [str(alone)], [])
    rules = {**vars(pick(Config(), protocol.NetworkRules)), "network_weights": str(alone), "dim_from_weights": True}
    protocol.inject(protocol.NetworkRules(**rules), started, torch.device("cpu"), {})[0].eval()
    for model in (merged, started):
        rows = zip(answers_of(model), answers_of(base), answers_of(whole), moves, strict=True)
        for found, before, after, has_moved in rows:
            assert torch.allclose(found, after if has_moved else before, atol=1e-5)
            assert torch.equal(found, before) != has_moved


def test_a_text_encoder_alone_on_another_family_is_refused_with_the_way_out(
    folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    for prefix, base, family in (("lora_te_", folder, "SDXL"), ("lora_te1_", model_folder, "SD 1.x")):
        save_file(lora_of(f"{prefix}{LAYER}", width=16), tmp_path / "x.safetensors")
        with pytest.raises(
            InputError, match=rf"changes one text encoder alone, .*{prefix}.*\({family}\).* state it in"
        ):
            merge_base_weights(load_model(str(base)), [str(tmp_path / "x.safetensors")], [])


def test_comfyuis_names_are_the_same_lora(folder: Path, file: Path, tmp_path: Path) -> None:
    """Parts as its own model names them, with dots; diffusers does not know these names, and the check says so."""
    unet = load_model(str(folder)).unet
    paths = {"lora_unet_" + ldm_layout.unet_name(name, True).removeprefix("model.diffusion_model.")
             .removesuffix(".weight").replace(".", "_"): ldm_layout.unet_name(name, True).removesuffix(".weight")
             for name in unet.state_dict() if name.endswith(".weight")}  # fmt: skip
    text = re.compile(r"lora_te(\d)_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)\.(.*)")
    named = {}
    for name, value in load_file(file).items():
        module, _, part = name.partition(".")
        if found := text.fullmatch(name):
            encoder = "text_encoders.clip_" + {"1": "l", "2": "g"}[found[1]]
            path = f"{encoder}.transformer.text_model.encoder.layers.{found[2]}.{found[3]}.{found[4]}"
        else:
            path = paths[module].removeprefix("model.")
        named[f"{path}.{part}"] = value
    save_file(named, tmp_path / "comfy.safetensors")
    ours, theirs = read_lora(file).tensors, read_lora(tmp_path / "comfy.safetensors").tensors
    assert set(ours) == set(theirs) and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert {one.client for one in verdicts_of(named, theirs) if one.loads} == {"ComfyUI", "Forge"}


def test_sd_1_files_in_the_original_layout_get_diffusers_names() -> None:
    """Every place of the real UNet, the sampler without an attention before it included."""
    with torch.device("meta"):
        unet = unfilled_parts(SD1.settings, SD1)[0]
    for name in unet.state_dict():
        if name.endswith(".weight"):
            original = ldm_layout.unet_name(name).removeprefix("model.diffusion_model.").removesuffix(".weight")
            assert diffusers_name(original.replace(".", "_")) == name.removesuffix(".weight").replace(".", "_")


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_old_attention_processors_of_sdxl_are_read(folder: Path, file: Path, tmp_path: Path, prefix: str) -> None:
    """Attention layers of the UNet alone, under diffusers' first names, without alphas."""
    paths = {original_name(path.replace(".", "_")): path for path, _ in load_model(str(folder)).unet.named_modules()}
    named, wanted = {}, {}
    for name, value in load_file(file).items():
        module, _, part = name.partition(".")
        found = re.fullmatch(r"lora_unet_(\w+_attn[12]_to_(q|k|v|out)(_0)?)", module)
        if found and part != "alpha":
            path = paths[found[1]].rsplit(".to_", 1)[0]
            named[f"{prefix}{path}.processor.to_{found[2]}_lora.{part.removeprefix('lora_')}"] = wanted[name] = value
    save_file(named, tmp_path / "x.safetensors")
    lora = read_lora(tmp_path / "x.safetensors")
    assert wanted and family_name(lora.tensors) == "SDXL"
    assert {name for name in lora.tensors if not name.endswith(".alpha")} == set(wanted)
    assert all(torch.equal(lora.tensors[name], value) for name, value in wanted.items())
