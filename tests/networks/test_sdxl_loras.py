"""LoRAs of SDXL: names and counts of kohya's, files that clients load, files of other writers that are read here."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

from library.diffusion.families.sdxl import SDXL
from library.diffusion.model_files import load_model
from library.diffusion.single_file import open_single_file, unfilled_parts
from library.errors import InputError
from library.lora_files.clients import CLIENTS, verdicts_of
from library.lora_files.families import check_width
from library.lora_files.format import check_lora, modules_of, with_client_names, write_lora
from library.lora_files.lora_file import read_lora
from library.lora_files.sdxl_names import diffusers_name, original_name
from library.seeding import stream
from networks import check_lora_weights, extract_lora_from_models, merge_lora, resize_lora
from networks.adapted_layers import untrained_network
from networks.base_weights import merge_base_weights
from networks.checkpoints.layers import open_base_checkpoint
from networks.lora import create_network, create_network_from_weights
from networks.lora_targets import named_layers
from networks.weight_change import weight_change
from tests.helpers import ldm_layout, tiny_sdxl
from tests.helpers.tiny_sdxl import unet_output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL in diffusers layout."""
    return tiny_sdxl.write_model(tmp_path_factory.mktemp("sdxl") / "tiny")


@pytest.fixture(scope="module")
def real():
    """UNet and text encoders of the published sizes, and a LoCon on them, without data."""
    with torch.device("meta"):
        unet, _, *text_encoders = unfilled_parts(SDXL.settings, SDXL)
        network = create_network(1.0, 4, 4, None, text_encoders, unet, conv_dim="4")
        network.apply_to(text_encoders, unet, True, True)
    return unet, text_encoders, network


def filled(model, **arguments: str):
    """A network in place whose every module does something; alpha unlike rank."""
    network = create_network(1.0, 4, 3.0, None, model.text_encoder, model.unet, **arguments)
    network.apply_to(model.text_encoder, model.unet, True, True)
    with torch.no_grad():
        for index, lora in enumerate(network.modules_of_both()):
            lora.lora_up.weight.copy_(0.1 * torch.randn(lora.lora_up.weight.shape, generator=stream(1, index)))
    return network


