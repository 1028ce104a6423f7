"""dataset_config: values looked up level by level, every fault with its path, and what becomes of the subsets."""

import json
import logging
import re
from pathlib import Path

import pytest

from library.data.dataset_config import main_resolution, read_dataset_config
from library.data.picture_sources import find_parts, pick_rules
from library.data.read_pictures import Sources, read_sources
from library.errors import InputError
from library.options.kohya import REFUSED
from tests.helpers import tiny
from tests.helpers.data_toy import config


def written(folder: Path, text: str, name: str = "data.toml") -> Path:
    """A dataset_config file."""
    file = folder / name
    file.write_text(text)
    return file


def from_file(file: Path, **changed: object) -> Sources:
    """What a dataset_config gives."""
    return read_sources(*pick_rules(config(dataset_config=str(file), **changed)))


def faults_of(file: Path, **changed: object) -> str:
    """The messages about a faulty file."""
    with pytest.raises(InputError) as caught:
        find_parts(*pick_rules(config(dataset_config=str(file), **changed)))
    return str(caught.value)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with pictures in a/, b/ and reg/."""
    for name, first, count in (("a", 0, 4), ("b", 20, 3), ("reg", 40, 2)):
        tiny.write_pictures(tmp_path / "made", count, first=first)
        (tmp_path / "made" / "1_zebrafolder").rename(tmp_path / name)
    return tmp_path


def test_a_value_is_looked_up_in_subset_dataset_general_command_line_and_default(folders: Path) -> None:
    file = written(folders, f"""
        [general]
        keep_tokens = 3
        flip_aug = true
        num_repeats = 5
        [[datasets]]
        resolution = [640, 512]
        batch_size = 4
        keep_tokens = 2
          [[datasets.subsets]]
          image_dir = "{folders / 'a'}"
          keep_tokens = 1
          [[datasets.subsets]]
          image_dir = "{folders / 'b'}"
          flip_aug = false
          num_repeats = 2
        [[datasets]]
          [[datasets.subsets]]
          image_dir = "{folders / 'b'}"
        """)  # fmt: skip
    found = from_file(file, resolution="256", train_batch_size=7, shuffle_caption=True).candidates
    first, second, third = found[0], found[4], found[7]
    assert [one.subset.captions.keep_tokens for one in (first, second, third)] == [1, 2, 3]
    assert [one.subset.looks.flip_aug for one in (first, second, third)] == [True, False, True]
    assert [one.subset.buckets.resolution for one in (first, third)] == ["640,512", "256"]
    assert [one.subset.batch_size for one in (first, third)] == [4, 7]
    assert [one.repeats for one in (first, second, third)] == [5, 2, 5]
    assert [one.subset.dataset for one in (first, second, third)] == [0, 0, 1]
    assert all(one.subset.captions.shuffle_caption for one in found)
    assert all(one.subset.captions.caption_separator == "," for one in found)
    assert main_resolution(str(file), "256") == (640, 512)


def test_json_says_the_same_as_toml(folders: Path) -> None:
    content = {"datasets": [{"resolution": 64, "subsets": [{"image_dir": str(folders / "a"), "num_repeats": 2}]}]}
    found = from_file(written(folders, json.dumps(content), "data.json"))
    assert len(found.candidates) == 4 and found.candidates[0].repeats == 2
    assert found.candidates[0].subset.buckets.resolution == "64"


def test_every_fault_is_reported_at_once_with_its_path(folders: Path) -> None:
    text = faults_of(written(folders, f"""
        [generl]
        [general]
        batch_sise = 2
        image_dir = "x"
        max_token_length = 150
        [[datasets]]
        resolution = "big"
        batch_size = 1.5
        validation_split = 0.1
        network_multiplier = 0.5
          [[datasets.subsets]]
          image_dir = "{folders / 'a'}"
          keep_tokens = -1
          shuffle_caption = "yes"
          [[datasets.subsets]]
          image_dir = "nowhere"
          num_repeat = 3
          batch_size = 2
          caption_dropout_rate = 1.5
          resize_interpolation = "lanczoz"
        [[datasets]]
        resolution = [512, 99999]
        max_bucket_reso = 9999
        """))  # fmt: skip
    for part in (
        "unknown table 'generl'",
        "general: unknown 'batch_sise'; did you mean 'batch_size'?",
        "general: 'image_dir' belongs to [[datasets.subsets]]",
        "general: 'max_token_length' holds for the whole run",
        "datasets[0]: resolution must be a whole number or [width, height], at most 8192 pixels a side, got 'big'",
        "datasets[0]: batch_size must be a whole number, got 1.5",
        "datasets[0]: 'validation_split' is not taken: the four-sided split already holds images out",
        "datasets[0]: 'network_multiplier' is not taken",
        "datasets[0].subsets[0]: keep_tokens must be at least 0, got -1",
        "datasets[0].subsets[0]: shuffle_caption must be true or false, got 'yes'",
        "datasets[0].subsets[1]: unknown 'num_repeat'; did you mean 'num_repeats'?",
        "datasets[0].subsets[1]: image_dir 'nowhere' is not a folder",
        "datasets[0].subsets[1]: 'batch_size' belongs to [[datasets]] or [general]",
        "datasets[0].subsets[1]: caption_dropout_rate must be at most 1, got 1.5",
        "datasets[0].subsets[1]: resize_interpolation must be one of",
        "datasets[1]: resolution must be a whole number or [width, height], at most 8192 pixels a side, got [512",
        "datasets[1]: max_bucket_reso must be at most 8192, got 9999",
    ):
        assert part in text, part
    start = re.escape(f"dataset_config '{folders / 'data.toml'}'")
    assert all(re.match(rf"{start}( line \d+)?: ", line) for line in text.splitlines())


def test_validation_keys_are_refused_with_the_reason_of_the_option() -> None:
    from library.data import dataset_config

    assert dataset_config.REFUSED["validation_split"] == REFUSED["validation_split"]
    assert dataset_config.REFUSED["validation_seed"] == REFUSED["validation_seed"]


def test_keys_that_ask_for_nothing_are_let_through(folders: Path) -> None:
    file = written(folders, f"""
        [[datasets]]
        network_multiplier = 1.0
        validation_split = 0.0
          [[datasets.subsets]]
          image_dir = "{folders / 'a'}"
          cache_info = true
        """)  # fmt: skip
    assert len(from_file(file).candidates) == 4


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        (
            'metadata_file = "{0}/meta.json"\n[[datasets.subsets]]\nimage_dir = "{0}/a"',
            r"one dataset cannot have subsets with and without metadata_file",
        ),
        ('metadata_file = "{0}/meta.json"\nis_reg = true', "is_reg needs image_dir"),
        ('image_dir = "{0}/a"\nis_reg = true', "only regularisation images"),
        ("num_repeats = 2", r"datasets\[0\].subsets\[0\]: image_dir is needed"),
        ('image_dir = "{0}/a"\nconditioning_data_dir = "{0}/b"', "ControlNet is not trained.*set masked_loss = true"),
        (
            'image_dir = "{0}/a"\nrandom_crop = true',
            "random_crop changes the picture at every use.*cache_latents = false",
        ),
        ('image_dir = "{0}/a"\ncustom_attributes = {{x = 1}}', "'custom_attributes' is not taken"),
        ('image_dir = "{0}/a"\nenable_bucket = true', "'enable_bucket' belongs to"),
    ],
)
def test_subsets_that_cannot_be_honoured_are_refused(folders: Path, subsets: str, message: str) -> None:
    (folders / "meta.json").write_text("{}")
    file = written(folders, "[[datasets]]\n[[datasets.subsets]]\n" + subsets.format(folders))
    with pytest.raises(InputError, match=message):
        from_file(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[general]\n", r"no \[\[datasets\]\]"),
        ("[[datasets]]\n", r"datasets\[0\] has no \[\[datasets.subsets\]\]"),
        ("[[datasets]\n", "not valid TOML"),
        ("datasets = 3\n", r"no \[\[datasets\]\]"),
    ],
)
def test_files_without_datasets_are_refused(folders: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_dataset_config(written(folders, text), {})


def test_paths_count_from_the_working_directory_and_else_from_beside_the_file(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(folders, '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\n')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with caplog.at_level(logging.INFO, "library"):
        assert len(from_file(file).candidates) == 4
    assert "image_dir is read relative to the dataset_config file" in caplog.text
    tiny.write_pictures(tmp_path / "elsewhere", 2)
    (tmp_path / "elsewhere" / "1_zebrafolder").rename(tmp_path / "elsewhere" / "a")
    assert len(from_file(file).candidates) == 2


def test_a_folder_that_stands_twice_in_a_dataset_is_left_out_with_a_warning(
    folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = f'[[datasets.subsets]]\nimage_dir = "{folders / "a"}"\n'
    assert len(from_file(written(folders, "[[datasets]]\n" + one + one)).candidates) == 4
    assert "is given twice in one dataset" in caplog.text
    assert len(from_file(written(folders, "[[datasets]]\n" + one + "[[datasets]]\n" + one)).candidates) == 8


def test_class_tokens_masks_and_regularisation_belong_to_their_subset(folders: Path) -> None:
    (folders / "a" / "quokka000.txt").unlink()
    (folders / "masks").mkdir()
    for index in range(20, 23):
        tiny.write_picture(folders / "masks" / f"quokka{index:03d}.bmp", index)
    file = written(folders, f"""
        [[datasets]]
          [[datasets.subsets]]
          image_dir = "{folders / 'a'}"
          class_tokens = "sks cat"
          [[datasets.subsets]]
          image_dir = "{folders / 'b'}"
          conditioning_data_dir = "{folders / 'masks'}"
          [[datasets.subsets]]
          image_dir = "{folders / 'reg'}"
          is_reg = true
        """)  # fmt: skip
    found = from_file(file, masked_loss=True)
    assert found.candidates[0].caption == "sks cat" and len(found.candidates) == 7 and len(found.regularisation) == 2
    assert [one.mask is not None for one in found.candidates] == [False] * 4 + [True] * 3


def test_masked_loss_without_a_mask_in_any_subset_is_refused(folders: Path) -> None:
    file = written(folders, f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{folders / "a"}"\n')
    assert "masked_loss is on, but no subset of" in faults_of(file, masked_loss=True)


def test_non_members_of_their_own_folder_are_seen_under_the_rules_of_every_dataset(folders: Path) -> None:
    others = tiny.write_pictures(folders / "others", 3, first=70)
    one = f'[[datasets.subsets]]\nimage_dir = "{folders / "a"}"\n'
    file = written(folders, f"[[datasets]]\nresolution = 64\n{one}[[datasets]]\nresolution = 128\n{one}")
    found = from_file(file, nonmember_data_dir=str(others))
    assert [one.subset.buckets.resolution for one in found.outsiders] == ["64"] * 3 + ["128"] * 3


def test_folders_beside_a_dataset_config_are_not_read_and_that_is_said(
    folders: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(folders, f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{folders / "a"}"\n')
    assert len(from_file(file, train_data_dir="/nowhere").candidates) == 4
    assert "train_data_dir: not used, since dataset_config names the folders of the pictures" in caplog.text


def test_sizes_and_ranges_are_taken_in_each_of_kohyas_spellings(folders: Path) -> None:
    text = '{{"datasets": [{{"resolution": {}, "subsets": [{{"image_dir": "{}", "face_crop_aug_range": {}}}]}}]}}'
    for size, span, wanted in (("512", "[2, 3.5]", ("512", "2,3.5")), ("[640, 512]", '"2,3"', ("640,512", "2,3"))):
        file = written(folders, text.format(size, folders / "a", span), "data.json")
        (entry,) = read_dataset_config(file, {})
        assert (entry.values["resolution"], entry.values["face_crop_aug_range"]) == wanted
    file = written(folders, text.format("[1, 2, 3]", folders / "a", "[1]"), "data.json")
    with pytest.raises(InputError) as caught:
        read_dataset_config(file, {})
    assert "resolution must be" in str(caught.value) and "face_crop_aug_range must be [least, most]" in str(
        caught.value
    )
