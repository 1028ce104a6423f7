"""What a LoRA file's metadata gives away, and which clients take its names and kinds."""

import json
import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from library.diffusion.families.sd1 import SD1
from library.diffusion.families.sd2 import SD2
from library.lora_files.clients import CLIENTS, verdicts_of
from library.lora_files.metadata import ALLOWED, FileRules, network_facts, privacy_facts
from library.lora_files.metadata_leaks import carried, is_harmless, leaks_of, stripped
from library.options.declarations import Config
from library.rules import pick
from networks.lora import create_network
from tests.helpers.lora_files import CAPTION, FOLDER, LEAKING, PERSON

SETTINGS = {
    "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_lr_scheduler",
    "ss_network_args", "ss_learning_rate", "modelspec.sai_model_spec", "ss_privacy_method",
}  # fmt: skip


def test_every_key_that_tells_of_data_person_or_machine_is_named_with_its_kind() -> None:
    found = {leak.key: leak.what for leak in leaks_of(LEAKING)}
    assert set(LEAKING) - set(found) == SETTINGS
    kinds = {"ss_tag_frequency": "captions or tags", "ss_dataset_dirs": "folder names", "prompt": "captions or tags",
             "ss_training_started_at": "a time", "modelspec.date": "a time", "ss_seed": "the seed",
             "modelspec.thumbnail": "a picture", "ss_person": "free text", "ssmd_keywords": "free text",
             "ss_extra": "paths or file names", "ss_sd_model_name": "file names", "modelspec.title": "free text",
             "software": "an address of mail or web", "ss_privacy_note": "free text"}  # fmt: skip
    assert {key: found[key] for key in kinds} == kinds
    assert not any(word in str(leak) for leak in leaks_of(LEAKING) for word in (CAPTION, FOLDER, PERSON))


@pytest.mark.parametrize(
    ("key", "text"),
    [("ss_network_args", json.dumps({"note": f"/home/me/{FOLDER}/a"})),
     ("ss_network_args", json.dumps({"a": ["x" * 99]})),
     ("ss_network_module", PERSON), ("modelspec.architecture", f"a/b/{FOLDER}"), ("ss_v2", CAPTION),
     ("ss_privacy_method", f"{PERSON}, {CAPTION}"), ("sshs_model_hash", CAPTION), ("modelspec.implementation", PERSON)],
)  # fmt: skip
def test_an_allowed_key_with_other_words_is_no_longer_allowed(key: str, text: str) -> None:
    assert not is_harmless(key, text) and stripped({key: text}) == {}


def test_what_is_stripped_keeps_the_settings_that_clients_read_and_the_day() -> None:
    clean = stripped(LEAKING)
    assert set(clean) == SETTINGS - {"ss_lr_scheduler", "ss_learning_rate"} | {"modelspec.date"}
    assert clean["modelspec.date"] == "2026-11-29" and leaks_of(clean) == []


def test_the_suites_own_metadata_is_clean() -> None:
    """Every key that a training and an audit write, so that the allow-list and the lint agree."""
    rules = pick(Config(), FileRules)
    stated = {"ss_network_dim": "16", "ss_network_alpha": "16.0", "ss_network_args": json.dumps({"conv_dim": "8"})}
    version = SD1.version_of(velocity=False)
    facts = network_facts(rules, stated, (512, 512), version, "epsilon", {"ss_sd_model_hash": "0a1b2c3d"})
    options = {
        "param_alpha": 0.05,
        "k_steps": 1,
        "update_order": "attacker_first",
        "gain_limit": 0.5,
        "ema_decay": 0.99,
    }
    facts |= privacy_facts(
        "SPLoRA",
        options,
        exposures=12.0,
        verdict="proxy beat chance",
        base_fingerprint="ab" * 32,
        guarantee={"dp_epsilon": "8", "dp_delta": "0.001", "dp_unit": "group", "dp_noise_multiplier": "1",
                   "dp_max_grad_norm": "0.01"},
    )  # fmt: skip
    facts |= {"ss_privacy_audit_auc": "0.57 [0.51, 0.63]", "ss_privacy_audit_p_max": "< 0.001",
              "ss_privacy_audit_worst_attack": "Loss threshold", "ss_privacy_audit_verdict": "leaks"}  # fmt: skip
    assert leaks_of(facts) == [] and stripped(facts) == facts
    assert {key for key in facts if not key.startswith("ss_privacy_")} <= set(ALLOWED)


