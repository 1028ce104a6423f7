"""What a LoRA file must be for every client, and what a run may start from: network_weights and base_weights."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import audit
import PLoRA
import SPLoRA
from library.audit.queries import audited_model
from library.audit.targets import provenance
from library.diffusion.families.sd1 import SD1
from library.diffusion.families.sd2 import SD2
from library.diffusion.model_files import load_model
from library.errors import InputError
from library.lora_files.format import BrokenNetworkError, check_lora, kind_of, stated_ranks, write_lora
from library.lora_files.lora_file import read_lora
from library.lora_files.metadata import FileRules, full_facts, is_allowed, network_facts, written
from library.options.declarations import Config
from library.rules import pick
from library.seeding import stream
from library.tensor_files import read_tensors, tensor_hash
from networks import protocol
from networks.base_weights import merge_base_weights
from networks.lora import create_network, create_network_from_weights
from tests.helpers import tiny
from tests.helpers.runs import assert_same_tensors, records
from tests.helpers.tiny import unet_output

CPU = torch.device("cpu")
MIXED = {"conv_dim": "3", "conv_alpha": "2", "block_dims": "0,1,2,3,4,5,6,7,8", "block_alphas": "1,2,3,4,5,6,7,8,9"}


def rules(**changed: object) -> protocol.NetworkRules:
    """A network of rank 2; keywords change it."""
    return pick(dataclasses.replace(Config(), **{"network_dim": 2, **changed}), protocol.NetworkRules)


def filled_network(model, rank: int = 4, alpha: float = 3.0, **arguments: str):
    """A network in place whose every module does something."""
    network = create_network(1.0, rank, alpha, None, model.text_encoder, model.unet, **arguments)
    network.apply_to(model.text_encoder, model.unet, True, True)
    with torch.no_grad():
        for index, lora in enumerate(network.modules_of_both()):
            lora.lora_up.weight.copy_(0.3 * torch.randn(lora.lora_up.weight.shape, generator=stream(1, index)))
    return network


def written_lora(model_folder: Path, file: Path, rank: int = 4, alpha: float = 3.0, **arguments: str) -> Path:
    """The file of such a network."""
    write_lora(file, filled_network(load_model(str(model_folder)), rank, alpha, **arguments).state_dict(), {}, "float")
    return file


# The clients' names, from their rule: A1111 turns diffusers names into original ones and looks those up, ComfyUI
# builds a table of lora_unet_ names from the model's keys. SD 1.x and 2.x, any depth.
RESNET_PARTS = {
    "conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip


def original_name(name: str, per_level: int) -> str | None:
    """Module name in the original layout, as A1111 derives it; None where no rule matches."""
    if found := re.fullmatch(r"lora_te_text_model_encoder_layers_(\d+)_((self_attn|mlp)_\w+)", name):
        return f"transformer_text_model_encoder_layers_{found[1]}_{found[2]}"
    if found := re.fullmatch(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", name):
        level, index = int(found[2]), int(found[4])
        at = per_level * level + index + (1 if found[1] == "down" else 0)
        place = f"{'input' if found[1] == 'down' else 'output'}_blocks_{at}_{1 if found[3] == 'attentions' else 0}"
        return f"{place}_{RESNET_PARTS.get(found[5], found[5])}"
    if found := re.fullmatch(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", name):
        at = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block_{at}_{RESNET_PARTS.get(found[3], found[3])}"
    if found := re.fullmatch(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", name):
        return f"input_blocks_{per_level * (int(found[1]) + 1)}_0_op"
    if found := re.fullmatch(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", name):
        return f"output_blocks_{per_level * int(found[1]) + per_level - 1}_{{}}_conv"
    return None


def original_unet_modules(unet: UNet2DConditionModel) -> set[str]:
    """Modules of the same UNet in the original layout, by diffusers' own converter of checkpoint keys."""
    from tests.helpers.ldm_layout import unet_name

    names = set()
    for key in unet.state_dict():
        if key.endswith(".weight"):
            original = unet_name(key).removeprefix("model.diffusion_model.").removesuffix(".weight")
            names.add(original.replace(".", "_"))
    return names


