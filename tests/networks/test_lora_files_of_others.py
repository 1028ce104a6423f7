"""LoRA files that other libraries write, merged by the suite: the same layers as in the library's own model."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from library.diffusion.model_files import load_model
from library.lora_files.lora_file import LoraFile, read_lora
from library.options.declarations import Config
from library.rules import pick
from networks import protocol
from networks.base_weights import merge_base_weights
from tests.helpers.lora_files import moved
from tests.helpers.tiny import unet_output

UNET_LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.2"]
TEXT_LAYERS = ["q_proj", "v_proj", "fc1"]


def text_output(text_encoder: nn.Module) -> Tensor:
    """The text encoder on fixed tokens."""
    with torch.no_grad():
        return text_encoder(torch.arange(20)[None]).last_hidden_state


def expect_same(model_folder: Path, file: Path, unet: Tensor | None, text: Tensor | None) -> LoraFile:
    """Merge the file into the model; its parts must then answer as given (None: as before) and not as before."""
    model, base = load_model(str(model_folder)), load_model(str(model_folder))
    merge_base_weights(model, [str(file)], [])
    before = unet_output(base.unet), text_output(base.text_encoder)
    for given, ours, old in zip((unet, text), (unet_output(model.unet), text_output(model.text_encoder)), before,
                                strict=True):  # fmt: skip
        wanted = old if given is None else given
        assert (ours - wanted).norm() <= 1e-5 * wanted.norm()
        assert given is None or (given - old).norm() > 1e-3 * old.norm()
    return read_lora(file)


def adapted_parts(model_folder: Path, **more: object):
    """UNet and text encoder with peft's LoRA in both, as diffusers' scripts put it in."""
    model = load_model(str(model_folder))
    settings = {"r": 3, "lora_alpha": 5, **more}
    model.unet.add_adapter(LoraConfig(target_modules=UNET_LAYERS, **settings))
    model.text_encoder.add_adapter(LoraConfig(target_modules=TEXT_LAYERS, **settings))
    for part in (model.unet, model.text_encoder):
        moved(part)
        part.eval()
    return model, get_peft_model_state_dict(model.unet), get_peft_model_state_dict(model.text_encoder)


@pytest.mark.parametrize(
    "more", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["LoRA", "DoRA", "rank-stabilised"]
)
def test_todays_diffusers_file_with_a_text_encoder(model_folder: Path, tmp_path: Path, more: dict) -> None:
    """The header states alpha; the text encoder's names have no text_model level with transformers 5.6 and later."""
    model, unet, text = adapted_parts(model_folder, **more)
    wanted = unet_output(model.unet), text_output(model.text_encoder)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, convert_state_dict_to_diffusers(unet), convert_state_dict_to_diffusers(text),
        unet_lora_adapter_metadata=model.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=model.text_encoder.peft_config["default"].to_dict(),
    )  # fmt: skip
    file = tmp_path / "pytorch_lora_weights.safetensors"
    lora = expect_same(model_folder, file, *wanted)
    assert lora.kinds == ({"LoRA", "DoRA"} if "use_dora" in more else {"LoRA"})
    tensors = load_file(file)
    with_level = {re.sub(r"^text_encoder\.(text_model\.)?", "text_encoder.text_model.", name): value
                  for name, value in tensors.items()}  # fmt: skip
    without = {name.replace("text_encoder.text_model.", "text_encoder."): value for name, value in with_level.items()}
    for other in (with_level, without):
        save_file(other, tmp_path / "other.safetensors", metadata=dict(lora.metadata))
        found = read_lora(tmp_path / "other.safetensors").tensors
        assert set(found) == set(lora.tensors)
        assert all(torch.equal(value, lora.tensors[name]) for name, value in found.items())


def older(name: str) -> str:
    """A name of today's diffusers as its older versions wrote it."""
    return name.replace("lora_A.weight", "lora.down.weight").replace("lora_B.weight", "lora.up.weight")


def processors(name: str) -> str:
    """A name of an attention layer as an ``attn_procs`` file has it."""
    return re.sub(r"\.(to_[qkv]|to_out)(\.0)?\.lora\.", r".processor.\1_lora.", older(name))


def linear_layers(name: str) -> str:
    """A name of a text encoder as older diffusers wrote it."""
    return older(name).replace(".lora.", ".lora_linear_layer.")


@pytest.mark.parametrize(
    ("unet_name", "text_name"),
    [(lambda name: f"unet.{older(name)}", lambda name: f"text_encoder.{linear_layers(name)}"),
     (processors, None), (lambda name: f"unet.{processors(name)}", None),
     (lambda name: f"base_model.model.{name}", lambda name: f"base_model.model.{name}")],
    ids=["lora.down", "attn_procs", "attn_procs with prefix", "peft names"],
)  # fmt: skip
def test_older_namings_are_the_same_lora(
    model_folder: Path, tmp_path: Path, unet_name: Callable[[str], str], text_name: Callable[[str], str] | None
) -> None:
    """Without a stated alpha it is the rank."""
    model, unet, text = adapted_parts(model_folder, lora_alpha=3)
    wanted = unet_output(model.unet), text_output(model.text_encoder) if text_name else None
    tensors = {unet_name(name): value for name, value in unet.items()}
    tensors |= {text_name(name): value for name, value in text.items()} if text_name else {}
    save_file(tensors, tmp_path / "x.safetensors")
    assert expect_same(model_folder, tmp_path / "x.safetensors", *wanted).kinds == {"LoRA"}