def change_of(folder: Path, file: Path) -> torch.Tensor:
    """The UNet's output with a file merged into a fresh model."""
    model = load_model(str(folder))
    merge_base_weights(model, [str(file)], [])
    return unet_output(model.unet)


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A LoCon of the tiny SDXL: its file, the UNet's output and the first caption's states with it."""
    model, place = load_model(str(folder)), tmp_path_factory.mktemp("lora")
    network = filled(model, conv_dim="2", conv_alpha="3")
    write_lora(place / "lora.safetensors", network.state_dict(), {}, "float")
    return place / "lora.safetensors", unet_output(model.unet), states_of(model.text_encoder)


@torch.no_grad()
def states_of(text_encoders) -> torch.Tensor:
    """Both encoders on fixed tokens."""
    tokens = torch.arange(77)[None]
    return torch.cat([one(tokens, output_hidden_states=True).hidden_states[-2] for one in text_encoders], dim=-1)


def test_a_model_of_the_published_size_has_kohyas_722_72_and_192_modules(real) -> None:
    unet, text_encoders, network = real
    names = {lora.lora_name for lora in network.modules_of_both()}
    plain = create_network(1.0, 4, 4, None, text_encoders, unet)
    counts = {prefix: sum(one.lora_name.startswith(prefix) for one in plain.text_encoder_loras)
              for prefix in ("lora_te1_text_model_encoder_layers_", "lora_te2_text_model_encoder_layers_")}  # fmt: skip
    assert (len(plain.unet_loras), *counts.values()) == (722, 72, 192)
    assert sum(one.numel() for lora in plain.unet_loras for one in lora.parameters()) * 8 == pytest.approx(
        85.1e6, 0.001
    )
    assert len(names) == len(network.modules_of_both()) == 722 + 264 + 66  # 17 resnets, 11 shortcuts, 4 samplers
    assert "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_k" in names
    assert {
        "lora_unet_middle_block_1_proj_in", "lora_unet_output_blocks_2_2_conv", "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_4_0_skip_connection", "lora_unet_output_blocks_8_0_emb_layers_1",
    } <= names  # fmt: skip
    assert not [name for name in names if "_blocks_0_attentions" in name or "resnets" in name]


def test_kohyas_blocks_of_sdxl_are_counted_from_the_embeddings_to_the_output(real) -> None:
    unet, _, network = real
    blocks = network.blocks
    assert (blocks.total, blocks.down, blocks.mid, blocks.up) == (23, 9, 3, 9)
    places = {"input_blocks_4_1_proj_in": 5, "input_blocks_8_0_in_layers_2": 9, "middle_block_1_proj_in": 11,
              "output_blocks_0_0_in_layers_2": 13, "output_blocks_8_0_in_layers_2": 21, "out_2": 22}  # fmt: skip
    assert {name: blocks.index_of(f"lora_unet_{name}") for name in places} == places


def test_both_namings_of_the_unet_translate_into_each_other(real) -> None:
    unet = real[0]
    paths = [name.removesuffix(".weight") for name in unet.state_dict() if name.endswith(".weight")]
    flat = [path.replace(".", "_") for path in paths]
    assert [diffusers_name(original_name(one)) for one in flat] == flat
    assert [original_name(one) for one in flat] == [
        ldm_layout.unet_name(f"{path}.weight", True).removeprefix("model.diffusion_model.")
        .removesuffix(".weight").replace(".", "_") for path in paths
    ]  # fmt: skip


def test_the_key_maps_of_comfyui_forge_and_a1111_leave_nothing_unmatched(real) -> None:
    """They look up the checkpoint's own names; of bigG A1111 those of OpenCLIP, the others those of transformers."""
    unet, text_encoders, network = real
    names = {lora.lora_name for lora in network.modules_of_both()}
    keys = [ldm_layout.unet_name(name, True) for name in unet.state_dict() if name.endswith(".weight")]
    comfy = {"lora_unet_" + key.removeprefix("model.diffusion_model.").removesuffix(".weight").replace(".", "_")
             for key in keys}  # fmt: skip
    layers = ("mlp_fc1", "mlp_fc2", "self_attn_k_proj", "self_attn_q_proj", "self_attn_v_proj", "self_attn_out_proj")
    for te, depth in ((1, 12), (2, 32)):
        comfy |= {f"lora_te{te}_text_model_encoder_layers_{at}_{layer}" for at in range(depth) for layer in layers}
    assert names - comfy == set()
    open_clip = {"mlp_fc1": "mlp_c_fc", "mlp_fc2": "mlp_c_proj", "self_attn_out_proj": "attn_out_proj"}
    known = {key.removeprefix("model.").removesuffix(".weight").replace(".", "_") for key in keys}
    known |= {f"1_model_transformer_resblocks_{at}_{part}" for at in range(32)
              for part in ("mlp_c_fc", "mlp_c_proj", "attn_out_proj", "attn")}  # fmt: skip
    known |= {f"0_transformer_text_model_encoder_layers_{at}_{layer}" for at in range(12) for layer in layers}
    looked_up = set()
    for name in names:
        if found := re.fullmatch(r"lora_te2_text_model_encoder_layers_(\d+)_(\w+)", name):
            part = open_clip.get(found[2], "attn")  # queries, keys and values are thirds of one matrix
            looked_up.add(f"1_model_transformer_resblocks_{found[1]}_{part}")
        else:
            looked_up.add(name.replace("lora_te1_", "0_transformer_").replace("lora_unet_", "diffusion_model_"))
    assert looked_up - known == set()


def test_the_key_map_of_invokeai_leaves_nothing_unmatched(real) -> None:
    """It turns the original names into diffusers' ones by the longest place it knows, then walks the modules."""
    unet, text_encoders, network = real
    modules = {path.replace(".", "_") for path, _ in unet.named_modules()}
    for number, one in enumerate(text_encoders, 1):
        paths = [path.removeprefix("text_model.") for path, _ in one.named_modules()]
        modules |= {f"lora_te{number}_text_model_{path.replace('.', '_')}" for path in paths}
    places = {original_name(path): path for path in modules if not path.startswith("lora_")}
    for lora in network.modules_of_both():
        name = lora.lora_name.removeprefix("lora_unet_")
        assert name in modules or places[name] in modules, name


