"""The LoRA: where it goes, what it computes, and a file that every client loads."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from transformers import CLIPTextConfig, CLIPTextModel

from library.diffusion.families.sd1 import SD1
from library.diffusion.model_files import load_model
from library.errors import InputError
from library.lora_files.format import BrokenNetworkError, check_lora, write_lora
from library.lora_files.metadata import FileRules, is_allowed, network_facts, reduced
from library.options.declarations import Config
from library.rules import pick
from library.seeding import stream
from library.tensor_files import read_tensors, tensor_hash
from networks.lora import create_network, create_network_from_weights
from networks.lora_args import Dropouts
from networks.lora_module import LoRAModule
from networks.lora_targets import text_targets, unet_targets
from tests.helpers.tiny import unet_output

NO_DROPOUT = Dropouts(0.0, 0.0, 0.0)


def filled(model, rank: int = 3, alpha: float = 1.5):
    """A network in place, its up factors away from zero."""
    network = create_network(1.0, rank, alpha, model.vae, model.text_encoder, model.unet)
    network.apply_to(model.text_encoder, model.unet, True, True)
    with torch.no_grad():
        for index, lora in enumerate(network.modules_of_both()):
            lora.lora_up.weight.copy_(0.3 * torch.randn(lora.lora_up.weight.shape, generator=stream(1, index)))
    return network


def test_an_sd15_sized_model_has_exactly_264_modules_under_kohyas_names() -> None:
    """spec: 192 in the UNet, 72 in the text encoder, three tensors each; built without data."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD1.settings / "unet"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(SD1.settings / "text_encoder"))
        network = create_network(1.0, 16, 16, None, text_encoder, unet)
        network.apply_to(text_encoder, unet, True, True)
    assert (len(network.unet_loras), len(network.text_encoder_loras)) == (192, 72)
    names = set(network.state_dict())
    assert len(names) == 264 * 3
    inner = [
        "attn1_to_q",
        "attn1_to_k",
        "attn1_to_v",
        "attn1_to_out_0",
        "attn2_to_q",
        "attn2_to_k",
        "attn2_to_v",
        "attn2_to_out_0",
        "ff_net_0_proj",
        "ff_net_2",
    ]
    places = [f"down_blocks_{level}_attentions_{index}" for level in range(3) for index in range(2)]
    places += ["mid_block_attentions_0"]
    places += [f"up_blocks_{level}_attentions_{index}" for level in (1, 2, 3) for index in range(3)]
    modules = {
        f"lora_unet_{place}_{last}"
        for place in places
        for last in ["proj_in", "proj_out", *(f"transformer_blocks_0_{layer}" for layer in inner)]
    }
    modules |= {
        f"lora_te_text_model_encoder_layers_{layer}_{part}"
        for layer in range(12)
        for part in (
            "self_attn_q_proj",
            "self_attn_k_proj",
            "self_attn_v_proj",
            "self_attn_out_proj",
            "mlp_fc1",
            "mlp_fc2",
        )
    }
    assert names == {
        f"{module}.{part}" for module in modules for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    sizes = {
        "unet": sum(p.numel() for lora in network.unet_loras for p in lora.parameters()),
        "text": sum(p.numel() for lora in network.text_encoder_loras for p in lora.parameters()),
    }
    assert (
        round(sizes["unet"] / 1e6, 3) == 6.783 and round(sizes["text"] / 1e6, 3) == 2.654
    )  # the spec's table, rank 16


def test_a_module_adds_up_down_alpha_over_rank() -> None:
    layer = torch.nn.Linear(5, 7)
    lora = LoRAModule("x", layer, rank=2, alpha=3.0, dropouts=NO_DROPOUT, multiplier=0.5)
    torch.nn.init.normal_(lora.lora_up.weight)
    inputs = torch.randn(4, 5)
    expected = layer(inputs) + 0.5 * 1.5 * inputs @ lora.lora_down.weight.T @ lora.lora_up.weight.T
    lora.apply_to()
    assert torch.allclose(layer(inputs), expected, atol=1e-6)


def test_a_fresh_network_and_multiplier_zero_are_the_base_bit_for_bit(model_folder: Path) -> None:
    model = load_model(str(model_folder))
    base = unet_output(model.unet)
    network = create_network(1.0, 4, 4, model.vae, model.text_encoder, model.unet)
    network.apply_to(model.text_encoder, model.unet, True, True)
    assert torch.equal(unet_output(model.unet), base)
    with torch.no_grad():
        network.unet_loras[0].lora_up.weight.fill_(1.0)
    assert not torch.equal(unet_output(model.unet), base)
    network.set_multiplier(0.0)
    assert torch.equal(unet_output(model.unet), base)
    network.set_multiplier(1.0)
    network.remove()
    assert torch.equal(unet_output(model.unet), base)


def test_restricting_the_target_leaves_the_other_part_out_of_the_file(model_folder: Path) -> None:
    model = load_model(str(model_folder))
    network = create_network(1.0, 4, 4, model.vae, model.text_encoder, model.unet)
    network.apply_to(model.text_encoder, model.unet, False, True)
    assert all(name.startswith("lora_unet_") for name in network.state_dict())
    assert network.prepare_optimizer_params(1e-4, 0.0, 1e-4) == []


def test_learning_rates_fall_back_and_a_rate_of_zero_leaves_its_group_out(model_folder: Path) -> None:
    model = load_model(str(model_folder))
    network = filled(model)
    assert [group["lr"] for group in network.prepare_optimizer_params(None, 3e-4, 1e-5)] == [1e-5, 3e-4]
    assert [group["lr"] for group in network.prepare_optimizer_params(0.0, None, 1e-5)] == [1e-5]


@pytest.mark.parametrize(("precision", "tolerance"), [("float", 1e-6), ("fp16", 1e-3)])
def test_diffusers_own_loader_gives_the_trainers_output(
    model_folder: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    """The written file through ``load_lora_weights``: same UNet output, same text states, alpha unlike rank."""
    model = load_model(str(model_folder))
    network = filled(model)
    write_lora(tmp_path / "lora.safetensors", network.state_dict(), {}, precision)
    ours = unet_output(model.unet)
    tokens = torch.arange(77)[None]
    with torch.no_grad():
        text = model.text_encoder(tokens).last_hidden_state
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, local_files_only=True, safety_checker=None)
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert (unet_output(pipeline.unet) - ours).norm() < tolerance * ours.norm()
    with torch.no_grad():
        theirs = pipeline.text_encoder(tokens).last_hidden_state
    assert (theirs - text).norm() < tolerance * text.norm()


def test_a_file_reloads_into_the_same_network(model_folder: Path, tmp_path: Path) -> None:
    model = load_model(str(model_folder))
    network = filled(model)
    write_lora(tmp_path / "lora.safetensors", network.state_dict(), {}, "float")
    ours = unet_output(model.unet)
    network.remove()
    again, weights = create_network_from_weights(
        1.0, tmp_path / "lora.safetensors", model.vae, model.text_encoder, model.unet
    )
    again.apply_to(model.text_encoder, model.unet, True, True)
    again.load_state_dict(weights)
    assert torch.allclose(unet_output(model.unet), ours, atol=1e-6)


def test_a_lora_of_another_model_is_refused_by_name(model_folder: Path) -> None:
    model = load_model(str(model_folder))
    wrong = {
        "lora_unet_nowhere.lora_down.weight": torch.zeros(2, 3),
        "lora_unet_nowhere.lora_up.weight": torch.zeros(3, 2),
    }
    with pytest.raises(InputError, match="'lora_unet_nowhere'"):
        create_network_from_weights(1.0, "x", model.vae, model.text_encoder, model.unet, weights_sd=wrong)
    name = next(iter(unet_targets(model.unet)))
    with pytest.raises(InputError, match="made for another base model"):
        create_network_from_weights(
            1.0,
            "x",
            model.vae,
            model.text_encoder,
            model.unet,
            weights_sd={f"{name}.lora_down.weight": torch.zeros(2, 99)},
        )


def test_the_writer_refuses_what_clients_would_misread(model_folder: Path) -> None:
    good = {name: value.detach() for name, value in filled(load_model(str(model_folder))).state_dict().items()}
    check_lora(good)
    name = next(name for name in good if name.endswith(".alpha"))
    for change in (
        {name: torch.tensor(1)},
        {name: torch.ones(1)},
        {name: torch.tensor(torch.nan)},
        {"text_model.encoder.x.alpha": torch.tensor(1.0)},
    ):
        with pytest.raises(BrokenNetworkError):
            check_lora(good | change)
    with pytest.raises(BrokenNetworkError):
        check_lora({key: value for key, value in good.items() if key != name})


def test_alphas_are_zero_dimensional_and_floating_and_the_hash_is_of_the_tensor_bytes(
    model_folder: Path, tmp_path: Path
) -> None:
    network = filled(load_model(str(model_folder)))
    stated = {"ss_network_dim": "3", "ss_network_alpha": "1.5", "ss_network_args": "{}"}
    facts = network_facts(pick(Config(), FileRules), stated, (512, 512), SD1.version, "epsilon", {})
    write_lora(tmp_path / "lora.safetensors", network.state_dict(), facts, "fp16")
    tensors, metadata = read_tensors(tmp_path / "lora.safetensors")
    assert all(value.dtype == torch.float16 for value in tensors.values())
    assert all(value.dim() == 0 for name, value in tensors.items() if name.endswith(".alpha"))
    assert metadata["sshs_model_hash"] == tensor_hash(tensors)
    assert len(metadata["sshs_legacy_hash"]) == 8
    assert metadata["ss_v2"] == "False" and metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    with safe_open(str(tmp_path / "lora.safetensors"), framework="pt") as file:
        assert json.loads(file.metadata()["ss_network_args"]) == {}


def test_metadata_is_an_allow_list() -> None:
    facts = {"ss_v2": "False", "ss_tag_frequency": "{...}", "ss_privacy_method": "PLoRA", "ss_output_name": "anna"}
    assert set(reduced(facts, no_metadata=False, full=False)) == {"ss_v2", "ss_privacy_method"}
    assert set(reduced(facts, no_metadata=True, full=True)) == {"ss_v2"}
    assert set(reduced(facts, no_metadata=False, full=True)) == set(facts)
    assert not is_allowed("ss_dataset_dirs") and not is_allowed("modelspec.description")


def test_text_names_come_from_a_table_whatever_the_module_tree_is_called(model_folder: Path) -> None:
    """transformers below 5.6 nests a text_model level; the names must not change."""
    text_encoder = load_model(str(model_folder)).text_encoder
    nested = torch.nn.Module()
    nested.text_model = getattr(text_encoder, "text_model", text_encoder)
    names = list(text_targets(text_encoder, SD1.texts[0].lora_prefix))
    assert list(text_targets(nested, SD1.texts[0].lora_prefix)) == names
    assert all(name.startswith("lora_te_text_model_encoder_layers_") for name in names)
