"""The attack on a LoRA's weights as a user runs it: with and without a public folder, and what it refuses."""

import json
import shutil
import stat
from pathlib import Path

import pytest

import audit
from library import file_table
from library.errors import InputError
from library.options.resolve import read_config
from library.tensor_files import read_tensors, write_tensors
from tests.helpers import audit_run, tiny, tiny_sdxl
from tests.helpers.places import check_place

PAINTED = ("painted class prompt, no encoder", *(f"painted guided, w {weight}" for weight in (3, 5, 10)))
ALONE = ("zero-shot", "gallery", *PAINTED)
WORDS = ("walrus", "ocelot", "quokka", "zebrafolder")
FEW = ("--reconstruction_shadows", 16, "--reconstruction_steps", 10, "--class_prompt", "portrait")


def public_folder(place: Path, persons: int = 18, grouped: bool = True) -> Path:
    """A kohya folder of strangers, four pictures each."""
    tiny.write_pictures(place, 4 * persons, first=500)
    groups = {f"quokka{500 + i:03d}": f"stranger{i // 4:02d}" for i in range(4 * persons)}
    if grouped:
        (place / "groups.json").write_text(json.dumps(groups))
    return place


@pytest.fixture(scope="module")
def trained(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a LoRA."""
    return audit_run.train(model_folder, tmp_path_factory.mktemp("weights"))


def attack(out: Path, *more: object) -> dict:
    """The figures of ``audit.py --attacks reconstruction``."""
    assert audit.main([str(out), *audit_run.options(out, "--attacks", "reconstruction", *more)]) == 0
    return json.loads((out / "audit" / "reconstruction.json").read_text())


def copied(trained: Path, tmp_path: Path) -> Path:
    """The same training elsewhere, not yet audited."""
    return shutil.copytree(trained, tmp_path / "out", ignore=shutil.ignore_patterns("audit"))


@pytest.mark.slow
def test_one_file_and_no_corpus_gets_what_needs_no_shadows_and_is_told_what_was_skipped(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(trained, tmp_path)
    before = (out / "last.safetensors").read_bytes()
    found = attack(out)
    assert [row["attack"] for row in found["rows"]] == list(ALONE)
    assert any("--public_data_dir" in text for text in found["skipped"])
    assert any("text encoder" in text for text in found["skipped"])
    for row in found["rows"]:
        assert row["kind"] == "AUC" and row["shadows"] == 0 and 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert {"base alone", "shuffled weights", "true set mean"} <= set(row["controls"])
        if row["attack"] in PAINTED:  # the base paints something as well
            assert row["attack"] == PAINTED[0] or "class prompt, no encoder" in row["controls"]
        else:
            assert row["controls"]["base alone"] == 0.5, "B = 0 says nothing"
    assert (out / "audit" / "reconstruction" / "pictures.png").is_file()
    assert "pictures from the weights: " in capsys.readouterr().out
    assert (out / "last.safetensors").read_bytes() == before, "nothing of it enters the LoRA file"
    check_place(out / "audit", file_table.AUDIT_DIR)
    for path in (out / "audit").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    text = (out / "audit" / "reconstruction.json").read_text() + (out / "audit" / "reconstruction.html").read_text()
    assert not any(word in text for word in (*WORDS, str(tmp_path)))


@pytest.mark.slow
def test_a_public_folder_trains_shadows_once_and_the_attacks_that_learn_from_them_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, public = copied(trained, tmp_path), public_folder(tmp_path / "public")
    found = attack(out, "--public_data_dir", public, *FEW)
    fitted = [row for row in found["rows"] if row["shadows"]]
    assert {row["attack"] for row in fitted} == {"kernel", "probes", "zero-shot, centred"}
    assert all(row["shadows"] == 16 and "LoRA of other persons" in row["controls"] for row in fitted)
    shadows = out / "audit" / "reconstruction" / "shadows"
    check_place(out / "audit", file_table.AUDIT_DIR)
    files = [path for path in shadows.rglob("*") if path.is_file()]
    assert len(files) == 2
    for path in [shadows, *shadows.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    content = b"".join(path.read_bytes() for path in files)
    assert not any(word.encode() in content for word in (*WORDS, "stranger", "portrait,"))
    monkeypatch.setattr(
        "library.audit.reconstruction.shadow_corpus.train_stack", lambda *a, **k: pytest.fail("trained again")
    )
    assert attack(out, "--public_data_dir", public, *FEW) == found


@pytest.mark.slow
def test_an_sdxl_lora_is_attacked_with_and_without_shadows(tmp_path: Path) -> None:
    base = tiny_sdxl.write_model(tmp_path / "sdxl")
    out = audit_run.train(base, tmp_path, network_train_unet_only="true")
    alone = attack(out)
    assert [row["attack"] for row in alone["rows"]] == list(ALONE)
    fitted = [row for row in attack(out, "--public_data_dir", public_folder(tmp_path / "public"), *FEW)["rows"]]
    assert {"kernel", "probes", "zero-shot, centred"} <= {row["attack"] for row in fitted}


@pytest.mark.slow
def test_what_would_make_the_attack_meaningless_is_refused_and_nothing_is_lost(trained: Path, tmp_path: Path) -> None:
    out = copied(trained, tmp_path)
    with pytest.raises(InputError, match="does not say whose its 72 pictures are; put a groups.json"):
        attack(out, "--public_data_dir", public_folder(tmp_path / "loose", grouped=False))
    private = shutil.copytree(trained.parent / "pictures", tmp_path / "private")
    names = sorted(path.stem for path in private.rglob("*.png"))
    (private / "groups.json").write_text(json.dumps({name: f"g{i // 4}" for i, name in enumerate(names)}))
    with pytest.raises(InputError, match="are on the split"):
        attack(out, "--public_data_dir", private)
    assert not (out / "audit" / "reconstruction.json").exists()
    lora = out / "last.safetensors"
    tensors, metadata = read_tensors(lora)
    write_tensors(lora, tensors, {**metadata, "ss_privacy_base_fingerprint": "0" * 64})
    with pytest.raises(InputError, match="trained on another base model"):
        attack(out)
    write_tensors(lora, {name: value for name, value in tensors.items() if "lora_unet" not in name}, metadata)
    with pytest.raises(InputError, match="trains the text encoder alone"):
        attack(out)
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    write_tensors(lora, {**tensors, name: tensors[name] * float("nan")}, metadata)
    with pytest.raises(InputError, match="NaN"):
        attack(out)


def test_a_public_folder_without_the_attack_and_one_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add reconstruction to attacks"):
        read_config("audit", ["--outputs", "x", "--public_data_dir", str(tmp_path)])
    with pytest.raises(InputError, match="public_data_dir '.*nowhere' does not exist"):
        read_config(
            "audit", ["--outputs", "x", "--attacks", "reconstruction", "--public_data_dir", str(tmp_path / "nowhere")]
        )