def test_every_client_loads_a_file_of_the_suite_by_the_verdicts(real) -> None:
    tensors = dict(real[2].state_dict())
    assert [(one.client, one.loads) for one in verdicts_of(tensors, tensors)] == [(client, True) for client in CLIENTS]
    second = {name: value for name, value in tensors.items() if name.startswith("lora_te2_")}
    assert all(one.loads for one in verdicts_of(second, second))
    raw = {name.replace("_text_model_", "_"): value for name, value in tensors.items()}
    assert {one.client for one in verdicts_of(raw, tensors) if one.loads} == {"diffusers"}


def test_diffusers_own_loader_gives_the_trainers_output(folder: Path, written) -> None:
    """LoRA and LoCon through ``load_lora_weights``: same UNet output, same states of both text encoders."""
    file, ours, states = written
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.load_lora_weights(file.parent, weight_name=file.name)
    assert (unet_output(pipeline.unet) - ours).norm() < 1e-5 * ours.norm()
    theirs = states_of([pipeline.text_encoder, pipeline.text_encoder_2])
    assert (theirs - states).norm() < 1e-5 * states.norm()


def test_a_file_reloads_into_the_same_network(folder: Path, written) -> None:
    file, ours, _ = written
    model = load_model(str(folder))
    again, weights = create_network_from_weights(
        1.0, file, None, model.text_encoder, model.unet, read_lora(file).tensors
    )
    again.apply_to(model.text_encoder, model.unet, True, True)
    again.load_state_dict(weights)
    assert torch.allclose(unet_output(model.unet), ours, atol=1e-6)


def of_others(file: Path, unet) -> dict[str, dict[str, torch.Tensor]]:
    """The file's LoRA as other programs write it, by writer; every module has the scale 1 there."""
    raw = load_file(file)
    scaled = {}
    for name, value in raw.items():
        module, _, part = name.partition(".")
        if part != "alpha":
            ratio = float(raw[f"{module}.alpha"]) / raw[f"{module}.lora_down.weight"].shape[0]
            scaled[name] = value * ratio if part == "lora_up.weight" else value
    layers = {f"lora_unet_{original_name(path.replace('.', '_'))}": f"unet.{path}" for path, _ in unet.named_modules()}
    text = r"lora_te(\d)_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)"

    def path_of(module: str) -> str:
        if found := re.fullmatch(text, module):
            number = "" if found[1] == "1" else "_2"
            return f"text_encoder{number}.text_model.encoder.layers.{found[2]}.{found[3]}.{found[4]}"
        return layers[module]

    def named(down: str, up: str) -> dict[str, torch.Tensor]:
        ways = {"lora_down.weight": down, "lora_up.weight": up}
        parted = [(name.partition(".")[0], name.partition(".")[2], value) for name, value in scaled.items()]
        return {f"{path_of(module)}.{ways[part]}": value for module, part, value in parted}

    in_diffusers = {
        re.sub("^lora_unet_([a-z_0-9]+)", lambda found: f"lora_unet_{diffusers_name(found[1])}", name): value
        for name, value in scaled.items()
    }
    return {
        "kohya without alphas": scaled,
        "kohya's prefixes on diffusers' names": in_diffusers,
        "today's diffusers and peft": named("lora_A.weight", "lora_B.weight"),
        "older diffusers": named("lora.down.weight", "lora.up.weight"),
    }


@pytest.mark.parametrize("writer", ["kohya without alphas", "kohya's prefixes on diffusers' names",
                                    "today's diffusers and peft", "older diffusers"])  # fmt: skip
def test_files_of_other_writers_change_the_model_alike(folder: Path, written, tmp_path: Path, writer: str) -> None:
    file, ours, _ = written
    save_file(of_others(file, load_model(str(folder)).unet)[writer], tmp_path / "other.safetensors")
    found = read_lora(tmp_path / "other.safetensors")
    assert set(found.tensors) == set(load_file(file)) and found.kinds == {"LoRA"}
    check_lora(found.tensors)
    assert torch.allclose(change_of(folder, tmp_path / "other.safetensors"), ours, atol=1e-5)


