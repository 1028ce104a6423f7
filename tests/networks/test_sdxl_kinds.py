"""LyCORIS networks on SDXL: every kind as start, in the base, in the tools and in the audit, in every naming."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from library.audit.queries.audited_model import with_adapter
from library.audit.targets.provenance import read_adapter
from library.diffusion.model_files import load_model
from library.errors import InputError
from library.lora_files.format import modules_of, write_lora
from library.lora_files.lora_file import read_lora
from library.lora_files.sdxl_names import diffusers_name
from library.options.declarations import Config
from library.rules import pick
from library.seeding import stream
from networks import check_lora_weights, extract_lora_from_models, merge_lora, protocol, resize_lora
from networks.base_weights import merge_base_weights
from networks.checkpoints.layers import open_base_checkpoint
from networks.weight_change import weight_change
from tests.helpers import tiny_sdxl
from tests.helpers.lora_files import moved
from tests.helpers.tiny_sdxl import unet_output

pytest.importorskip("lycoris.kohya")
CPU = torch.device("cpu")
SETTINGS = {"clip_skip": 1, "max_token_length": 75, "weighted_captions": False}
KINDS = {
    "LoCon": ["algo=locon", "conv_dim=2"],
    "DoRA": ["algo=locon", "conv_dim=2", "dora_wd=True"],
    "LoHa": ["algo=loha", "conv_dim=2"],
    "LoKr": ["algo=lokr", "factor=4"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL in diffusers layout."""
    return tiny_sdxl.write_model(tmp_path_factory.mktemp("sdxl") / "tiny")


def rules_of(**changed: object) -> protocol.NetworkRules:
    """Options of a network on which nothing else is set."""
    given = {"network_module": "lycoris.kohya", "network_dim": 2, "network_alpha": 3.0, **changed}
    return protocol.NetworkRules(**{**vars(pick(Config(), protocol.NetworkRules)), **given})


@torch.no_grad()
def answers_of(model) -> tuple[Tensor, Tensor]:
    """The UNet's output on fixed input, and the states of both text encoders on fixed tokens."""
    tokens = torch.arange(77)[None]
    states = [one(tokens, output_hidden_states=True).hidden_states[-2] for one in model.text_encoder]
    return unet_output(model.unet), torch.cat(states, dim=-1)


