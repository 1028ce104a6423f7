"""What the reader of LoRA files refuses, by name, and what it fills in."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from library.audit.report.audit_result import checkpoint_hash
from library.audit.targets.lora_runs import find_runs
from library.audit.targets.provenance import stamp
from library.diffusion.model_files import load_model
from library.errors import Faults, InputError
from library.lora_files.families import check_width, context_width, input_width
from library.lora_files.format import modules_of
from library.lora_files.lora_file import faults_of, read_lora, weight_files
from library.options.declarations import Config
from library.options.joint_checks import check_together
from library.rules import pick
from library.seeding import stream
from networks import protocol
from networks.base_weights import merge_base_weights
from networks.weight_change import weight_change

UNET = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


def lora_of(width: int = 768, rank: int = 2, name: str = UNET, **changed: Tensor) -> dict[str, Tensor]:
    """One LoRA module; keywords replace its parts (``down``, ``up``, ``alpha``)."""
    parts = {"down": torch.ones(rank, width), "up": torch.ones(4, rank), "alpha": torch.tensor(1.0), **changed}
    ends = {"down": "lora_down.weight", "up": "lora_up.weight", "alpha": "alpha"}
    return {f"{name}.{ends[part]}": value for part, value in parts.items()}


def written(file: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    """A file of these tensors."""
    save_file({name: value.clone() for name, value in tensors.items()}, file, metadata)
    return file


REFUSED = {
    "rank 0": (lora_of(rank=0), "rank 0 or without a value: '.*lora_down.weight'"),
    "one dimension": (lora_of(down=torch.ones(2)), "fewer than 2 or more than 4 dimensions: '.*lora_down"),
    "five dimensions": (lora_of(down=torch.ones(2, 768, 1, 1, 1)), "fewer than 2 or more than 4 dimensions"),
    "NaN": (lora_of(up=torch.full((4, 2), torch.nan)), "NaN or infinity in 1 tensors: '.*lora_up.weight'"),
    "infinity": (lora_of(up=torch.full((4, 2), -torch.inf)), "NaN or infinity in 1 tensors"),
    "truth values": (lora_of(up=torch.ones(4, 2, dtype=torch.bool)), "1 tensors of whole numbers or truth values"),
    "whole numbers": (lora_of(down=torch.ones(2, 768, dtype=torch.int8)), "1 tensors of whole numbers or truth values"),
    "complex": (lora_of(up=torch.ones(4, 2, dtype=torch.complex64)), "1 tensors of complex numbers"),
    "alpha 0": (lora_of(alpha=torch.tensor(0.0)), "1 alphas that are not one number above 0: '.*alpha'"),
    "alpha below 0": (lora_of(alpha=torch.tensor(-4)), "1 alphas that are not one number above 0"),
    "two alphas": (lora_of(alpha=torch.ones(2)), "1 alphas that are not one number above 0"),
    "alpha without a value": (lora_of(alpha=torch.ones(0)), "1 alphas that are not one number above 0"),
    "complex alpha": (lora_of(alpha=torch.tensor(1j)), "1 alphas that are not one number above 0"),
    "a true alpha": (lora_of(alpha=torch.tensor(True)), "whole numbers or truth values"),
    "other ranks": (lora_of(up=torch.ones(4, 3)), "1 modules whose factors cannot be multiplied"),
    "a part missing": ({f"{UNET}.lora_down.weight": torch.ones(2, 3)}, "no kind that is read here, or with a part"),
    "an unknown part": (lora_of() | {f"{UNET}.lora_B.bias": torch.ones(4)}, "no kind that is read here"),
    "a checkpoint": ({"model.diffusion_model.out.0.weight": torch.ones(3)}, "is no LoRA: .* 'model.diffusion_model"),
    "Flux": (lora_of(name="lora_unet_double_blocks_0_img_attn_proj"), "transformer in place of the UNet"),
    "joined": (lora_of(name=TEXT) | lora_of(name=TEXT.replace("text_model_", "")), "two tensors are called lora_te"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_lora_has_is_refused_by_name(tmp_path: Path, case: str) -> None:
    tensors, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        read_lora(written(tmp_path / "x.safetensors", tensors))
    assert str(caught.value).startswith(f"'{tmp_path / 'x.safetensors'}'")


def test_every_fault_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    tensors = lora_of(alpha=torch.tensor(0.0)) | lora_of(name=TEXT, up=torch.full((4, 2), torch.nan))
    with pytest.raises(InputError) as caught:
        read_lora(written(tmp_path / "x.safetensors", tensors))
    assert len(caught.value.messages) == 2
    assert faults_of({}) == ["is no LoRA: it holds no tensor"]


def test_pickles_are_named_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("x.pt", "x.safetensors", "x"):
        torch.save(lora_of(), tmp_path / name)
        with pytest.raises(InputError, match="is a pickle, which can run code: convert it first"):
            read_lora(tmp_path / name)
    (tmp_path / "peft").mkdir()
    torch.save(lora_of(), tmp_path / "peft" / "adapter_model.bin")
    (tmp_path / "peft" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match="adapter_model.bin' is a pickle, which can run code: convert it first"):
        read_lora(tmp_path / "peft")


@pytest.mark.parametrize(
    ("config", "message"),
    [("{", "is not valid JSON"), ("[]", "is not a table of settings"), ('{"peft_type": "OFT"}', "'OFT' is not read"),
     ('{"init_lora_weights": "pissa"}', "changes the base model too"),
     ('{"lora_alpha": "8"}', "must be a number above 0"),
     ('{"r": true}', "must be a number above 0"), ('{"alpha_pattern": [1]}', "must be a table of numbers"),
     ('{"alpha_pattern": {"(a+)+b": 1}}', "is not the plain end of a module path"), ("[" * 9999, "is not valid JSON")],
)  # fmt: skip
def test_a_peft_config_that_cannot_be_followed_is_refused(tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "adapter_config.json").write_text(config)
    written(tmp_path / "adapter_model.safetensors", {})
    with pytest.raises(InputError, match=message):
        read_lora(tmp_path)


def test_folders_and_headers_that_say_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder without peft's adapter_config.json"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="has no adapter_model.safetensors"):
        read_lora(tmp_path)
    with pytest.raises(InputError, match="x.safetensors': lora_adapter_metadata is not a table"):
        read_lora(written(tmp_path / "x.safetensors", lora_of(), lora_adapter_metadata="[1]"))
    with pytest.raises(InputError, match="is not a file"):
        read_lora(tmp_path / "nowhere.safetensors")


def test_an_alpha_that_is_stated_by_module_beats_the_others(tmp_path: Path) -> None:
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.{}.to_q.lora_{}.weight"
    tensors = {name.format(attn, side): torch.ones(2, 2) for attn in ("attn1", "attn2") for side in "AB"}
    stated = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 3}}
    found = read_lora(written(tmp_path / "x.safetensors", tensors, lora_adapter_metadata=json.dumps(stated))).tensors
    alphas = {key.split("_")[-3]: float(value) for key, value in found.items() if key.endswith("alpha")}
    assert alphas == {"attn1": 8.0, "attn2": 3.0}


@pytest.mark.parametrize(("width", "family"), [(768, "SD 1.x"), (1024, "SD 2.x"), (2048, "SDXL")])
def test_another_family_is_named_with_its_width(model_folder: Path, tmp_path: Path, width: int, family: str) -> None:
    """By training, merging and the audit alike; the tiny model's text states have the width 16."""
    file, model = written(tmp_path / "x.safetensors", lora_of(width)), load_model(str(model_folder))
    message = rf"made for another base model: .* of width {width} \({family}\), this base model has 16"
    with pytest.raises(InputError, match=f"base_weights .*{message}"):
        merge_base_weights(model, [str(file)], [])
    for from_file in (True, False):
        rules = {**vars(pick(Config(), protocol.NetworkRules)), "network_weights": str(file),
                 "dim_from_weights": from_file}  # fmt: skip
        with pytest.raises(InputError, match=f"network_weights .*{message}"):
            protocol.inject(protocol.NetworkRules(**rules), load_model(str(model_folder)), torch.device("cpu"), {})
    with pytest.raises(InputError, match=message):
        check_width(file, read_lora(file).tensors, 16)
    check_width(file, read_lora(file).tensors, width)


