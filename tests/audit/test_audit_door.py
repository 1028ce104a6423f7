"""The audit as a user runs it: a leaking LoRA is found, broken input is explained, nothing private gets out."""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import audit
from library.audit.queries import audited_model, run_queries
from library.audit.targets.lora_runs import find_runs
from library.audit.targets.provenance import provenance
from library.errors import InputError
from library.lora_files.other_names import kohya_named
from library.options.resolve import TYPES, given_options, read_config
from library.options.sources import outputs_named
from library.tensor_files import read_tensors
from tests.helpers import audit_run, tiny
from tests.helpers.audit_run import options
from tests.helpers.json_schema import complaints

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of a LoRA that saw its few members some forty times."""
    return audit_run.train(model_folder, tmp_path_factory.mktemp("trained"), save_every_n_epochs=2)


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil; its pictures stay where they are."""
    return Path(shutil.copytree(trained, tmp_path / "out"))


@pytest.fixture(scope="module")
def audited(trained: Path) -> dict:
    """Findings of the whole audit, all checkpoints, with drawings."""
    flags = options(trained, "--checkpoints", "all", "--generated_images", 1, "--generation_captions", 4)
    assert audit.main([str(trained), *flags, "--generation_steps", "2"]) == 0
    return json.loads((trained / "audit" / "findings.json").read_text())


def test_the_door_is_one_page():
    assert (ROOT / "audit.py").read_text().count("\n") <= 160
    assert (ROOT / "compare.py").read_text().count("\n") <= 160


@pytest.mark.slow
def test_an_audit_leaves_a_private_report_and_states_its_facts(trained, audited):
    folder = trained / "audit"
    assert folder.stat().st_mode & 0o777 == 0o700
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files and all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert all(place.stat().st_mode & 0o777 == 0o700 for place in folder.rglob("*") if place.is_dir())
    assert audited["verdict"]["word"] != "invalid" and audited["p_max_over_controls"] > 0.01  # off, blind: at chance
    assert audited["exposures_per_image"] == 40 and audited["method"] == "LoRA" and audited["defended"] is False
    assert audited["images"] == {side: 20 for side in audited["images"]} and audited["epsilon_is_valid"] is False
    assert {"vae_frechet_distance", "vae_kernel_distance"} <= set(audited["utility"])
    assert not any("fid" in name or "clip" in name for name in audited["utility"])  # no weights, no such name
    assert audited["facts"]["black box"] == "distance in the VAE's space"
    assert "drawings" in [one["name"] for one in audited["findings"]]


@pytest.mark.slow
def test_no_caption_stands_in_any_file_of_the_audit(trained, audited):
    cache = trained.parent / "cache"
    for file in [*(trained / "audit").rglob("*"), *cache.rglob("*")]:
        if file.is_file():
            assert b"walrus" not in file.read_bytes() and b"ocelot" not in file.read_bytes()
            assert b"quokka" not in file.read_bytes() or file.name == "report.html"


@pytest.mark.slow
def test_the_report_shows_the_course_over_checkpoints(trained, audited):
    text = (trained / "audit" / "report.html").read_text()
    assert "AUC and held-out gain against exposures" in text and "000002" in text


@pytest.mark.slow
def test_a_bound_that_may_not_be_passed_gives_the_exit_status_and_findings_fit_their_schema(trained, audited, capsys):
    flags = options(trained, "--scores_only", "--checkpoints", "last")
    main = next(one for one in audited["findings"] if one["name"] == audited["primary"])
    low, high = main["auc_interval"]
    assert audited["verdict"]["word"] != "invalid" and max(high, 1 - low) > 0.6
    assert audit.main([str(trained), *flags, "--fail_above", "0.60"]) == 3
    said = capsys.readouterr().out
    assert said.rindex("What to do now:") > said.rindex("report of ")  # the verdict comes last
    content = json.loads((trained / "audit" / "findings.json").read_text())
    assert complaints(content, json.loads((ROOT / "docs" / "findings.schema.json").read_text())) == []
    assert content["checkpoint_sha256"] == hashlib.sha256((trained / "last.safetensors").read_bytes()).hexdigest()
    with pytest.raises(InputError, match="fail_above must be at least 0.5, got 0.4"):
        audit.main([str(trained), *flags, "--fail_above", "0.4"])


