"""What a run writes: every file stands in one row of the table and has its mode; what is published names nobody."""

import base64
import csv
import hashlib
import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import audit
import compare
from library import file_table
from library.audit.report import publication
from library.audit.targets.provenance import stamp
from library.data.split import sides_hash
from library.errors import InputError
from library.options.resolve import read_config
from library.tensor_files import owners_file, read_tensors, write_whole
from tests.helpers import audit_run
from tests.helpers.data_toy import from_dataset, write_parquet
from tests.helpers.places import check_place
from tools import files_page

# Words that stand nowhere else: in the path, in the output folder's name, in names of groups, files and captions
SECRETS = ("narwhalplace", "kiwirun", "wombatgroup", "zebrafolder", "quokka", "walrus", "ocelot")


@pytest.fixture(scope="module")
def open_umask() -> Iterator[None]:
    """The umask that hides nothing: what is private now is private by the suite's own doing."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(scope="module")
def whole(model_folder: Path, tmp_path_factory: pytest.TempPathFactory, open_umask: None) -> Path:
    """A run with previews, states, checkpoints and latents on disk; its audit with all it can write."""
    place = tmp_path_factory.mktemp("narwhalplace")
    (place / "prompts.txt").write_text("walrus001 --s 2\n")
    (place / "pictures").mkdir()
    groups = {f"quokka{index:03d}": f"wombatgroup{index // 2}" for index in range(80)}
    (place / "pictures" / "groups.json").write_text(json.dumps(groups))
    out = place / "kiwirun"
    audit_run.train(
        model_folder, place, output_dir=out, max_train_epochs=2, save_every_n_epochs=1,
        save_state="true", sample_prompts=place / "prompts.txt", sample_at_first="true", ema_decay=0.9,
        cache_latents_to_disk="true", cache_dir=place / "cache", inclusion="fixed",
        train_batch_size=40,
    )  # fmt: skip
    flags = ["--generated_images", 1, "--generation_captions", 4, "--generation_steps", 2, "--shadow_transfer"]
    told = ["--stamp", "--publishable", place / "OUT"]
    assert audit.main([str(out), *audit_run.options(out, *flags, *told)]) == 0
    return out


def test_the_page_is_up_to_date() -> None:
    """Otherwise: python -m tools.files_page."""
    assert files_page.PAGE.read_text(encoding="utf-8") == files_page.page()


@pytest.mark.slow
def test_every_file_of_a_run_its_audit_and_its_cache_is_in_the_table_with_its_mode(whole: Path) -> None:
    assert check_place(whole, file_table.OUTPUT_DIR) > 60
    assert check_place(whole / "audit", file_table.AUDIT_DIR) > 30
    assert check_place(whole.parent / "cache", file_table.CACHE_DIR) > 80
    assert check_place(whole.parent / "OUT", file_table.PUBLISHABLE) == 3
    assert (whole / "kiwi.txt").exists() is False
    for private in (whole / "audit", whole.parent / "cache", whole.parent / "OUT"):
        assert private.stat().st_mode & 0o777 == 0o700
    assert (whole / "last.safetensors").stat().st_mode & 0o777 == 0o666  # after a stamp, under this umask


def test_the_walk_fails_on_a_file_without_a_row_and_on_a_mode_that_differs(tmp_path: Path) -> None:
    write_whole(tmp_path / "split.json", "{}")
    assert check_place(tmp_path, file_table.OUTPUT_DIR) == 1
    (tmp_path / "split.json").chmod(0o644)
    with pytest.raises(AssertionError, match="split.json: 644"):
        check_place(tmp_path, file_table.OUTPUT_DIR)
    (tmp_path / "split.json").unlink()
    (tmp_path / "captions.txt").write_text("")
    with pytest.raises(AssertionError, match="captions.txt stands in 0 rows"):
        check_place(tmp_path, file_table.OUTPUT_DIR)


@pytest.mark.slow
def test_every_row_is_needed_by_some_file_or_has_its_reason(whole: Path) -> None:
    """A row that nothing writes would be a promise about nothing."""
    names = [(path.relative_to(whole).as_posix(), path.is_dir()) for path in whole.rglob("*")]
    idle = {row.pattern for row in file_table.TRAINING if not any(row.fits(*name) for name in names)}
    assert idle == {
        "run.lock", "state/<any>-state/first_falls.safetensors", "state/<any>-state/kept.safetensors",
        "state/<any>-teachers/", "state/<any>-teachers/teacher-<number>.safetensors", "tensorboard/<any>/",
        "tensorboard/<any>/events.out.tfevents.*", "wandb/", "wandb/**",
    }  # fmt: skip
    audited = [(name.removeprefix("audit/"), is_folder) for name, is_folder in names if name.startswith("audit/")]
    idle = {row.pattern for row in file_table.AUDIT if not any(row.fits(*name) for name in audited)}
    beside = {pattern for pattern in idle if pattern.startswith(("reconstruction", "robustness"))}
    assert idle == beside and beside  # this audit asks for membership alone; the doors' tests of the others write them


def test_a_dataset_in_the_cache_is_in_the_table(tmp_path: Path, open_umask: None) -> None:
    from_dataset(write_parquet(tmp_path / "x.parquet"), tmp_path / "cache")
    assert check_place(tmp_path / "cache", file_table.CACHE_DIR) > 5
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_what_a_comparison_writes_is_in_the_table(whole: Path, tmp_path: Path, monkeypatch, open_umask: None) -> None:
    """With trainings and audit that are there already."""
    output = tmp_path / "comparison"
    (output / "one").mkdir(parents=True)
    subprocess.run(["cp", "-rp", f"{whole}/.", str(output / "one")], check=True)
    (tmp_path / "plan.toml").write_text('[[runs]]\nname = "one"\ntitle = "LoRA"\ndoor = "PLoRA"\n')
    monkeypatch.setattr(subprocess, "Popen", lambda command, **streams: streams["stderr"].write(b"'me.png' is small"))
    monkeypatch.setattr(subprocess, "run", lambda command, check: subprocess.CompletedProcess(command, 0))

    def train_all(runs, place, jobs):
        compare.start_training(runs[0], place, None)
        compare.mark_finished(runs[0], place)

    monkeypatch.setattr(compare, "train_all", train_all)
    assert compare.main(["--config_file", str(tmp_path / "plan.toml"), "--output_dir", str(output)]) == 0
    check_place(output, file_table.COMPARE_DIR)
    own = {"table.md", "table.json", "one.txt", "one.trained.json", "one"}
    assert {path.name for path in output.iterdir()} == own


def test_a_log_of_an_earlier_version_becomes_the_owners_alone_and_a_device_keeps_its_mode(tmp_path: Path) -> None:
    log, device = tmp_path / "log.jsonl", os.stat("/dev/null").st_mode
    log.write_text("")
    log.chmod(0o644)
    for path in (str(log), "/dev/null"):
        os.close(owners_file(path, os.O_WRONLY | os.O_APPEND))
    assert log.stat().st_mode & 0o777 == 0o600 and os.stat("/dev/null").st_mode == device


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_stamp_keeps_the_mode_of_the_file_and_replaces_an_earlier_stamp(whole: Path, tmp_path: Path, mode) -> None:
    file = tmp_path / "last.safetensors"
    file.write_bytes((whole / "last.safetensors").read_bytes())
    file.chmod(mode)
    stamp(file, {"ss_privacy_audit_images": "20+20", "ss_privacy_audit_auc": "0.9"})
    stamp(file, {"ss_privacy_audit_auc": "0.8"})
    metadata = read_tensors(file)[1]
    assert file.stat().st_mode & 0o777 == mode
    assert metadata["ss_privacy_audit_auc"] == "0.8" and "ss_privacy_audit_images" not in metadata
    assert metadata["ss_privacy_method"] == "PLoRA"


def drawn_open(content: bytes) -> bytes:
    """A page with its figures decoded behind it: their texts stand in them."""
    parts = re.findall(rb"base64,([A-Za-z0-9+/=]+)", content)
    return b"\n".join([content, *map(base64.b64decode, parts)])


@pytest.mark.slow
def test_nothing_that_is_shared_holds_a_name_a_caption_or_a_hash_of_split_or_picture(whole: Path) -> None:
    split = json.loads((whole / "split.json").read_text())["images"]
    hashes = [sides_hash((entry["pixels"], entry["side"]) for entry in split), *(entry["pixels"] for entry in split)]
    hashes.append(hashlib.sha256((whole / "split.json").read_bytes()).hexdigest())
    wanted = [word.encode() for word in SECRETS] + [text[:16].encode() for text in hashes]
    shared = [*(whole.parent / "OUT").iterdir(), *whole.glob("last*.safetensors"), whole / "audit" / "findings.json"]
    assert len(shared) == 6 and len(wanted) > 80
    for file in shared:
        content = drawn_open(file.read_bytes()).lower()
        assert not [word for word in wanted if word in content], file
    private = drawn_open((whole / "audit" / "report.html").read_bytes())
    assert (
        b"quokka" in private and b"kiwirun" in private and b"wombatgroup" in private
    )  # the search finds what is there
    figures = b"".join(re.findall(rb"<svg .*?</svg>", private, re.DOTALL))
    assert b"All attacks" not in figures and b"control: captions alone" in figures and b"wombatgroup" not in figures


@pytest.mark.slow
def test_what_is_published_has_n_and_interval_and_the_files_hash_and_no_score(whole: Path) -> None:
    folder = whole.parent / "OUT"
    told, kept = (json.loads((place / "findings.json").read_text()) for place in (folder, whole / "audit"))
    assert told["checkpoint_sha256"] == hashlib.sha256((whole / "last.safetensors").read_bytes()).hexdigest()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", told["date"]) and told["suite"].startswith("private-lora ")
    assert told["label"] == kept["label"] == "LoRA" and set(told["images"]) == {"members-test", "non-members-test"}
    for found, exact in zip(told["findings"], kept["findings"], strict=True):
        assert found["members"] == exact["members"] and len(found["auc_interval"]) == 2
        assert found["auc"] == pytest.approx(exact["auc"], abs=0.006) and len(str(found["auc"])) <= 4
        assert found["transfer"] is None or found["transfer"]["threshold"] is None
    assert "auc_by_timestep" not in told and "member_loss" not in told["utility"] and "split" not in told["facts"]
    page = (folder / "report.html").read_text()
    assert "image/png" not in page and "Most exposed" not in page and "ROC" not in page
    assert told["checkpoint_sha256"] in page and "Every attack" in page


@pytest.mark.slow
def test_published_rows_are_counts_by_side_and_fifth_under_numbers_of_chance(whole: Path) -> None:
    told = list(csv.DictReader((whole.parent / "OUT" / "scores.csv").read_text().splitlines()))
    kept = [row for row in csv.DictReader((whole / "audit" / "scores.csv").read_text().splitlines())
            if row["side"].endswith("-test")]  # fmt: skip
    assert list(told[0]) == ["row", "side", "fifth"] and len({row["row"] for row in told}) == len(told) == len(kept)
    by_side = {side: np.array([float(row["fusion"]) for row in kept if row["side"] == f"{side}s-test"])
               for side in ("member", "non-member")}  # fmt: skip
    edges = np.quantile(by_side["non-member"], [0.2, 0.4, 0.6, 0.8])
    wanted = Counter((side, str(1 + sum(score > edge for edge in edges))) for side, scores in by_side.items()
                     for score in scores)  # fmt: skip
    assert Counter((row["side"], row["fifth"]) for row in told) == wanted


@pytest.mark.slow
def test_two_tellings_of_one_audit_share_no_number_and_no_order(whole: Path) -> None:
    scores = np.arange(8.0)
    candidates = publication.Candidates(
        [str(row) for row in range(8)], ["members-test", "non-members-test"] * 4, "abcdefgh"
    )
    texts = [publication.banded_scores(scores, candidates).splitlines()[1:] for _ in range(20)]
    numbers = [line.split(",")[0] for text in texts for line in text]
    assert len(set(numbers)) == 160
    assert len({tuple(line.split(",", 1)[1] for line in text) for text in texts}) > 10


def test_fractions_get_two_digits_and_whole_numbers_stay() -> None:
    values = {
        "a": 0.123456,
        "b": [111.0, 0.00009999],
        "c": (1.0, -0.0104),
        "d": 7,
        "e": "0.123456",
        "f": None,
        "g": True,
    }
    wanted = {"a": 0.12, "b": [111.0, 0.0001], "c": (1.0, -0.01), "d": 7, "e": "0.123456", "f": None, "g": True}
    assert publication.two_digits(values) == wanted


def test_a_folder_to_publish_into_must_be_fresh_and_apart_and_is_checked_first(tmp_path: Path) -> None:
    full, file, out = tmp_path / "full", tmp_path / "file", tmp_path / "run"
    for folder in (full, out, tmp_path / "empty"):
        folder.mkdir()
    (full / "old.txt").write_text("")
    file.write_text("")
    for target, said in (
        (full, "must be an empty folder or one that does not exist yet"),
        (file, "must be an empty folder"),
        (out / "audit" / "x", "is inside the private folder"),
    ):
        with pytest.raises(InputError, match=said):
            audit.main([str(out), "--publishable", str(target)])
    assert list(out.iterdir()) == []
    for target in (tmp_path / "empty", tmp_path / "new" / "deep"):
        assert read_config("audit", ["--outputs", str(out), "--publishable", str(target)]).publishable == str(target)
    with pytest.raises(InputError, match="'publishable' has no meaning for PLoRA"):
        read_config("PLoRA", ["--publishable", "x"])


@pytest.mark.slow
def test_several_loras_are_published_by_number(whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "kiwirun2"
    subprocess.run(["cp", "-rp", str(whole), str(other)], check=True)
    flags = audit_run.options(whole, "--scores_only", "--checkpoints", "last", "--publishable", tmp_path / "OUT")
    assert audit.main([str(whole), str(other), *flags]) == 0
    assert check_place(tmp_path / "OUT", file_table.PUBLISHABLE) == 8
    labels = [json.loads((tmp_path / "OUT" / number / "findings.json").read_text())["label"] for number in "12"]
    assert labels == ["LoRA 1", "LoRA 2"]
    pair = json.loads((tmp_path / "OUT" / "2" / "findings.json").read_text())["paired_differences"][0]
    assert pair["against"] == "LoRA 1" and pair["difference"] == 0
    for file in (tmp_path / "OUT").glob("*/*"):
        assert not [word for word in SECRETS if word.encode() in drawn_open(file.read_bytes())], file


def test_a_lora_cannot_take_the_name_of_the_proxy(tmp_path: Path) -> None:
    """proxy.safetensors would be both, and the attacker would be published in the LoRA's place."""
    with pytest.raises(InputError, match="output_name 'proxy' is the name of the proxy attacker's file"):
        read_config("PLoRA", ["--output_name", "proxy"])