def test_a_file_made_of_others_takes_what_they_share_and_no_audit_of_them() -> None:
    one = {
        "ss_v2": "False",
        "modelspec.date": "2026-11-29",
        "ss_privacy_audit_auc": "0.5",
        "sshs_model_hash": "ab" * 32,
    }
    other = {**one, "modelspec.date": "2026-11-28", "ss_output_name": PERSON}
    assert carried([one, other]) == {"ss_v2": "False"}
    assert carried([one, one], minimal=True) == {"ss_v2": "False"} and carried([]) == {}


@pytest.fixture(scope="module", params=[SD1, SD2], ids=["SD 1.x", "SD 2.x"])
def real(request: pytest.FixtureRequest) -> tuple[UNet2DConditionModel, CLIPTextModel, dict[str, torch.Tensor]]:
    """A LoCon of the real names and sizes, without data."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(request.param.settings / "unet"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(request.param.settings / "text_encoder"))
        network = create_network(1.0, 4, 4, None, text_encoder, unet, conv_dim="4")
        network.apply_to(text_encoder, unet, True, True)
    return unet, text_encoder, dict(network.state_dict())


def test_the_key_map_of_invokeai_leaves_nothing_unmatched(real) -> None:
    """It walks the modules of diffusers and transformers, dots as underscores, behind lora_unet_ and lora_te_.

    Its text encoder has the level text_model, as transformers had before 5.6.
    """
    unet, text_encoder, tensors = real
    known = {f"lora_unet_{path.replace('.', '_')}" for path, _ in unet.named_modules()}
    paths = [path.removeprefix("text_model.") for path, _ in text_encoder.named_modules()]
    known |= {f"lora_te_text_model_{path.replace('.', '_')}" for path in paths}
    assert {name.partition(".")[0] for name in tensors} - known == set()


def test_the_key_map_of_forge_is_comfyuis_and_leaves_nothing_unmatched(real) -> None:
    """Of every weight of the UNet in diffusers' names; of the text encoder lora_te_text_model_encoder_layers_..."""
    unet, text_encoder, tensors = real
    known = {f"lora_unet_{key.removesuffix('.weight').replace('.', '_')}" for key in unet.state_dict()}
    layers = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2")
    known |= {f"lora_te_text_model_encoder_layers_{index}_{layer}" for index in range(32) for layer in layers}
    assert {name.partition(".")[0] for name in tensors} - known == set()


def test_a_file_of_the_suite_is_loaded_by_every_client(real) -> None:
    assert [(one.client, one.loads) for one in verdicts_of(real[2], real[2])] == [(client, True) for client in CLIENTS]


def test_names_without_the_level_of_the_text_model_fail_where_the_clients_fail(real) -> None:
    raw = {name.replace("lora_te_text_model_", "lora_te_"): value for name, value in real[2].items()}
    found = {one.client: one for one in verdicts_of(raw, real[2])}
    assert {client for client in CLIENTS if not found[client].loads} == {"A1111", "Forge", "ComfyUI", "InvokeAI"}
    assert "whole file" in found["Forge"].reason and "refuses" in found["InvokeAI"].reason


def test_diffusers_names_are_for_diffusers_and_comfyui(real) -> None:
    raw = {re.sub("^lora_unet_(.*)", r"unet.\1", name).replace(".lora_down", ".lora_A"): value
           for name, value in real[2].items() if name.startswith("lora_unet_") and "down.weight" in name}  # fmt: skip
    found = {one.client for one in verdicts_of(raw, real[2]) if not one.loads}
    assert found == {"A1111", "InvokeAI"}


def test_kinds_that_a_client_does_not_read_are_told() -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    loha = {f"{name}.{part}": torch.ones(768, 768) for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")}
    dora = {f"{name}.{part}": torch.ones(768, 768) for part in ("lora_up.weight", "lora_down.weight", "dora_scale")}
    for tensors, refusing in ((loha, {"diffusers"}), (dora, {"diffusers", "A1111"})):
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
        assert {one.client for one in verdicts_of(tensors, tensors) if not one.loads} == refusing