@pytest.mark.slow
def test_the_earlier_files_of_a_training_are_audited_for_the_curve(out, trained):
    shutil.rmtree(out / "audit", ignore_errors=True)
    assert audit.main([str(out), *options(trained)]) == 0
    text = (out / "audit" / "report.html").read_text()
    assert "AUC and held-out gain against exposures" in text and "out 000002" in text


@pytest.mark.slow
@pytest.mark.parametrize("door", ["PLoRA", "SPLoRA"])
def test_a_training_with_audit_ends_with_the_verdict(door, model_folder, tmp_path):
    tiny.write_pictures(tmp_path / "pictures", 80, repeats=1)
    flags = ["--pretrained_model_name_or_path", model_folder, "--train_data_dir", tmp_path / "pictures", "--resolution",
             "16", "--output_dir", tmp_path / "out", "--max_train_steps", "2", "--inclusion", "fixed", "--cache_dir",
             tmp_path / "cache", "--train_batch_size", "8", "--audit"]  # fmt: skip
    done = subprocess.run([sys.executable, str(ROOT / f"{door}.py"), *map(str, flags)], capture_output=True, text=True,
                          check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "audit" / "findings.json").is_file() and (tmp_path / "out" / "training.png").is_file()
    last = done.stdout[done.stdout.rindex("What to do now:") :]
    assert (
        "main attack (All profiles, linear): AUC" in last
        and "audit = " not in (tmp_path / "out/config.toml").read_text()
    )


@pytest.mark.slow
def test_scores_only_asks_no_model_and_gives_the_same_figures(trained, audited, monkeypatch):
    monkeypatch.setattr(audited_model, "open_model", lambda path: pytest.fail("the model was opened"))
    assert audit.main([str(trained), *options(trained, "--scores_only")]) == 0
    again = json.loads((trained / "audit" / "findings.json").read_text())
    kept = [one for one in audited["findings"] if one["name"] != "drawings"]
    assert again["findings"] == kept and again["verdict"] == audited["verdict"]


@pytest.mark.slow
def test_the_base_is_asked_once_for_all_loras(trained, audited, out, monkeypatch):
    asked = []
    original = run_queries.fill_cache

    def counting(store, pictures, *rest):
        asked.append(len(store.missing([picture.key for picture in pictures])))
        return original(store, pictures, *rest)

    monkeypatch.setattr(run_queries, "fill_cache", counting)
    shutil.rmtree(out / "audit")
    assert audit.main([str(out), *options(trained), "--checkpoints", "last"]) == 0
    assert asked == [0, 0, 80, 80]  # base, untrained adapter, then this copy's own folder


@pytest.mark.slow
def test_a_killed_audit_goes_on_where_it_stopped_and_ends_the_same(trained, audited, out, monkeypatch):
    shutil.rmtree(out / "audit")
    original, asked = run_queries.Asker.gradients, []

    def dying(self, batch):
        asked.append(len(batch))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(run_queries.Asker, "gradients", dying)
    with pytest.raises(KeyboardInterrupt):
        audit.main([str(out), *options(trained)])
    monkeypatch.undo()
    kept = len(list((out / "audit" / "records").glob("*/*.safetensors")))
    assert kept > 0 and not (out / "audit" / "findings.json").exists()
    assert audit.main([str(out), *options(trained)]) == 0
    found = json.loads((out / "audit" / "findings.json").read_text())
    assert found["findings"] == [one for one in audited["findings"] if one["name"] != "drawings"]