def test_what_diffusers_own_converter_writes_for_kohya_is_read(folder: Path, written, tmp_path: Path) -> None:
    """It takes today's names and writes lora_te1_ and lora_te2_, and the UNet's layers as diffusers names them."""
    file, ours, _ = written
    today = of_others(file, load_model(str(folder)).unet)["today's diffusers and peft"]
    save_file({k: v.contiguous() for k, v in convert_state_dict_to_kohya(today).items()}, tmp_path / "k.safetensors")
    assert torch.allclose(change_of(folder, tmp_path / "k.safetensors"), ours, atol=1e-5)


def test_a_peft_folder_with_one_part_for_each_model_is_read(folder: Path, written, tmp_path: Path) -> None:
    file, ours, _ = written
    today = of_others(file, load_model(str(folder)).unet)["today's diffusers and peft"]
    for part in ("unet", "text_encoder", "text_encoder_2"):
        place = tmp_path / "peft" / part
        place.mkdir(parents=True)
        inner = {f"base_model.model.{name.removeprefix(f'{part}.')}": value for name, value in today.items()
                 if name.startswith(f"{part}.")}  # fmt: skip
        save_file(inner, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert torch.allclose(change_of(folder, tmp_path / "peft"), ours, atol=1e-5)


def test_alphas_stated_in_a_header_belong_to_their_text_encoder(tmp_path: Path) -> None:
    name = "text_encoder{}.text_model.encoder.layers.0.mlp.fc1.lora_{}.weight"
    tensors = {name.format(number, side): torch.ones(2, 2) for number in ("", "_2") for side in "AB"}
    stated = {"text_encoder.lora_alpha": 8, "text_encoder_2.lora_alpha": 3}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(stated)})
    found = read_lora(tmp_path / "x.safetensors").tensors
    alphas = {key[:8]: float(value) for key, value in found.items() if key.endswith("alpha")}
    assert alphas == {"lora_te1": 8.0, "lora_te2": 3.0}


def test_a_lycoris_network_on_sdxl_is_written_in_the_clients_names_and_asked_by_the_audit(folder: Path) -> None:
    """LyCORIS names layers after diffusers' modules; the written file has the original ones."""
    lycoris = pytest.importorskip("lycoris.kohya")
    model = load_model(str(folder))
    network = lycoris.create_network(1.0, 2, 2.0, None, model.text_encoder, model.unet, algo="loha", preset="attn-mlp")
    network.apply_to(model.text_encoder, model.unet, True, True)
    state = with_client_names({name: value.detach() for name, value in network.state_dict().items()})
    check_lora(state)
    modules = {name.partition(".")[0] for name in state}
    assert modules <= set(named_layers(model.unet, model.text_encoder)) and any("lora_te2_" in one for one in modules)
    assert len(untrained_network("x", load_model(str(folder)).unet, model.text_encoder, state).layers) == len(modules)


def test_loras_and_bases_of_two_families_are_told_apart_in_one_sentence(
    folder: Path, model_folder: Path, written, tmp_path: Path
) -> None:
    file = written[0]
    small = load_model(str(model_folder))
    network = create_network(1.0, 2, 2, None, small.text_encoder, small.unet)
    network.apply_to(small.text_encoder, small.unet, True, True)
    write_lora(tmp_path / "sd1.safetensors", network.state_dict(), {}, "float")
    for lora, base, names in ((file, model_folder, r"\(SDXL\), this base model has 16 \(SD 1.x\)"),
                              (tmp_path / "sd1.safetensors", folder, r"this base model has 40 \(SDXL\)")):  # fmt: skip
        with pytest.raises(InputError, match=f"base_weights .*made for another base model: .*{names}") as caught:
            merge_base_weights(load_model(str(base)), [str(lora)], [])
        assert len(str(caught.value).splitlines()) == 1
    unet_alone = {name: value for name, value in load_file(file).items() if name.startswith("lora_te")}
    with pytest.raises(InputError, match=r"made for another base model \(SDXL\), this base model has 16 \(SD 1.x\)"):
        check_width("x", unet_alone, 16, "SD 1.x")


