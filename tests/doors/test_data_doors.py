"""Every source and every kind of look through a door: a few steps of training, and a resume that changes nothing."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import PLoRA
import SPLoRA
from library.audit.targets.candidates import find_candidates, read_pictures, training_sizes
from library.audit.targets.lora_runs import read_settings
from library.errors import InputError
from library.options.declarations import Config
from tests.helpers import tiny
from tests.helpers.data_toy import write_parquet
from tests.helpers.runs import assert_same_tensors, records, two_datasets


def test_captions_that_are_cut_are_counted_once(flags, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    """Of all sides together; a letter is a token."""
    for place, file in enumerate(sorted(pictures.rglob("*.txt"))):
        file.write_text("x" * (76 if place % 2 else 75))
    assert SPLoRA.main(flags(dry_run=True)) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "tokens and are cut" in line]
    assert told == [
        "8 of 16 captions are longer than 75 tokens and are cut; max_token_length reads more (75, 150 or 225)"
    ]
    assert SPLoRA.main(flags(dry_run=True, max_token_length=150)) == 0
    assert "tokens and are cut" not in capsys.readouterr().err


def moved(folder: Path) -> bool:
    """Whether the LoRA of a run has left zero."""
    written = load_file(folder / "last.safetensors")
    return any(written[name].abs().sum() > 0 for name in written if "lora_up" in name)


def sides_in(folder: Path) -> dict[str, str]:
    """Side by file name, as split.json has it."""
    images = json.loads((folder / "split.json").read_text())["images"]
    return {Path(entry["path"]).name: entry["side"] for entry in images}


@pytest.mark.slow
@pytest.mark.parametrize("cut", [4, 7])
def test_two_datasets_with_everything_on_resume_bit_for_bit(flags, tmp_path: Path, pictures: Path, cut: int) -> None:
    """16 uses of members and 16 of public images in batches of 2, 8 uses in batches of 3: 19 batches, 10 steps."""
    run = {
        "train_data_dir": None, "dataset_config": two_datasets(tmp_path, pictures), "prior_loss_weight": 0.5,
        "token_warmup_step": 0.5, "max_train_steps": 10, "save_state": True, "save_every_n_steps": cut,
        "gradient_accumulation_steps": 2,
    }  # fmt: skip
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert SPLoRA.main(flags(**run, output_dir=straight)) == 0
    state = straight / "state" / f"last-step{cut:08d}-state"
    assert SPLoRA.main(flags(**run, output_dir=resumed, resume=state)) == 0
    assert_same_tensors(straight / "last.safetensors", resumed / "last.safetensors")
    assert_same_tensors(straight / "proxy.safetensors", resumed / "proxy.safetensors")
    kept = [record for record in records(straight) if record["step"] > cut]
    assert [record for record in records(resumed) if record["step"] > cut] == kept
    epochs = [record["step"] for record in records(straight) if "adaptation_loss_members_aux" in record]
    assert epochs == [0, 10]
    sides = sides_in(straight)
    assert len(sides) == 16 and not any(name.startswith("quokka06") for name in sides)


@pytest.mark.slow
def test_a_resume_with_an_edited_dataset_config_is_refused(flags, tmp_path: Path, pictures: Path) -> None:
    file = two_datasets(tmp_path, pictures)
    run = {"train_data_dir": None, "dataset_config": file, "save_state": True}
    assert PLoRA.main(flags(**run)) == 0
    file.write_text(file.read_text().replace("num_repeats = 2", "num_repeats = 3"))
    with pytest.raises(InputError, match="have changed since the state was saved"):
        PLoRA.main(flags(**run, resume=tmp_path / "out" / "state" / "last-state"))


def test_nothing_private_of_a_dataset_config_run_reaches_logs_or_lora(
    flags, tmp_path: Path, pictures: Path, capfd: pytest.CaptureFixture
) -> None:
    """Caption words nowhere, on the terminal neither; file and folder names in no file but split.json."""
    file = two_datasets(tmp_path, pictures)
    assert SPLoRA.main(flags(train_data_dir=None, dataset_config=file, save_state=True, metadata="full")) == 0
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.name not in ("split.json", "config.toml"):
            assert not re.search(rb"walrus|ocelot|quokka|zebrafolder", path.read_bytes().lower()), path
    out = "".join(capfd.readouterr())
    assert not re.search("walrus|ocelot", out) and "repeats" in out  # the table of folders


@pytest.mark.slow
@pytest.mark.parametrize("door", [PLoRA, SPLoRA], ids=lambda door: door.DOOR)
def test_regularisation_images_change_the_lora_by_their_weight_and_stay_out_of_the_split(
    door, flags, tmp_path: Path
) -> None:
    public = tiny.write_pictures(tmp_path / "reg", 4, first=60)
    runs = {"none": {}, "light": {"prior_loss_weight": 0.1}, "full": {"prior_loss_weight": 1.0}}
    for name, more in runs.items():
        reg = {} if name == "none" else {"reg_data_dir": public}
        run = {"output_dir": tmp_path / name, "max_train_epochs": 1, "max_train_steps": None}
        assert door.main(flags(**run, **reg, **more)) == 0
    steps = {name: sum("loss" in record for record in records(tmp_path / name)) for name in runs}
    assert steps == {"none": 4, "light": 8, "full": 8}
    light, full = (load_file(tmp_path / name / "last.safetensors") for name in ("light", "full"))
    assert any(not torch.equal(light[key], full[key]) for key in full)
    assert sides_in(tmp_path / "none") == sides_in(tmp_path / "full")


@pytest.mark.slow
def test_exposures_in_the_file_count_both_resolutions_of_a_member(flags, tmp_path: Path, pictures: Path) -> None:
    from safetensors import safe_open

    file = two_datasets(tmp_path, pictures)
    run = {"train_data_dir": None, "dataset_config": file, "max_train_steps": None, "max_train_epochs": 2}
    assert PLoRA.main(flags(**run)) == 0
    with safe_open(tmp_path / "out" / "last.safetensors", framework="pt") as lora:
        facts = lora.metadata()
    (exposures,) = [value for name, value in facts.items() if name.startswith("ss_privacy") and "exposures" in name]
    assert float(exposures) == 6  # (2 repeats + 1) x 2 epochs


@pytest.mark.slow
def test_the_audit_finds_the_pictures_of_a_dataset_config_again(flags, tmp_path: Path, pictures: Path) -> None:
    assert SPLoRA.main(flags(train_data_dir=None, dataset_config=two_datasets(tmp_path, pictures))) == 0
    settings = {**vars(Config()), **read_settings(tmp_path / "out" / "config.toml")}
    candidate_set = find_candidates(tmp_path / "out" / "split.json", read_pictures(settings))
    assert len(candidate_set.examples) == 16 and training_sizes(candidate_set.examples, 8) == [(16, 16)] * 16
    assert len({example.pixels for example in candidate_set.examples}) == 16


def test_fine_tune_metadata_trains(flags, tmp_path: Path, pictures: Path) -> None:
    folder = pictures / "1_zebrafolder"
    meta = {path.stem: {"caption": "walrus", "tags": "ocelot, x"} for path in folder.glob("*.png")}
    for file in folder.glob("*.txt"):
        file.unlink()
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    run = {"train_data_dir": folder, "in_json": tmp_path / "meta.json", "dataset_repeats": 2, "shuffle_caption": True}
    assert SPLoRA.main(flags(**run)) == 0
    assert moved(tmp_path / "out") and len(sides_in(tmp_path / "out")) == 16


@pytest.mark.slow
def test_a_parquet_dataset_trains_with_groups_on_one_side_and_gives_the_lora_of_the_same_files(
    flags, tmp_path: Path
) -> None:
    """The same pictures as a folder of files give the same LoRA bit for bit: only pixels and captions count."""
    file = write_parquet(tmp_path / "train.parquet", 12)
    run = {"train_data_dir": None, "dataset_name": file, "cache_dir": tmp_path / "cache"}
    assert SPLoRA.main(flags(**run, group_column="person", output_dir=tmp_path / "grouped")) == 0
    images = json.loads((tmp_path / "grouped" / "split.json").read_text())["images"]
    sides: dict[str, set[str]] = {}
    for entry in images:
        sides.setdefault(entry["group"], set()).add(entry["side"])
    assert len(images) == 12 and len(sides) == 6 and all(len(side) == 1 for side in sides.values())

    assert SPLoRA.main(flags(**run, output_dir=tmp_path / "parquet")) == 0
    folder = tmp_path / "files" / "1_zebra"
    folder.mkdir(parents=True)
    files = (tmp_path / "cache" / "datasets").rglob("captions-*.jsonl")
    (metadata,) = [path for path in files if "group 0" not in path.read_text()]
    for line in metadata.read_text().splitlines():
        entry = json.loads(line)
        source = Path(entry["image_path"])
        (folder / source.name).write_bytes(source.read_bytes())
        (folder / source.with_suffix(".txt").name).write_text(entry["caption"])
    assert SPLoRA.main(flags(train_data_dir=folder.parent, output_dir=tmp_path / "folder")) == 0
    assert_same_tensors(tmp_path / "parquet" / "last.safetensors", tmp_path / "folder" / "last.safetensors")


@pytest.mark.slow
def test_latents_encoded_at_every_use_give_the_lora_of_cached_ones(flags, tmp_path: Path) -> None:
    """Without augmentation only the time differs: encoded one by one, the latents are the same bits."""
    for name, cached in (("cached", None), ("fresh", "false")):
        assert SPLoRA.main(flags(output_dir=tmp_path / name, cache_latents=cached, max_train_steps=4)) == 0
    assert_same_tensors(tmp_path / "cached" / "last.safetensors", tmp_path / "fresh" / "last.safetensors")


@pytest.mark.slow
def test_latents_of_the_disk_cache_give_the_lora_of_those_in_memory(flags, tmp_path: Path) -> None:
    run = {"flip_aug": True, "cache_dir": tmp_path / "cache"}
    disk = {"cache_latents_to_disk": True}
    ways = {"memory": {}, "written": disk, "read": disk, "rebuilt": {**disk, "rebuild_cache": True}}
    for name, more in ways.items():
        assert SPLoRA.main(flags(**run, **more, output_dir=tmp_path / name)) == 0
        assert_same_tensors(tmp_path / "memory" / "last.safetensors", tmp_path / name / "last.safetensors")
    assert len(list((tmp_path / "cache" / "latents").iterdir())) == 24  # 12 pictures in training, both ways round


AUGMENTED = {
    "crops and colours": {"random_crop": True, "color_aug": True, "flip_aug": True, "cache_latents": "false"},
    "faces": {"face_crop_aug_range": "1.0,4.0", "random_crop": True, "cache_latents": "false"},
    "one draw kept": {"flip_aug": True, "cache_latents_mode": "sample"},
}


@pytest.mark.slow
@pytest.mark.parametrize("changed", AUGMENTED.values(), ids=AUGMENTED.keys())
def test_augmented_runs_resume_bit_for_bit(flags, tmp_path: Path, changed: dict) -> None:
    folder = tmp_path / "faces" / "1_zebrafolder"
    folder.mkdir(parents=True)
    for index in range(16):
        tiny.write_picture(folder / f"quokka_{index}_20_12_8_8.png", index, (40, 24))
        (folder / f"quokka_{index}_20_12_8_8.txt").write_text("walrus")
    run = {
        **changed,
        "train_data_dir": folder.parent,
        "max_train_steps": 6,
        "save_state": True,
        "save_every_n_steps": 3,
    }
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert SPLoRA.main(flags(**run, output_dir=straight)) == 0
    state = straight / "state" / "last-step00000003-state"
    assert SPLoRA.main(flags(**run, output_dir=resumed, resume=state)) == 0
    assert_same_tensors(straight / "last.safetensors", resumed / "last.safetensors")
    assert PLoRA.main(flags(train_data_dir=folder.parent, output_dir=tmp_path / "plain", max_train_steps=6)) == 0
    assert moved(straight)


def with_alpha(pictures: Path, level: int) -> Path:
    """The same pictures with one alpha level everywhere."""
    for path in (pictures / "1_zebrafolder").glob("*.png"):
        with Image.open(path) as picture:
            levels = np.dstack([np.asarray(picture.convert("RGB")), np.full((16, 16), level, dtype=np.uint8)])
        Image.fromarray(levels).save(path)
    return pictures


@pytest.mark.slow
def test_a_full_mask_changes_nothing_and_an_empty_one_silences_the_adaptation_loss(
    flags, tmp_path: Path, pictures: Path
) -> None:
    assert PLoRA.main(flags(output_dir=tmp_path / "plain")) == 0
    with_alpha(pictures, 255)
    assert PLoRA.main(flags(output_dir=tmp_path / "full", alpha_mask=True)) == 0
    assert_same_tensors(tmp_path / "plain" / "last.safetensors", tmp_path / "full" / "last.safetensors")
    with_alpha(pictures, 0)
    assert PLoRA.main(flags(output_dir=tmp_path / "empty", alpha_mask=True)) == 0
    losses = [record["adaptation_loss"] for record in records(tmp_path / "empty") if "loss" in record]
    assert losses == [0.0] * 3


@pytest.mark.slow
def test_masks_of_a_folder_weigh_the_loss(flags, tmp_path: Path, pictures: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for index in range(16):
        Image.new("RGB", (16, 16), (51, 255, 255)).save(masks / f"quokka{index:03d}.png")  # red: a fifth
    run = {"masked_loss": True, "conditioning_data_dir": masks}
    assert SPLoRA.main(flags(output_dir=tmp_path / "masked", flip_aug=True, **run)) == 0
    assert SPLoRA.main(flags(output_dir=tmp_path / "plain", flip_aug=True)) == 0
    first = [records(tmp_path / name)[1]["adaptation_loss"] for name in ("masked", "plain")]
    assert first[0] == pytest.approx(first[1] / 5, rel=1e-5)


@pytest.mark.slow
def test_weighted_captions_train_and_weights_matter(flags, tmp_path: Path, pictures: Path) -> None:
    for index, path in enumerate(sorted((pictures / "1_zebrafolder").glob("*.txt"))):
        path.write_text(f"(walrus{index}:1.5), [ocelot] picture")
    assert SPLoRA.main(flags(output_dir=tmp_path / "weighted", weighted_captions=True)) == 0
    for index, path in enumerate(sorted((pictures / "1_zebrafolder").glob("*.txt"))):
        path.write_text(f"walrus{index}, ocelot picture")
    assert SPLoRA.main(flags(output_dir=tmp_path / "plain")) == 0
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("weighted", "plain"))
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_pictures_of_one_bucket_that_is_not_the_resolution_train(flags, tmp_path: Path) -> None:
    """One shape, but not that of --resolution: the attacker is built for the shape that there is."""
    folder = tiny.write_pictures(tmp_path / "wide", 16, sizes=((64, 16),))
    run = {"enable_bucket": True, "min_bucket_reso": 8, "max_bucket_reso": 32, "bucket_reso_steps": 8}
    assert SPLoRA.main(flags(train_data_dir=folder, **run)) == 0 and moved(tmp_path / "out")


def test_a_dry_run_shows_the_data_of_a_dataset_config(
    flags, tmp_path: Path, pictures: Path, capfd: pytest.CaptureFixture
) -> None:
    run = {"train_data_dir": None, "dataset_config": two_datasets(tmp_path, pictures), "dry_run": True}
    assert SPLoRA.main(flags(**run)) == 0
    text = "".join(capfd.readouterr())
    assert "regularisation: 3 of 3 public images, used 16 times an epoch" in text
    assert "24 images per epoch, each member is used" in text and not (tmp_path / "out").exists()


def test_faults_of_a_dataset_config_and_of_the_model_are_reported_together(flags, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "data.toml").write_text("[[datasets]]\nresolutoin = 3\n")
    with pytest.raises(InputError) as caught:
        SPLoRA.main(flags(train_data_dir=None, dataset_config=tmp_path / "data.toml",
                          pretrained_model_name_or_path=tmp_path / "model"))  # fmt: skip
    text = str(caught.value)
    assert "datasets[0]: unknown 'resolutoin'; did you mean 'resolution'?" in text and "not a diffusers folder" in text


def test_the_global_batch_is_that_of_the_dataset_config_and_not_of_the_command_line(
    flags, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "data.toml"
    file.write_text(f"[[datasets]]\nbatch_size = 3\n[[datasets.subsets]]\nimage_dir = '{pictures / '1_zebrafolder'}'\n")
    assert PLoRA.main([*flags(train_data_dir=None, dataset_config=file, train_batch_size=2), "--dry_run"]) == 0
    assert "global batch: 3 images x 1 passes" in capsys.readouterr().out