@pytest.mark.slow
def test_a_stamp_states_aggregates_and_leaves_the_tensors_alone(trained, audited, out):
    before = load_file(out / "last.safetensors")
    assert audit.main([str(out), *options(trained, "--scores_only", "--stamp")]) == 0
    tensors, metadata = read_tensors(out / "last.safetensors")
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    assert "20" not in [text for name, text in metadata.items() if "audit" in name] and "20+20" not in str(metadata)
    assert re.fullmatch(r"\d\.\d\d \[\d\.\d\d, \d\.\d\d\]", metadata["ss_privacy_audit_auc"])
    assert "quokka" not in json.dumps(metadata) and metadata["ss_privacy_method"] == "PLoRA"


@pytest.mark.slow
def test_answers_of_the_lora_before_are_not_stamped_on_the_one_that_took_its_place(trained, audited, out):
    shutil.copytree(trained / "audit", out / "audit", dirs_exist_ok=True)
    file = out / "last.safetensors"
    tensors, metadata = read_tensors(file)
    save_file({name: value * 1.5 for name, value in tensors.items()}, str(file), metadata)
    before = file.read_bytes()
    with pytest.raises(InputError, match="are of another LoRA .*run once without --scores_only"):
        audit.main([str(out), *options(trained, "--scores_only", "--stamp")])
    assert file.read_bytes() == before


@pytest.mark.slow
def test_a_lora_of_another_base_is_refused(out, trained):
    other = tiny.write_model(out.parent / "other", seed=1)
    with pytest.raises(InputError, match="was trained on another base model"):
        audit.main([str(out), *options(trained, "--pretrained_model_name_or_path", other)])


@pytest.mark.slow
def test_a_lora_with_nan_is_refused(out, trained):
    tensors, metadata = read_tensors(out / "last.safetensors")
    name = next(name for name in tensors if "lora_up" in name)
    tensors[name][0, 0] = float("nan")
    save_file(tensors, out / "last.safetensors", metadata)
    with pytest.raises(InputError, match="NaN or infinity in 1 tensors"):
        audit.main([str(out), *options(trained)])


@pytest.mark.slow
def test_a_split_of_other_pictures_is_refused(out, trained, tmp_path):
    others = tiny.write_pictures(tmp_path / "others", 8, first=500)
    with pytest.raises(InputError, match="is the split of another dataset: none of its 80 pictures"):
        audit.main([str(out), *options(trained, "--train_data_dir", others)])


@pytest.mark.slow
def test_missing_and_changed_pictures_and_captions_are_named(out, trained, tmp_path):
    pictures = Path(shutil.copytree(trained.parent / "pictures", tmp_path / "pictures"))
    place = pictures / "10_zebrafolder"
    (place / "quokka003.png").unlink()
    tiny.write_picture(place / "quokka004.png", 999)
    with pytest.raises(InputError) as caught:
        audit.main([str(out), *options(trained, "--train_data_dir", pictures)])
    text = str(caught.value)
    assert re.search(r"1 pictures have changed since training.*'quokka004.png'", text)
    assert re.search(r"1 pictures of the split are missing: 'quokka003.png'", text)


@pytest.mark.slow
def test_a_changed_caption_is_named_and_not_shown(out, trained, tmp_path):
    pictures = Path(shutil.copytree(trained.parent / "pictures", tmp_path / "pictures"))
    (pictures / "10_zebrafolder" / "quokka005.txt").write_text("secretword\n")
    with pytest.raises(InputError, match="1 captions differ from those of the training: 'quokka005.png'") as caught:
        audit.main([str(out), *options(trained, "--train_data_dir", pictures)])
    assert "secretword" not in str(caught.value) and "walrus" not in str(caught.value)


@pytest.mark.slow
def test_too_few_pictures_for_the_rate_are_refused_before_the_sweep(out, trained):
    with pytest.raises(InputError, match="target_fpr=0.01 needs 100 non-members on the aux side, got 20"):
        audit.main([str(out), "--cache_dir", str(trained.parent / "cache"), "--target_fpr", "0.01"])