def test_the_name_maps_of_comfyui_and_a1111_leave_nothing_unmatched() -> None:
    """All 350 modules of a LoCon on SD 1.5: every name has a layer in the original layout and a diffusers key."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD1.settings / "unet"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(SD1.settings / "text_encoder"))
        network = create_network(1.0, 4, 4, None, text_encoder, unet, conv_dim="4")
        network.apply_to(text_encoder, unet, True, True)
    names = {name.partition(".")[0] for name in network.state_dict()}
    assert len(names) == 350 and len(network.state_dict()) == 3 * 350
    layers = original_unet_modules(unet)
    layers |= {
        f"transformer_text_model_encoder_layers_{i}_{part}"
        for i in range(12)
        for part in (
            "self_attn_q_proj",
            "self_attn_k_proj",
            "self_attn_v_proj",
            "self_attn_out_proj",
            "mlp_fc1",
            "mlp_fc2",
        )
    }
    matched = {}
    for name in names:
        found = original_name(name, 3)
        assert found is not None, name
        choices = [found.format(at) for at in (1, 2)] if "{}" in found else [found]  # after an attention or not
        hits = [one for one in choices if one in layers]
        assert len(hits) == 1, (name, choices)
        matched[name] = hits[0]
    assert len(set(matched.values())) == 350  # no two of them are the same layer
    comfy = {f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}" for key in unet.state_dict()
             if key.endswith(".weight")}  # fmt: skip
    comfy |= {f"lora_te_{found.removeprefix('transformer_')}" for found in layers if found.startswith("transformer_")}
    assert names <= comfy


def test_a_locon_of_mixed_ranks_and_alphas_is_the_same_change_in_diffusers(model_folder: Path, tmp_path: Path) -> None:
    """Delta W of every layer, read out of the fused pipeline, is alpha/r up down of the network that was trained."""
    network = filled_network(load_model(str(model_folder)), **MIXED)
    write_lora(tmp_path / "x.safetensors", network.state_dict(), {}, "float")
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, local_files_only=True, safety_checker=None)
    base = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    pipeline.fuse_lora()
    fused = {name.replace(".base_layer", ""): value for name, value in pipeline.unet.state_dict().items()}
    tensors, checked = {name: value.detach() for name, value in network.state_dict().items()}, 0
    for name in sorted({key.partition(".")[0] for key in tensors if key.startswith("lora_unet_")}):
        down, up, alpha = (tensors[f"{name}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        key = next(key for key in base if f"lora_unet_{key}".replace(".", "_") == f"{name}_weight")
        expected = (up.flatten(1) @ down.flatten(1)).reshape(base[key].shape) * alpha / down.shape[0]
        assert torch.allclose(fused[key] - base[key], expected, atol=1e-5), name
        checked += 1
    assert checked > 40


@pytest.mark.parametrize("arguments", [{"conv_dim": "3", "conv_alpha": "2"}, MIXED], ids=["LoCon", "mixed"])
def test_reload_with_alpha_unlike_rank_gives_the_same_output(model_folder, tmp_path: Path, arguments: dict) -> None:
    """A mixed file holds one alpha, so that diffusers reads it: the same function, another place of the scale."""
    model = load_model(str(model_folder))
    network = filled_network(model, **arguments)
    live = unet_output(model.unet)
    write_lora(tmp_path / "x.safetensors", network.state_dict(), {}, "float")
    again = load_model(str(model_folder))
    chosen = rules(network_weights=str(tmp_path / "x.safetensors"), dim_from_weights=True)
    reloaded, stated = protocol.inject(chosen, again, CPU, {})
    assert (unet_output(again.unet) - live).norm() < 2e-6 * live.norm()
    assert stated["ss_network_dim"] == ("4" if len(arguments) == 2 else "Dynamic") and stated["ss_network_alpha"]
    file = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(value, file[name]) for name, value in reloaded.state_dict().items())


def test_merge_then_unmerge_gives_the_base_within_fp32(model_folder: Path, tmp_path: Path) -> None:
    file = str(written_lora(model_folder, tmp_path / "x.safetensors", **MIXED))
    model = load_model(str(model_folder))
    parts = (model.unet, model.text_encoder)
    base = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    merge_base_weights(model, [file], ["0.5"])
    once = unet_output(model.unet)
    assert any(not torch.equal(value, base[1][name]) for name, value in model.text_encoder.state_dict().items())
    network, weights = create_network_from_weights(0.5, file, None, model.text_encoder, model.unet)
    merge_base_weights(model, [file], ["-0.5"])
    for part, before in zip(parts, base, strict=True):
        for name, value in part.state_dict().items():
            assert torch.allclose(value, before[name], rtol=0, atol=3e-7), name
    network.merge_to(model.text_encoder, model.unet, weights, torch.float32, CPU)  # kohya's own call, same result
    assert torch.allclose(unet_output(model.unet), once, atol=1e-6)


def test_each_kind_has_its_table_and_a_torn_module_is_refused() -> None:
    assert kind_of(frozenset({"lora_down.weight", "lora_up.weight", "alpha", "dora_scale"})) == "LoRA"
    assert kind_of(frozenset({"lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha"})) == "LoKr"
    assert kind_of(frozenset({"diff", "diff_b"})) == "full difference"
    for torn in ({"lora_down.weight", "alpha"}, {"hada_w1_a", "hada_w1_b", "alpha"}, {"lokr_w1", "alpha"},
                 {"lora_down.weight", "lora_up.weight"}, {"diff", "dora_scale"}, {"diff_b"}, {"hada_t1"}):  # fmt: skip
        assert kind_of(frozenset(torn)) is None, torn
    one = torch.tensor(1.0)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    good = {
        f"{name}.lora_down.weight": torch.ones(2, 3),
        f"{name}.lora_up.weight": torch.ones(4, 2),
        f"{name}.alpha": one,
    }
    check_lora(good)
    assert stated_ranks(good) == ("2", "1.0")
    for spoiled in (
        good | {f"{name}.lora_up.weight": torch.ones(4, 3)},
        {key.replace("mid_block", "middle_block"): value for key, value in good.items()},
        {},
        good | {f"{name}.extra": one},
    ):
        with pytest.raises(BrokenNetworkError):
            check_lora(spoiled)


def test_the_header_says_which_model_and_holds_nothing_outside_the_allow_list(model_folder, tmp_path: Path) -> None:
    changed = {"clip_skip": 2, "max_timestep": 800, "metadata_title": "anna", "metadata_author": "bob",
               "training_comment": "secret", "output_name": "anna"}  # fmt: skip
    for family, velocity, version, architecture in (
        (SD1, False, "sd_v1", "stable-diffusion-v1/lora"),
        (SD1, True, "sd_v1", "stable-diffusion-v1/lora"),
        (SD2, False, "sd_v2", "stable-diffusion-v2-512/lora"),
        (SD2, True, "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
    ):
        about = pick(dataclasses.replace(Config(), v2=family.v2, v_parameterization=velocity, **changed), FileRules)
        stated = {"ss_network_dim": "4", "ss_network_alpha": "1.0", "ss_network_args": "{}"}
        target, names = "v_prediction" if velocity else "epsilon", family.version_of(velocity=velocity)
        facts = network_facts(about, stated, (512, 768), names, target, {})
        assert (facts["ss_v2"], facts["ss_base_model_version"]) == (str(family.v2), version)
        assert facts["modelspec.architecture"] == architecture and facts["modelspec.timestep_range"] == "0,800"
        own_words = full_facts(about, 9, 100)
        short = written(facts, {"ss_privacy_method": "PLoRA"}, own_words, no_metadata=False, full=False)
        assert all(is_allowed(name) for name in short) and short["modelspec.title"] == "LoRA"
        assert not {"anna", "bob", "secret"} & set(short.values())
        whole = written(facts, {}, own_words, no_metadata=False, full=True)
        assert whole["modelspec.title"] == "anna" and whole["modelspec.author"] == "bob"
        assert whole["ss_training_comment"] == "secret"
    source = load_file(written_lora(model_folder, tmp_path / "x.safetensors"))
    write_lora(tmp_path / "y.safetensors", source, short, "fp16")
    tensors, metadata = read_tensors(tmp_path / "y.safetensors")
    assert metadata["sshs_model_hash"] == tensor_hash(tensors)
    assert all(value.is_contiguous() and value.isfinite().all() for value in tensors.values())


def test_network_args_in_the_header_are_known_keys_that_name_no_file(model_folder) -> None:
    model = load_model(str(model_folder))
    _, stated = protocol.inject(rules(network_args=["conv_dim=3", "mid_lr_weight=0.5"]), model, CPU, {})
    assert json.loads(stated["ss_network_args"]) == {"conv_dim": "3", "mid_lr_weight": "0.5"}
    given = {"preset": "/home/anna/own.toml", "algo": "loha", "name": "anna", "factor": "-1"}
    lycoris = dataclasses.replace(rules(), network_module="lycoris.kohya")
    assert json.loads(protocol.stated_facts(lycoris, given, {})["ss_network_args"]) == {"algo": "loha", "factor": "-1"}
    given["preset"] = "own.toml"
    assert "own" not in protocol.stated_facts(lycoris, given, {})["ss_network_args"]


@pytest.mark.slow
def test_locon_dropouts_blocks_and_norms_resume_exactly_through_the_door(flags, tmp_path: Path) -> None:
    """10 = 5 + resume + 5, cut inside an epoch, with all of it on; the figures are in the log."""
    more = ["--network_args", "conv_dim=2", "rank_dropout=0.2", "module_dropout=0.2", "loraplus_lr_ratio=4",
            "up_lr_weight=linear+0.5", "--scale_weight_norms", "0.02", "--network_dropout", "0.1",
            "--gradient_accumulation_steps", "2", "--save_state"]  # fmt: skip
    assert SPLoRA.main([*flags(output_dir=tmp_path / "one", max_train_steps=10), *more]) == 0
    assert SPLoRA.main([*flags(output_dir=tmp_path / "two", max_train_steps=5), *more]) == 0
    state = tmp_path / "two" / "state" / "last-state"
    assert SPLoRA.main([*flags(output_dir=tmp_path / "two", max_train_steps=10, resume=state), *more]) == 0
    assert_same_tensors(tmp_path / "one" / "last.safetensors", tmp_path / "two" / "last.safetensors")
    steps = [record for record in records(tmp_path / "one") if "keys_scaled" in record]
    assert len(steps) == 10 and steps[-1]["keys_scaled"] > 0
    assert steps[-1]["mean_key_norm"] <= steps[-1]["max_key_norm"] == pytest.approx(0.02)


def test_dropout_acts_in_the_loras_own_step_alone(flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attacker, the looks at the aux sides and the previews meet the LoRA as it will be shared: without dropout."""
    from library.assembly.game import Game
    from library.assembly.validation import Validation

    networks, modes = [], {}
    honest = protocol.inject
    monkeypatch.setattr(protocol, "inject", lambda *given: networks.append(found := honest(*given)) or found)

    def noting(kind: type, name: str):
        call = getattr(kind, name)

        def noted(self, *given):
            modes.setdefault(name, set()).add(networks[0][0].training)
            return call(self, *given)

        return noted

    for kind, name in ((Game, "attacker_turn"), (Validation, "_fixed_pass"), (Game, "member_losses")):
        monkeypatch.setattr(kind, name, noting(kind, name))
    assert PLoRA.main([*flags(max_train_steps=3, network_dropout=0.5), "--gradient_accumulation_steps", "2"]) == 0
    assert modes == {"attacker_turn": {False}, "_fixed_pass": {False}, "member_losses": {True}}


