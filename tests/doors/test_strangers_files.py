"""What a stranger's LoRA, output folder, split or config says becomes no script, no place to write and no verdict."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import PLoRA
from library.assembly import audit_lora
from library.audit.images.feature_extractors import open_encoder
from library.audit.queries import run_queries
from library.audit.queries.answer_cache import AnswerCache, cache_key
from library.audit.queries.run_queries import AnswerFolders, Shelf, read_index, write_index
from library.audit.targets import lora_runs, provenance
from library.audit.targets.candidates import find_candidates
from library.data.read_pictures import pick_rules, read_split_pictures
from library.errors import InputError
from library.options.declarations import TRAINERS, Config
from library.tensor_files import write_tensors
from library.training.earlier_run import make_folder
from library.training.output_folder import OutputFolder
from library.training.saved_state import content_hash, file_hash


class Payload:
    """What pickle writes down as a call."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return open, (self.marker, "w")


SHELF = Shelf(Path("shared"), "5" * 64)
ADAPTER = "a" * 64


@pytest.mark.parametrize("method", ["../evil", "evil", "audit", "plora", "PLoRA/../../x", "/tmp/x", "", "\x1b[31m"])
def test_only_the_suites_own_trainers_are_taken_from_a_loras_metadata(method: str) -> None:
    found = provenance.provenance({}, {"ss_privacy_method": method, "ss_privacy_param_alpha": "0.1"})
    assert found.trainer == "" and found.method == "another trainer"
    assert all(provenance.provenance({}, {"ss_privacy_method": name}).trainer == name for name in TRAINERS)