def test_a_folder_without_its_split_or_options_or_lora_is_explained_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        audit.main([str(tmp_path / "empty"), str(tmp_path / "nowhere")])
    for needed in ("config.toml", "split.json", "holds no LoRA file", "neither an output folder"):
        assert needed in str(caught.value)


def test_a_call_without_folders_says_what_to_do():
    with pytest.raises(InputError, match="nothing to audit; give one or more output folders"):
        audit.main([])


@pytest.mark.slow
def test_scores_only_without_a_sweep_says_so(out, trained):
    shutil.rmtree(out / "audit", ignore_errors=True)
    with pytest.raises(InputError, match="holds no answers of this LoRA and profile yet; run once without"):
        audit.main([str(out), *options(trained, "--scores_only")])


@pytest.mark.slow
def test_a_lora_that_changes_nothing_makes_the_audit_invalid(out, trained):
    tensors, metadata = read_tensors(out / "last.safetensors")
    save_file(
        {name: value * ("lora_up" not in name) for name, value in tensors.items()}, out / "last.safetensors", metadata
    )
    shutil.rmtree(out / "audit", ignore_errors=True)
    assert audit.main([str(out), *options(trained)]) == 0
    found = json.loads((out / "audit" / "findings.json").read_text())
    assert found["verdict"]["word"] == "invalid" and "changes nothing" in found["verdict"]["sentence"]


@pytest.mark.slow
def test_the_split_of_another_run_is_refused_before_the_model_is_asked(out, trained, monkeypatch):
    """config.toml keeps a hash of the split under its secret; members as non-members would give "no evidence"."""
    content = json.loads((out / "split.json").read_text())
    for entry in content["images"]:
        entry["side"] = entry["side"].replace("non-", "") if "non-" in entry["side"] else f"non-{entry['side']}"
    (out / "split.json").write_text(json.dumps(content))
    monkeypatch.setattr(audited_model, "open_model", lambda path: pytest.fail("the model was opened"))
    with pytest.raises(InputError, match="split.json' is not the split that .* was trained on"):
        audit.main([str(out), *options(trained)])


@pytest.mark.slow
def test_a_bare_file_of_another_trainer_is_audited_with_base_pictures_and_split(trained, tmp_path):
    """The same LoRA under diffusers' names, without metadata, gives the same scores."""
    tensors, _ = read_tensors(trained / "last.safetensors")
    foreign = {name: value for name, value in diffusers_named(tensors).items()}
    save_file(foreign, tmp_path / "foreign.safetensors")
    config = dict(re.findall(r'^(\w+) = "(.*)"$', (trained / "config.toml").read_text(), re.M))
    flags = ["--split_file", trained / "split.json", "--train_data_dir", config["train_data_dir"], "--resolution", "16",
             "--pretrained_model_name_or_path", config["pretrained_model_name_or_path"]]  # fmt: skip
    assert audit.main([str(tmp_path / "foreign.safetensors"), *options(trained, *flags)]) == 0
    found = json.loads((tmp_path / "foreign-audit" / "findings.json").read_text())
    assert found["method"] == "another trainer" and found["exposures_per_image"] is None
    theirs = {one["name"]: one["auc"] for one in found["findings"]}
    assert audit.main([str(trained), *options(trained)]) == 0
    ours = json.loads((trained / "audit" / "findings.json").read_text())["findings"]
    assert theirs["loss"] == pytest.approx({one["name"]: one["auc"] for one in ours}["loss"], abs=0.01)