def test_training_starts_from_network_weights_and_checks_that_they_fit(
    model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written_lora(model_folder, tmp_path / "x.safetensors", rank=2, alpha=3.0)

    def start(**changed: object):
        return protocol.inject(rules(network_weights=str(file), **changed), load_model(str(model_folder)), CPU, {})

    network, stated = start(network_alpha=1.0)  # the file's alpha counts, not the option's
    assert {lora.scale for lora in network.modules_of_both()} == {1.5}
    assert (stated["ss_network_dim"], stated["ss_network_alpha"]) == ("2", "3.0")
    _, stated = start(dim_from_weights=True)
    assert (stated["ss_network_dim"], stated["ss_network_alpha"]) == ("2", "3.0")
    start(network_args=["conv_dim=2"])
    assert "lacks 31 modules, which start fresh" in caplog.text
    with pytest.raises(InputError, match="x.safetensors' does not fit this network: 36 tensors have no module here"):
        start(network_train_unet_only=True)
    with pytest.raises(InputError, match="ranks come from"):
        start(dim_from_weights=True, network_args=["conv_dim=4"])
    written_lora(model_folder, file, rank=5)
    with pytest.raises(InputError, match=r"other ranks than the network \(network_dim 2\); set dim_from_weights"):
        start()
    other = load_file(file)
    save_file({name.replace("mid_block", "middle"): value for name, value in other.items()}, file)
    with pytest.raises(InputError, match="have no module here|no layer here"):
        start(network_dim=5)
    save_file({**other, next(iter(other)): torch.full_like(other[next(iter(other))], torch.nan)}, file)
    with pytest.raises(InputError, match="NaN or infinity"):
        start()


@pytest.mark.slow
def test_base_weights_shift_the_fingerprint_and_the_audit_merges_the_same(flags, model_folder, tmp_path: Path) -> None:
    """An audit of the folder finds base and LoRA together; without base_weights the base is another, and it says so."""
    base = written_lora(model_folder, tmp_path / "base.safetensors", conv_dim="3")
    pictures = tiny.write_pictures(tmp_path / "many", 80)
    out = tmp_path / "out"
    arguments = flags(train_data_dir=pictures, train_batch_size=8, base_weights=base, base_weights_multiplier="0.5")
    assert PLoRA.main(arguments) == 0
    stated = read_tensors(out / "last.safetensors")[1]["ss_privacy_base_fingerprint"]
    plain, merged = load_model(str(model_folder)), load_model(str(model_folder))
    merge_base_weights(merged, [str(base)], ["0.5"])
    assert stated == merged.fingerprint != plain.fingerprint
    seen = []
    honest = audited_model.with_adapter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audited_model, "with_adapter", lambda run, model, *rest: (
            seen.append(unet_output(model.unet)), honest(run, model, *rest))[1])  # fmt: skip
        assert audit.main([str(out), "--cache_dir", str(tmp_path / "cache"), "--target_fpr", "0.1"]) == 0
    assert torch.equal(seen[0], unet_output(merged.unet)) and not torch.equal(seen[0], unet_output(plain.unet))
    text = (out / "config.toml").read_text()
    (out / "config.toml").write_text(re.sub(r"(?m)^base_weights.*\n", "", text))
    with pytest.raises(InputError, match="trained on another base model"):
        audit.main([str(out), "--cache_dir", str(tmp_path / "cache"), "--target_fpr", "0.1"])