def expect_same(model, wanted: tuple[Tensor, Tensor], most: float = 1e-5) -> None:
    """Both parts of the model answer as given."""
    for found, given in zip(answers_of(model), wanted, strict=True):
        assert float((found - given).norm()) <= most * float(given.norm())


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, tuple]]:
    """A function from a kind to a file in which every factor has moved, and what the model answers with it."""
    made: dict[str, tuple[Path, tuple]] = {}

    def file_of(kind: str) -> tuple[Path, tuple]:
        if kind not in made:
            model = load_model(str(folder))
            network, _ = protocol.inject(rules_of(network_args=KINDS[kind]), model, CPU, {})
            network.eval()
            with torch.no_grad():
                for index, parameter in enumerate(network.parameters()):
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=stream(3, index)))
                answers = answers_of(model)
            file = tmp_path_factory.mktemp("kinds") / f"{kind}.safetensors"
            write_lora(file, network.state_dict(), {}, "float")
            made[kind] = file, answers
        return made[kind]

    return file_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_the_start_of_a_training_with_ranks_given_or_from_the_file(folder: Path, trained, kind: str) -> None:
    file, wanted = trained(kind)
    for rules in (
        rules_of(network_args=KINDS[kind], network_weights=str(file)),
        rules_of(network_weights=str(file), dim_from_weights=True),
    ):
        model = load_model(str(folder))
        network, _ = protocol.inject(rules, model, CPU, {})
        network.eval()
        expect_same(model, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_part_of_the_base_and_of_the_audit_as_it_was_trained(folder: Path, trained, kind: str) -> None:
    """base_weights; and the audit's model with it on, off (the base, bit for bit) and fresh."""
    file, wanted = trained(kind)
    merged, audited_base, base = (load_model(str(folder)) for _ in range(3))
    of_base = answers_of(base)
    assert all(float((one - old).norm()) > 1e-4 * float(one.norm()) for one, old in zip(wanted, of_base, strict=True))
    merge_base_weights(merged, [str(file)], [])
    expect_same(merged, wanted)
    audited = with_adapter(SimpleNamespace(lora=file, settings=SETTINGS), audited_base, read_adapter(file)[0], None)
    audited.switch("on")
    expect_same(audited_base, wanted)
    audited.switch("off")
    assert all(torch.equal(*pair) for pair in zip(answers_of(audited_base), of_base, strict=True))
    audited.switch("fresh")
    expect_same(audited_base, of_base)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tools_take_a_kind_or_name_it(folder: Path, trained, tmp_path: Path, capsys, kind: str) -> None:
    """Merge into the checkpoint and take a LoRA of it again; check; a kind that is no product is not cut."""
    file, wanted = trained(kind)
    merged, back, cut = tmp_path / "merged", tmp_path / "back.safetensors", tmp_path / "cut.safetensors"
    assert merge_lora.main(["--sd_model", str(folder), "--sdxl", "--models", str(file), "--save_to", str(merged)]) == 0
    expect_same(load_model(str(merged)), wanted)
    words = ["--model_org", str(folder), "--model_tuned", str(merged), "--sdxl", "--save_to", str(back)]
    assert extract_lora_from_models.main([*words, "--dim", "24", "--conv_dim", "16", "--min_diff", "0"]) == 0
    with open_base_checkpoint(merged) as tuned, open_base_checkpoint(folder) as base:
        for name, parts in modules_of(read_lora(back).tensors).items():
            change = tuned.layer(name) - base.layer(name)
            assert float((weight_change(parts, change) - change).norm()) <= 1e-4 * float(change.norm()) + 1e-6, name
    capsys.readouterr()
    assert check_lora_weights.main([str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    named = {"LoCon": ["LoRA"], "DoRA": ["DoRA", "LoRA"]}.get(kind, [kind])
    assert facts["family"] == "SDXL" and facts["kinds"] == named and facts["clients"]["ComfyUI"]["loads"]
    assert facts["clients"]["diffusers"]["loads"] is (kind == "LoCon")
    words = ["--model", str(file), "--save_to", str(cut), "--new_rank", "1"]
    if kind == "LoCon":
        assert resize_lora.main(words) == 0 and read_lora(cut).kinds == {"LoRA"}
    else:
        with pytest.raises(InputError, match=f"kind {kind}.*cannot be cut to a rank"):
            resize_lora.main(words)


def in_the_module_trees_names(name: str) -> str:
    """As LyCORIS names its modules itself: the UNet as in diffusers, no text_model level."""
    module, _, part = name.partition(".")
    if module.startswith("lora_unet_"):
        return f"lora_unet_{diffusers_name(module.removeprefix('lora_unet_'))}.{part}"
    return name.replace("_text_model_", "_")


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_under_the_names_of_the_module_tree_is_the_same(
    folder: Path, trained, tmp_path: Path, kind: str
) -> None:
    file, wanted = trained(kind)
    other = tmp_path / "other.safetensors"
    save_file({in_the_module_trees_names(name): value for name, value in load_file(file).items()}, other)
    assert any(name.startswith("lora_unet_down_blocks_") for name in load_file(other))
    assert set(read_lora(other).tensors) == set(read_lora(file).tensors)
    model = load_model(str(folder))
    protocol.inject(rules_of(network_weights=str(other), dim_from_weights=True), model, CPU, {})[0].eval()
    expect_same(model, wanted)
    merged = load_model(str(folder))
    merge_base_weights(merged, [str(other)], [])
    expect_same(merged, wanted)


PEFT = {
    "LoHa": lambda layers: LoHaConfig(r=3, alpha=5, target_modules=layers),
    "LoKr": lambda layers: LoKrConfig(r=3, alpha=5, decompose_factor=4, target_modules=layers),
    "DoRA": lambda layers: LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=layers),
}
LAYERS = {"unet": ["to_q", "to_k", "proj_in", "conv1"], "text_encoder": ["q_proj", "fc1"],
          "text_encoder_2": ["q_proj", "fc1"]}  # fmt: skip


@pytest.mark.parametrize("kind", PEFT)
def test_a_peft_folder_of_a_kind_with_one_part_for_each_model_is_read(folder: Path, tmp_path: Path, kind: str) -> None:
    """By base_weights, and by the audit's model."""
    model = load_model(str(folder))
    parts = {"unet": model.unet, "text_encoder": model.text_encoder[0], "text_encoder_2": model.text_encoder[1]}
    for name, part in parts.items():
        adapted = get_peft_model(part, PEFT[kind](LAYERS[name]))
        moved(adapted)
        adapted.save_pretrained(tmp_path / "peft" / name)
    wanted, of_base = answers_of(model), answers_of(load_model(str(folder)))
    assert all(float((one - old).norm()) > 1e-4 * float(one.norm()) for one, old in zip(wanted, of_base, strict=True))
    merged, audited_base = load_model(str(folder)), load_model(str(folder))
    merge_base_weights(merged, [str(tmp_path / "peft")], [])
    expect_same(merged, wanted)
    run = SimpleNamespace(lora=tmp_path / "peft", settings=SETTINGS)
    audited = with_adapter(run, audited_base, read_adapter(tmp_path / "peft")[0], None)
    audited.switch("on")
    expect_same(audited_base, wanted)