def diffusers_named(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """kohya's names of the tiny model's attention layers as diffusers writes them; alpha equals the rank."""
    parts = {"lora_unet_": "unet.", "lora_te_": "text_encoder."}
    renamed = {}
    for name, value in tensors.items():
        module, _, factor = name.partition(".")
        if factor == "alpha":
            continue
        prefix = next(prefix for prefix in parts if module.startswith(prefix))
        path = module[len(prefix) :]
        for place in ("transformer_blocks", "down_blocks", "up_blocks", "mid_block", "text_model", "self_attn"):
            path = path.replace(f"{place}_", f"{place.replace('_', '~')}.")
        path = re.sub(r"(?<=[.])(\d+)_", r"\1.", path)
        for word in ("attentions", "attn1", "attn2", "ff", "net", "encoder", "layers", "mlp", "to~out"):
            path = re.sub(rf"(?<![a-z]){word}_", f"{word}.", path.replace("to_out", "to~out"))
        path = re.sub(r"(?<=[.])(\d+)_", r"\1.", path).replace("~", "_")
        renamed[f"{parts[prefix]}{path}.{'lora_A' if 'down' in factor else 'lora_B'}.weight"] = value
    return renamed


def test_names_of_diffusers_and_peft_become_kohyas_with_the_stated_alpha():
    down, up = torch.ones(2, 3), torch.ones(4, 2)
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    kohya = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    weights = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    found = kohya_named(weights, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8})})
    assert set(found) == {f"{kohya}.lora_down.weight", f"{kohya}.lora_up.weight", f"{kohya}.alpha"}
    assert float(found[f"{kohya}.alpha"]) == 8
    old = name.replace("to_q", "processor.to_q_lora")
    assert set(kohya_named({f"{old}.down.weight": down, f"{old}.up.weight": up}, {})) == set(found) - {f"{kohya}.alpha"}


def test_text_encoder_names_of_new_transformers_become_the_clients():
    weights = {"lora_te_encoder_layers_0_mlp_fc1.alpha": torch.tensor(1.0), "lora_unet_a.alpha": torch.tensor(1.0)}
    wanted = {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "lora_unet_a.alpha"}
    assert set(kohya_named(weights, {})) == wanted == set(kohya_named(kohya_named(weights, {}), {}))


def test_a_stamp_or_new_metadata_does_not_change_what_a_lora_is_known_by():
    tensors = {"lora_unet_a.lora_down.weight": torch.ones(2, 3)}
    assert provenance(tensors, {}).fingerprint == provenance(tensors, {"ss_privacy_audit_auc": "0.9"}).fingerprint
    assert provenance(tensors, {"ss_privacy_param_alpha": "0.0", "ss_privacy_method": "PLoRA"}).method == "LoRA"
    assert provenance(tensors, {"ss_privacy_param_alpha": "0.05", "ss_privacy_method": "PLoRA"}).defended is True


def test_folders_may_stand_anywhere_on_the_command_line():
    words = [
        "--config_file",
        "a.toml",
        "one",
        "--profile",
        "full",
        "two",
        "--stamp",
        "three",
        "--target_fpr=0.1",
        "four",
    ]
    assert outputs_named(words, TYPES) == [
        "--config_file", "a.toml", "--profile", "full", "--stamp", "--target_fpr=0.1",
        "--outputs", "one", "two", "three", "four",
    ]  # fmt: skip
    assert outputs_named(["--outputs", "a", "b", "--stamp"], TYPES) == ["--outputs", "a", "b", "--stamp"]


@pytest.mark.slow
def test_what_is_named_beside_an_output_folder_beats_its_config(out: Path, tmp_path: Path) -> None:
    """An option that is taken must count: an audit under another clip_skip than asked for would mislead."""
    words = outputs_named([str(out), "--clip_skip", "2", "--train_data_dir", str(tmp_path)], TYPES)
    config = read_config("audit", words)
    said = {name: getattr(config, name) for name in given_options("audit", words)}
    (run,) = find_runs(config.outputs, "last", defaults=dataclasses.asdict(config), overrides=said, split_file=None)
    assert run.settings["clip_skip"] == 2 and run.settings["train_data_dir"] == str(tmp_path)
    assert run.settings["dataset_config"] is None and run.settings["resolution"] == "16"
