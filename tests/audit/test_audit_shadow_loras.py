"""Shadow LoRAs end to end: trained by the door with the target's recipe, asked, and used by two attacks."""

import json
import shutil
from pathlib import Path

import pytest
import toml

import audit
from library.audit.queries import audited_model
from library.audit.targets.provenance import read_adapter
from library.errors import InputError
from library.options import resolve
from tests.helpers import audit_run

FLAGS = ("--shadow_loras", 2, "--shadow_transfer")


@pytest.fixture(scope="module")
def audited(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose options would trip a careless shadow (previews, states, names, checkpoints), and its audit."""
    place = tmp_path_factory.mktemp("shadowed")
    out = audit_run.train(model_folder, place, max_train_epochs=2, save_every_n_epochs=1, save_state=True,
                          output_name="private-name", save_model_as="safetensors", resolution=16,
                          train_batch_size=40)  # fmt: skip
    assert audit.main([str(out), *audit_run.options(out, *FLAGS)]) == 0
    return out


def findings(out: Path) -> dict:
    return json.loads((out / "audit" / "findings.json").read_text())


@pytest.mark.slow
def test_the_likelihood_ratio_stands_among_the_attacks_with_its_control(audited):
    found = {one["name"]: one for one in findings(audited)["findings"]}
    assert found["lira"]["chosen"] == "2 shadows" and found["lira"]["auc_off"] is not None
    assert found["lira"]["members"] == 20


@pytest.mark.slow
def test_attacks_fitted_on_a_shadow_stand_beside_those_fitted_on_the_aux_sides(audited):
    content = findings(audited)
    transferred = [one["name"] for one in content["findings_with_a_shadow"]]
    assert transferred == [one["name"] for one in content["findings"] if one["name"] not in ("lira", "drawings")]
    assert content["facts"]["shadow"].startswith("20 exposures per member picture, the LoRA under audit 20")
    text = (audited / "audit" / "report.html").read_text()
    assert "AUC, fitted on a shadow" in text and "Blue diamonds" in text


@pytest.mark.slow
def test_shadows_are_private_twins_that_train_on_other_members(audited):
    folders = sorted((audited / "audit" / "shadows").iterdir())
    assert len(folders) == 3
    target = {entry["pixels"]: entry["side"] for entry in json.loads((audited / "split.json").read_text())["images"]}
    rank = read_adapter(audited / "private-name.safetensors")[2].settings["network_dim"]
    transfers = 0
    for folder in folders:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.glob("*.safetensors"))
        assert sorted(file.name for file in folder.glob("*.safetensors"))[-1] == "shadow.safetensors"
        assert not list(folder.glob("*-0*.safetensors")) and not list(folder.glob("*state*"))
        assert read_adapter(folder / "shadow.safetensors")[2].settings["network_dim"] == rank
        sides = {entry["pixels"]: entry["side"] for entry in json.loads((folder / "sides.json").read_text())["images"]}
        members = {pixels for pixels, side in sides.items() if side.startswith("members")}
        assert members != {pixels for pixels, side in target.items() if side.startswith("members")}
        transfers += members == {pixels for pixels, side in target.items() if side == "non-members-aux"}
    assert transfers == 1


@pytest.mark.slow
def test_finished_shadows_are_kept_and_scored_without_a_model(audited, monkeypatch):
    before = findings(audited)
    monkeypatch.setattr(audited_model, "open_model", lambda path: pytest.fail("the model was opened"))
    assert audit.main([str(audited), *audit_run.options(audited, *FLAGS, "--scores_only")]) == 0
    again = findings(audited)
    assert again["findings"] == before["findings"]
    assert again["findings_with_a_shadow"] == before["findings_with_a_shadow"]


@pytest.mark.slow
def test_a_retrained_target_gets_new_shadows(audited, tmp_path):
    out = Path(shutil.copytree(audited, tmp_path / "out"))
    content = toml.loads((out / "config.toml").read_text())
    next(table for table in content.values() if "learning_rate" in table)["learning_rate"] = 1e-3
    (out / "config.toml").write_text(toml.dumps(content))
    with pytest.raises(InputError, match="holds no answers of this LoRA and profile yet"):
        audit.main([str(out), *audit_run.options(audited, *FLAGS, "--scores_only")])


@pytest.mark.slow
def test_shadows_of_another_trainers_lora_are_refused(audited, tmp_path):
    shutil.copy2(audited / "split.json", tmp_path)
    content = toml.loads((audited / "config.toml").read_text())
    (tmp_path / "config.toml").write_text(toml.dumps(content))
    from safetensors.torch import load_file, save_file

    save_file(load_file(audited / "private-name.safetensors"), tmp_path / "foreign.safetensors")
    with pytest.raises(InputError, match="another trainer made this one; leave shadow_loras"):
        audit.main([str(tmp_path / "foreign.safetensors"), *audit_run.options(audited, *FLAGS)])


def test_a_recipe_is_all_that_shapes_the_weights_and_nothing_of_the_run():
    settings = {"learning_rate": 1e-4, "seed": 3, "split_file": "s", "resume": "r", "output_name": "o",
                "sample_prompts": "p", "save_precision": "fp16", "max_train_epochs": 2, "profile": "lite"}  # fmt: skip
    assert resolve.recipe_of("PLoRA", settings) == {
        "learning_rate": 1e-4, "max_train_epochs": 2, "save_precision": "fp16"
    }  # fmt: skip
    assert resolve.recipe_of("", settings) == {}