def test_the_width_shows_in_every_low_rank_kind() -> None:
    assert input_width({"hada_w1_b": torch.ones(2, 768)}) == input_width({"a2.weight": torch.ones(2, 768)}) == 768
    assert input_width({"lokr_w1": torch.ones(2, 16), "lokr_w2_b": torch.ones(2, 48)}) == 768
    assert input_width({"oft_blocks": torch.ones(2, 3, 3)}) is None
    assert context_width(lora_of(1024, name=TEXT)) == 1024 and context_width(lora_of(name="lora_unet_conv_in")) is None


def test_a_peft_folder_may_stand_wherever_a_lora_file_may(tmp_path: Path) -> None:
    """In the options of a training, and among the LoRAs of an audit."""
    (tmp_path / "adapter_config.json").write_text("{}")
    faults = Faults()
    given = dataclasses.replace(Config(), network_weights=str(tmp_path), base_weights=[str(tmp_path), "nowhere"])
    check_together("PLoRA", given, {}, faults)
    assert [one for one in faults.messages if "weights" in one] == [
        "base_weights 'nowhere' is neither a file nor a peft folder"
    ]
    defaults = {"pretrained_model_name_or_path": "base", "train_data_dir": "pictures"}
    split = written(tmp_path / "split.json", {})
    runs = find_runs([str(tmp_path)], "last", defaults=defaults, overrides={}, split_file=str(split))
    assert [run.lora for run in runs] == [tmp_path]
    assert weight_files(tmp_path) == []
    file = written(tmp_path / "adapter_model.safetensors", lora_of())
    stamp(tmp_path, {"ss_privacy_audit_auc": "0.51"})
    assert weight_files(tmp_path) == weight_files(file) == [file]
    assert read_lora(file).metadata == {"ss_privacy_audit_auc": "0.51"}