def test_the_tools_work_on_sdxl(folder: Path, written, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Merge into a checkpoint, extract what was merged, resize, check; an SD 1.x LoRA beside it is refused."""
    file, ours, _ = written
    merged, back, small = tmp_path / "merged", tmp_path / "back.safetensors", tmp_path / "small.safetensors"
    assert merge_lora.main(["--sd_model", str(folder), "--sdxl", "--models", str(file), "--save_to", str(merged)]) == 0
    assert torch.allclose(unet_output(load_model(str(merged)).unet), ours, atol=1e-5)
    words = ["--model_org", str(folder), "--model_tuned", str(merged), "--save_to", str(back), "--sdxl"]
    assert extract_lora_from_models.main([*words, "--dim", "4", "--conv_dim", "4", "--min_diff", "0"]) == 0
    assert torch.allclose(change_of(folder, back), ours, atol=1e-4)
    assert resize_lora.main(["--model", str(back), "--save_to", str(small), "--new_rank", "2"]) == 0
    capsys.readouterr()
    assert check_lora_weights.main([str(back), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "SDXL" and facts["clients"]["diffusers"]["loads"] and facts["faults"] == []
    metadata = read_lora(small).metadata
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0" and "generative-models" in str(metadata)
    with pytest.raises(InputError, match="v2 is set, but .* is an SDXL model"):
        merge_lora.main(["--sd_model", str(folder), "--v2", "--models", str(file), "--save_to", str(tmp_path / "x")])


def test_a_single_file_in_the_original_layout_is_merged_extracted_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Narrow, of the real layout; bigG's queries, keys and values are thirds of one matrix there."""
    settings, file, (unet, _, *text_encoders) = tiny_sdxl.write_file(tmp_path)
    for tool in (merge_lora, extract_lora_from_models):
        monkeypatch.setattr(tool, "open_base_checkpoint", lambda path: open_base_checkpoint(path, settings))
    network = create_network(1.0, 2, 3.0, None, text_encoders, unet, conv_dim="2")
    with torch.no_grad():
        for index, one in enumerate(network.modules_of_both()):
            one.lora_up.weight.copy_(0.1 * torch.randn(one.lora_up.weight.shape, generator=stream(1, index)))
    network.apply_to(text_encoders, unet, True, True)
    lora, merged, back = (tmp_path / f"{name}.safetensors" for name in ("lora", "merged", "back"))
    write_lora(lora, network.state_dict(), {}, "float")
    ours, states = unet_output(unet), states_of(text_encoders)
    before = load_file(file)
    assert merge_lora.main(["--sd_model", str(file), "--sdxl", "--models", str(lora), "--save_to", str(merged)]) == 0
    after = load_file(merged)
    assert {name: value.shape for name, value in after.items()} == {name: value.shape for name, value in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in load_file(file).items())
    opened = open_single_file(merged, torch.float32, settings)
    assert torch.allclose(unet_output(opened.unet), ours, atol=1e-5)
    assert torch.allclose(states_of(opened.text_encoder), states, atol=1e-5)
    words = [
        "--model_org",
        str(file),
        "--model_tuned",
        str(merged),
        "--save_to",
        str(back),
        "--sdxl",
        "--min_diff",
        "0",
    ]
    assert extract_lora_from_models.main([*words, "--dim", "2", "--conv_dim", "2"]) == 0
    wanted, found = modules_of(read_lora(lora).tensors), modules_of(read_lora(back).tensors)
    assert set(wanted) == set(found)
    for name, parts in wanted.items():
        weight = torch.zeros(parts["lora_up.weight"].shape[0], *parts["lora_down.weight"].shape[1:])
        one, other = weight_change(parts, weight), weight_change(found[name], weight)
        assert float((one - other).norm()) <= 1e-4 * float(one.norm()), name
    capsys.readouterr()
    assert check_lora_weights.main([str(back), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "SDXL" and facts["modules"] == len(wanted) and facts["rank"] == "2"
    assert {client for client, verdict in facts["clients"].items() if verdict["loads"]} == set(CLIENTS)
