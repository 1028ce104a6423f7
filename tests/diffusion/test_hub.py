"""Hub ids: opened like the folder they stand for, offline from the cache, and errors with a way out."""

import json
import logging
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from library.diffusion import hub
from library.diffusion.families.sdxl import SDXL
from library.diffusion.model_files import load_model, open_base
from library.errors import InputError
from tests.helpers import tiny_sdxl
from tests.helpers.base_models import assert_same_weights, rules


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, model_folder: Path) -> list[list[str]]:
    """A hub whose every repository is the tiny model; the patterns asked for are noted."""
    asked: list[list[str]] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(model_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_opens_like_the_folder_that_it_stands_for(fake_hub, model_folder: Path) -> None:
    model, local = open_base(rules("someone/tiny-model")), open_base(rules(model_folder))
    assert_same_weights(model, (local.unet, local.vae, local.text_encoder))
    assert model.fingerprint == local.fingerprint
    assert not any(pattern.endswith((".bin", ".ckpt", "*")) for patterns in fake_hub for pattern in patterns)
    assert not any("safetensors" in pattern for pattern in fake_hub[0])  # settings are looked at before weights come


def test_a_vae_may_be_a_hub_id(fake_hub, model_folder: Path) -> None:
    assert open_base(rules(model_folder, vae="someone/vae")).fingerprint != open_base(rules(model_folder)).fingerprint
    assert fake_hub == [list(hub.VAE)]


def test_an_sdxl_repository_is_fetched_with_both_text_encoders_and_its_refiner_is_refused_before_its_weights(
    fake_hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_sdxl.write_model(tmp_path / "xl")
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: fake_hub.append(allow_patterns) or str(folder),
    )
    assert open_base(rules("someone/xl")).family is SDXL
    assert not any("_2/model" in pattern for pattern in fake_hub[0]) and set(hub.SECOND_TEXT) <= set(fake_hub[1])
    fake_hub.clear()
    shutil.rmtree(folder / "text_encoder")
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: fake_hub.append(name) or str(folder)
    )
    with pytest.raises(InputError, match="is SDXL's refiner"):
        open_base(rules("someone/xl"))
    assert fake_hub == ["someone/xl"]


def test_a_fetched_tokenizer_is_kept_in_its_own_cache_and_taken_from_there(
    fake_hub, tmp_path: Path, model_folder: Path
) -> None:
    cache = tmp_path / "tokenizers"
    open_base(rules("someone/tiny-model", tokenizer_cache_dir=str(cache)))
    kept = cache / "someone_tiny-model"
    assert {file.name for file in kept.iterdir()} == {file.name for file in (model_folder / "tokenizer").iterdir()}
    (kept / "tokenizer_config.json").write_text(json.dumps({"pad_token": "!", "tokenizer_class": "CLIPTokenizer"}))
    (kept / "special_tokens_map.json").unlink()
    fake_hub.clear()
    model = open_base(rules("someone/tiny-model", tokenizer_cache_dir=str(cache)))
    assert model.tokenizer.pad_token == "!" and [path.name for path in cache.iterdir()] == ["someone_tiny-model"]
    assert not any("tokenizer" in pattern for patterns in fake_hub for pattern in patterns)


def test_a_local_model_needs_no_tokenizer_cache_and_is_told_so(model_folder: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO, logger="library"):
        open_base(rules(model_folder, tokenizer_cache_dir=str(tmp_path / "tokenizers")))
    assert "tokenizer_cache_dir has no effect here" in caplog.text and not (tmp_path / "tokenizers").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(LocalEntryNotFoundError("x"), "the hub does not answer, and the local cache does not have it"),
     (FileNotFoundError("no such repository\nmore"), "no such repository"), (ValueError("bad id"), "bad id")],
)  # fmt: skip
def test_a_hub_id_that_cannot_be_fetched_names_itself_the_reason_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def refuse(name: str, allow_patterns: list[str]) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # tests/run.sh sets it
    with pytest.raises(InputError) as caught:
        open_base(rules("someone/model"))
    text = str(caught.value)
    assert "'someone/model'" in text and reason in text and "give the folder's path" in text
    assert issubclass(RepositoryNotFoundError, OSError)  # so that it is answered too


def hub_cache(place: Path, model_folder: Path) -> Path:
    """The hub's own cache layout with one repository in it."""
    repository = place / "models--someone--tiny"
    shutil.copytree(model_folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return place


def test_offline_a_cached_repository_opens_and_another_is_named(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub itself, not a stand-in: with HF_HUB_OFFLINE it looks into its cache alone."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub_cache(tmp_path / "cache", model_folder)))
    assert open_base(rules("someone/tiny")).fingerprint == load_model(str(model_folder)).fingerprint
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set, and the local cache does not have it"):
        open_base(rules("someone/absent"))


def test_a_missing_checkpoint_is_told_as_a_missing_file_with_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "painting.safetensors").touch()
    (tmp_path / "models" / "notes.txt").touch()
    for name, said in (
        (
            "models/paintings.safetensors",
            "the file 'models/paintings.safetensors' does not exist; did you mean",
        ),
        ("models/sd.ckpt", "the file 'models/sd.ckpt' does not exist; 'models' holds 'painting.safetensors'"),
        ("nowhere/sd.safetensors", "the file 'nowhere/sd.safetensors' does not exist (nor does 'nowhere')"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
            with pytest.raises(InputError) as caught:
                open_base(rules(name))
        assert said in str(caught.value) and "hub id" not in str(caught.value)