def test_a_peft_folder_of_two_parts_is_stamped_in_both_and_its_hashes_are_told(tmp_path: Path) -> None:
    for part in ("unet", "text_encoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "adapter_config.json").write_text('{"lora_alpha": 2}')
    to_q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    q_proj = "text_model.encoder.layers.0.self_attn.q_proj"
    for part, path in (("unet", to_q), ("text_encoder", q_proj)):
        factors = {f"base_model.model.{path}.lora_A.weight": torch.ones(2, 4),
                   f"base_model.model.{path}.lora_B.weight": torch.ones(4, 2)}  # fmt: skip
        written(tmp_path / part / "adapter_model.safetensors", factors)
    before = read_lora(tmp_path)
    stamp(tmp_path, {"ss_privacy_audit_auc": "0.51"})
    after = read_lora(tmp_path)
    assert after.metadata == {"ss_privacy_audit_auc": "0.51"} and before.metadata == {}
    assert after.tensors.keys() == before.tensors.keys() and len(after.tensors) == 6
    told = checkpoint_hash(tmp_path).split(", ")
    files = [tmp_path / part / "adapter_model.safetensors" for part in ("unet", "text_encoder")]
    assert told == [f"{file.parent.name}/{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]


def test_an_early_glora_is_read_as_todays(tmp_path: Path) -> None:
    """W a1 a2 + b1 b2 today; in early files a1 and b1 were the inner factors."""
    a1, a2, b1, b2 = (torch.randn(shape, generator=stream(4, shape[0])) for shape in ((6, 2), (2, 6), (5, 2), (2, 6)))
    name = "lora_unet_mid_block_attentions_0_proj_in"
    today = {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    early = {"a1": a2, "a2": a1, "b1": b2, "b2": b1}
    base, found = torch.randn(5, 6, generator=stream(5)), {}
    for file, parts in (("today", today), ("early", early)):
        tensors = {f"{name}.{part}.weight": value.contiguous() for part, value in parts.items()}
        written(tmp_path / f"{file}.safetensors", {**tensors, f"{name}.alpha": torch.tensor(4.0)})
        lora = read_lora(tmp_path / f"{file}.safetensors")
        assert lora.kinds == {"GLoRA"}
        found[file] = weight_change(modules_of(lora.tensors)[name], base)
    assert torch.equal(found["today"], found["early"])
    assert torch.allclose(found["early"], 2 * (base @ a1 @ a2 + b1 @ b2), rtol=1e-5)