@pytest.mark.parametrize("naming", ["diffusers", "attn_procs", "peft folder"])
def test_a_training_starts_from_a_file_that_another_library_wrote(
    model_folder: Path, tmp_path: Path, naming: str
) -> None:
    """With the file's ranks and alphas, and with those of the network where they are the same."""
    model, unet, _ = adapted_parts(model_folder, lora_alpha=3)
    file = tmp_path / "x.safetensors"
    if naming == "peft folder":
        file = tmp_path / "peft"
        file.mkdir()
        (file / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 3}')
        save_file({f"base_model.model.{name}": one for name, one in unet.items()}, file / "adapter_model.safetensors")
    else:
        rename = processors if naming == "attn_procs" else lambda name: f"unet.{name}"
        save_file({rename(name): value for name, value in unet.items()}, file)
    for chosen in ({"dim_from_weights": True}, {"network_dim": 3, "network_alpha": 3.0}):
        rules = replace(pick(Config(), protocol.NetworkRules), network_weights=str(file), **chosen)
        ours = load_model(str(model_folder))
        protocol.inject(rules, ours, torch.device("cpu"), {})
        assert (unet_output(ours.unet) - unet_output(model.unet)).norm() <= 1e-5 * unet_output(model.unet).norm()


@pytest.mark.parametrize("numbered", [False, True], ids=["lora_te", "lora_te1"])
def test_kohyas_names_as_diffusers_writes_them(model_folder: Path, tmp_path: Path, numbered: bool) -> None:
    """lora_te1 on SD 1.x, int64 alphas of shape [1], no alphas, bf16: one LoRA."""
    model, unet, text = adapted_parts(model_folder, lora_alpha=3)
    wanted = unet_output(model.unet), text_output(model.text_encoder)
    both = {f"unet.{name}": value for name, value in unet.items()}
    both |= {f"text_encoder.{name}": value for name, value in text.items()}
    tensors = convert_state_dict_to_kohya(both)
    tensors = {name.replace("lora_te1_", "lora_te1_" if numbered else "lora_te_"): value.clone()
               for name, value in tensors.items()}  # fmt: skip
    assert any(name.startswith(f"lora_te{'1' if numbered else ''}_encoder") for name in tensors)
    ranks = {"int64": torch.tensor(3), "[1]": torch.tensor([3.0]), "bf16": torch.tensor(3.0).bfloat16(), "none": None}
    for name, alpha in ranks.items():
        changed = {key: value for key, value in tensors.items() if not key.endswith("alpha")}
        if alpha is not None:
            changed |= {key: alpha.clone() for key in tensors if key.endswith("alpha")}
        save_file(changed, tmp_path / f"{name}.safetensors")
        found = expect_same(model_folder, tmp_path / f"{name}.safetensors", *wanted).tensors
        assert all(value.dim() == 0 for key, value in found.items() if key.endswith("alpha"))
    save_file({name: value.bfloat16() for name, value in tensors.items() if value.dim()}, tmp_path / "half.safetensors")
    assert read_lora(tmp_path / "half.safetensors").tensors.keys() == found.keys()


CONFIGS = {
    "LoRA": LoraConfig(r=3, lora_alpha=5, target_modules=[*UNET_LAYERS, "conv1"], alpha_pattern={"attn1.to_q": 2},
                       rank_pattern={"attn1.to_q": 4}),
    "DoRA": LoraConfig(r=3, lora_alpha=5, target_modules=[*UNET_LAYERS, "conv1"], use_dora=True),
    "LoHa": LoHaConfig(r=3, alpha=5, target_modules=[*UNET_LAYERS, "conv1"], use_effective_conv2d=True),
    "LoKr": LoKrConfig(r=2, alpha=5, target_modules=[*UNET_LAYERS, "conv1"], use_effective_conv2d=True),
    "LoKr in full": LoKrConfig(r=64, alpha=16, target_modules=UNET_LAYERS),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_peft_folder_gives_what_peft_computes(model_folder: Path, tmp_path: Path, kind: str) -> None:
    """alpha, rank and their exceptions come from its adapter_config.json."""
    adapted = get_peft_model(load_model(str(model_folder)).unet, CONFIGS[kind]).eval()
    moved(adapted)
    adapted.save_pretrained(tmp_path / "unet")
    wanted = unet_output(adapted)
    lora = expect_same(model_folder, tmp_path / "unet", wanted, None)
    assert lora.kinds & {"LoRA", "LoHa", "LoKr"} == {kind.split()[0].replace("DoRA", "LoRA")}
    assert ("DoRA" in lora.kinds) == (kind == "DoRA")
    assert read_lora(tmp_path).tensors.keys() == lora.tensors.keys()  # the folder around it, with a part's name


def test_a_peft_folder_of_both_parts(model_folder: Path, tmp_path: Path) -> None:
    model = load_model(str(model_folder))
    parts = {"unet": (model.unet, UNET_LAYERS), "text_encoder": (model.text_encoder, TEXT_LAYERS)}
    for name, (part, layers) in parts.items():
        adapted = get_peft_model(part, LoraConfig(r=2, lora_alpha=7, target_modules=layers)).eval()
        moved(adapted)
        adapted.save_pretrained(tmp_path / name)
    expect_same(model_folder, tmp_path, unet_output(model.unet), text_output(model.text_encoder))
    config = tmp_path / "unet" / "adapter_config.json"
    assert json.loads(config.read_text())["lora_alpha"] == 7