@pytest.mark.parametrize("door", ["../evil", "evil"])
def test_a_script_that_a_lora_names_is_not_run_for_shadows(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script is there, beside the audit or above it; the audit asks for shadows of a LoRA that names it."""
    (tmp_path / "suite").mkdir()
    for place in (tmp_path / "evil.py", tmp_path / "suite" / "evil.py"):
        place.write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.setattr(audit_lora, "SUITE", tmp_path / "suite")
    origin = provenance.provenance({}, {"ss_privacy_method": door})
    run = lora_runs.Run("x", tmp_path / "x.safetensors", tmp_path / "split.json", tmp_path / "audit", {}, True)
    config = dataclasses.replace(Config(), shadow_loras=2, shadow_transfer=True)
    with pytest.raises(InputError, match="another trainer made this one"):
        audit_lora.shadows_of(run, config, origin, None)  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["much", "nan", "-1", "inf", "1e999", "\x1b[2J"])
def test_a_figure_that_is_none_is_refused_by_its_key(text: str) -> None:
    with pytest.raises(InputError, match="ss_privacy_exposures_per_image = .* not a number of at least 0"):
        provenance.provenance({}, {"ss_privacy_exposures_per_image": text})


def kept_index(file: Path) -> AnswerFolders:
    """An index as a sweep leaves it."""
    records = file.parent / "records"
    stores = AnswerFolders(
        on=str(records / cache_key("on")),
        off=str(SHELF.shared / cache_key("off")),
        gradients_on=str(records / cache_key("g")),
        gradients_fresh=str(SHELF.shared / cache_key("f")),
    )
    write_index(file, stores, ["p1", "p2"], ADAPTER, SHELF.split)
    return stores


def test_answers_are_found_again_by_the_lora_and_the_split_that_they_are_of(tmp_path: Path) -> None:
    stores = kept_index(tmp_path / "audit" / "sweep-last-short.json")
    assert read_index(tmp_path / "audit" / "sweep-last-short.json", SHELF, ADAPTER) == (stores, ["p1", "p2"])


@pytest.mark.parametrize(
    ("shelf", "adapter", "what"),
    [(SHELF, "b" * 64, "LoRA"), (dataclasses.replace(SHELF, split="6" * 64), ADAPTER, "split")],
)
def test_answers_of_another_lora_or_split_are_refused(shelf: Shelf, adapter: str, what: str, tmp_path: Path) -> None:
    kept_index(tmp_path / "sweep-last-short.json")
    with pytest.raises(InputError, match=f"are of another {what} .*run once without --scores_only"):
        read_index(tmp_path / "sweep-last-short.json", shelf, adapter)


@pytest.mark.parametrize("name", ["../../home", "/etc", "", ".", "A" * 32, "0" * 31, "0" * 32 + "/..", 5, None])
def test_an_index_names_no_folder_outside_the_two_places(name: object, tmp_path: Path) -> None:
    """It named any folder before: that was made 0700, and damaged files in it were removed."""
    file = tmp_path / "sweep-last-short.json"
    for field in ("on", "off", "gradients_on", "gradients_fresh"):
        kept_index(file)
        content = json.loads(file.read_text())
        content["stores"][field] = name
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match="does not say which answers are whose"):
            read_index(file, SHELF, ADAPTER)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"on": "/etc", "pictures": []}', '{"format": 2}', "[" * 100_000])
def test_an_index_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(InputError, match="does not say which answers are whose"):
        read_index(tmp_path / "sweep.json", SHELF, ADAPTER)


def test_a_folder_of_answers_that_is_a_link_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "mine" / "broken.safetensors").write_text("my own file")
    (tmp_path / "store").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="is a link"):
        AnswerCache(tmp_path / "store")
    assert (tmp_path / "mine" / "broken.safetensors").exists()
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o755


def test_a_strangers_config_does_not_say_where_the_audit_writes(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    places = "".join(f'{name} = "/stranger/{name}"\n' for name in lora_runs.WRITTEN_TO)
    (tmp_path / "run" / "config.toml").write_text(f"[data]\n{places}clip_skip = 2\n")
    (tmp_path / "run" / "split.json").write_text("{}")
    write_tensors(tmp_path / "run" / "last.safetensors", {}, {})
    defaults = dataclasses.asdict(dataclasses.replace(Config(), cache_dir="own"))
    (found,) = lora_runs.find_runs([str(tmp_path / "run")], "last", defaults=defaults, overrides={}, split_file=None)
    assert found.settings["clip_skip"] == 2 and found.settings["cache_dir"] == "own"
    assert "/stranger" not in repr(found.settings)


@pytest.mark.parametrize("name", ["../up", "/abs", "a/b", "a\\b", ".hidden", "a\nb", "a\x1bb"])
@pytest.mark.parametrize("option", ["output_name", "log_prefix"])
def test_a_stem_of_files_leads_into_no_other_folder(option: str, name: str, flags) -> None:
    with pytest.raises(InputError, match=f"{option} must be a plain file stem"):
        PLoRA.main(flags(**{option: name}, dry_run=True))


@pytest.mark.parametrize("ending", ["/../../secret.txt", "x/y", "..\\x", "a b", "txt\n"])
def test_the_ending_of_caption_files_leads_into_no_other_folder(ending: str, flags) -> None:
    with pytest.raises(InputError, match="caption_extension must be the ending of a file's name"):
        PLoRA.main(flags(caption_extension=ending, dry_run=True))


def test_a_path_in_a_split_is_not_opened(pictures: Path, flags, tmp_path: Path) -> None:
    """Pictures are found in the folder that was named, by their pixels; a split's path is for messages alone."""
    assert PLoRA.main(flags(max_train_steps=1)) == 0
    content = json.loads((tmp_path / "out" / "split.json").read_text())
    for entry in content["images"]:
        entry["path"] = "/dev/tty/../../stranger.png"
    (tmp_path / "split.json").write_text(json.dumps(content))
    settings = {**dataclasses.asdict(Config()), "train_data_dir": str(pictures), "resolution": "16"}
    cast = find_candidates(tmp_path / "split.json", read_split_pictures(*pick_rules(settings)))
    assert all(path.is_relative_to(pictures) for path in cast.paths())


def test_a_state_with_a_payload_is_refused_and_not_run(flags, tmp_path: Path) -> None:
    assert PLoRA.main(flags(save_state=True, max_train_steps=1)) == 0
    state = tmp_path / "out" / "state" / "last-state"
    torch.save({"optimizer": Payload(str(tmp_path / "ran"))}, state / "optimizers.pt")
    content = json.loads((state / "state.json").read_text())  # a stranger's checksums fit
    content["files"]["optimizers.pt"] = file_hash(state / "optimizers.pt")
    (state / "state.json").write_text(json.dumps({**content, "checksum": content_hash(content)}))
    with pytest.raises(InputError, match="optimizers.pt' was not opened: its pickle holds more than tensors"):
        PLoRA.main(flags(save_state=True, max_train_steps=2, resume=state))
    assert not (tmp_path / "ran").exists()


def test_a_resumed_run_sets_the_old_audit_aside_and_says_so(flags, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert PLoRA.main(flags(save_state=True, max_train_steps=1)) == 0
    for name in ("audit", "last-audit"):
        (out / name).mkdir(mode=0o700)
        (out / name / "findings.json").write_text("old")
    state = out / "state" / "last-state"
    capsys.readouterr()
    assert PLoRA.main(flags(save_state=True, max_train_steps=2, resume=state)) == 0
    said = capsys.readouterr().err
    for name in ("audit", "last-audit"):
        assert not (out / name).exists() and (out / f"{name}.old-1" / "findings.json").read_text() == "old"
        assert f"'{out / name}' belongs to the LoRA before this run; it is now '{out / name}.old-1'" in said
    assert (out / "audit.old-1").stat().st_mode & 0o777 == 0o700


def test_audits_set_aside_are_numbered_and_a_cleared_folder_keeps_none(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path, "last")
    for text in ("first", "second"):
        (tmp_path / "audit").mkdir()
        (tmp_path / "audit" / "findings.json").write_text(text)
        make_folder(folder, clear=False)
    told = [(tmp_path / f"audit.old-{number}" / "findings.json").read_text() for number in (1, 2)]
    assert told == ["first", "second"]
    (tmp_path / "audit").mkdir()
    (tmp_path / "config.toml").write_text("# resolved options of PLoRA.py")
    make_folder(folder, clear=True)
    assert not list(tmp_path.iterdir())


def test_code_beside_an_image_encoder_is_not_run(tmp_path: Path) -> None:
    """A folder of weights may name classes of its own; nobody is asked whether to run them."""
    auto = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "auto_map": auto}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    sight = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": {"height": 8, "width": 8}, "resample": 3,
             "size": {"shortest_edge": 8}, "do_resize": True, "do_center_crop": True, "do_normalize": True,
             "do_rescale": True, "rescale_factor": 1 / 255}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(sight))
    with pytest.raises(InputError, match="image_encoder .* cannot be opened"):
        open_encoder(str(tmp_path), "image_encoder", torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_the_places_of_answers_are_named_once(tmp_path: Path) -> None:
    """What the bench makes is what the index may name."""
    assert run_queries.STORE_NAME.fullmatch(cache_key("anything"))