def test_base_weights_that_do_not_fit_are_refused_by_file(model_folder, tmp_path: Path) -> None:
    model = load_model(str(model_folder))
    before = unet_output(model.unet)
    save_file({"lora_unet_nowhere.diff": torch.zeros(2)}, tmp_path / "a.safetensors")
    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{name}.diff": torch.full((2, 2), torch.nan)}, tmp_path / "b.safetensors")
    save_file({f"{name}.lora_down.weight": torch.ones(2, 3), f"{name}.lora_up.weight": torch.ones(5, 2)},
              tmp_path / "c.safetensors")  # fmt: skip
    with pytest.raises(InputError) as caught:
        merge_base_weights(model, [str(tmp_path / f"{letter}.safetensors") for letter in "abc"], [])
    text = str(caught.value)
    assert "a.safetensors': 1 of 1 modules have no layer here" in text and "b.safetensors' has NaN" in text
    assert "c.safetensors': " + name + " does not fit this model" in text
    assert torch.equal(unet_output(model.unet), before)
    with pytest.raises(InputError, match="must be numbers, got 'half'"):
        merge_base_weights(model, ["x"], ["half"])
    assert provenance.check_base(Path("x"), {}, model.fingerprint, {}) is None


@pytest.mark.parametrize("shape", ["matrices", "1 x 1 convolutions"])
def test_factors_in_other_dimensions_than_their_layers_are_trained_and_audited(
    model_folder: Path, tmp_path: Path, shape: str
) -> None:
    """Convolutions with matrices as factors, linear layers with 1 x 1 convolutions: the same numbers."""
    file = written_lora(model_folder, tmp_path / "a.safetensors", conv_dim="3")
    tensors = load_file(file)
    for name, value in tensors.items():
        if value.dim() == 4 and shape == "matrices":
            tensors[name] = value.flatten(1)
        elif value.dim() == 2 and shape != "matrices":
            tensors[name] = value[..., None, None]
    save_file(tensors, tmp_path / "b.safetensors")
    answers = []
    for name in ("a", "b"):
        for from_weights in (True, False):
            model = load_model(str(model_folder))
            given = {"network_weights": str(tmp_path / f"{name}.safetensors"), "dim_from_weights": from_weights,
                     "network_args": [] if from_weights else ["conv_dim=3"], "network_dim": 4}  # fmt: skip
            protocol.inject(rules(**given), model, CPU, {})
            answers.append(unet_output(model.unet))
        model, weights = load_model(str(model_folder)), read_lora(tmp_path / f"{name}.safetensors").tensors
        settings = {"clip_skip": 1, "max_token_length": 75, "weighted_captions": False}
        run = SimpleNamespace(lora=tmp_path / name, settings=settings)
        audited_model.with_adapter(run, model, weights, None).switch("on")
        answers.append(unet_output(model.unet))
    assert all(torch.equal(one, answers[0]) for one in answers)
    assert not torch.equal(answers[0], unet_output(load_model(str(model_folder)).unet))


@pytest.mark.slow
def test_a_changed_file_of_base_weights_stops_a_resumed_run(flags, model_folder: Path, tmp_path: Path) -> None:
    base = written_lora(model_folder, tmp_path / "base.safetensors")
    assert PLoRA.main(flags(base_weights=base, max_train_steps=1, save_state=True)) == 0
    state = tmp_path / "out/state/last-state"
    again = flags(base_weights=base, max_train_steps=2, resume=state)
    save_file({name: value * 1.5 for name, value in load_file(base).items()}, base)
    with pytest.raises(InputError, match="the weights of the base model .*have changed since the state was saved"):
        PLoRA.main(again)
