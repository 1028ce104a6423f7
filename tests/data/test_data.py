"""Folders of pictures: repeats, captions, identity, groups, and what is said about wrong ones."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.data.examples import Example, open_picture, pixel_hash
from library.data.folders import picture_folders
from library.errors import InputError
from tests.helpers import tiny
from tests.helpers.data_toy import read


def read_all(folder: Path, **changed: object) -> list[Example]:
    """The candidates of a folder."""
    return read(folder, **changed).candidates


def test_repeats_captions_and_identity_come_from_a_kohya_folder(tmp_path: Path) -> None:
    examples = read_all(tiny.write_pictures(tmp_path, 5, repeats=10))
    assert [example.repeats for example in examples] == [10] * 5
    assert examples[3].caption == "walrus003, ocelot picture"
    assert examples[0].pixels == pixel_hash(open_picture(examples[0].path))


def test_identity_is_the_pixels_not_the_file(tmp_path: Path) -> None:
    tiny.write_picture(tmp_path / "a.png", 1)
    Image.open(tmp_path / "a.png").save(tmp_path / "b.webp", lossless=True)
    Image.open(tmp_path / "a.png").save(tmp_path / "c.bmp")
    assert len({pixel_hash(open_picture(tmp_path / name)) for name in ("a.png", "b.webp", "c.bmp")}) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.png", "uint16"), ("a.tif", "uint16"), ("a.tif", ">u2"), ("a.tif", "int32")],
    ids=["I;16 PNG", "I;16 TIFF", "I;16B TIFF", "I TIFF"],
)
def test_sixteen_bit_grey_keeps_its_levels(tmp_path: Path, name: str, kind: str) -> None:
    """A full ramp: 257 levels become one; without the division all but the first of them are white."""
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    file = tmp_path / name
    if kind == ">u2":
        Image.frombytes("I;16B", (256, 256), ramp.astype(">u2").tobytes()).save(file)
    else:
        Image.fromarray(ramp.astype(kind)).save(file)
    with Image.open(file) as opened:
        assert opened.mode.startswith("I")
    levels = np.asarray(open_picture(file))
    assert levels.shape == (256, 256, 3) and levels.mean() == pytest.approx(127, abs=0.01)
    assert levels[0, 0].tolist() == [0] * 3 and levels[-1, -1].tolist() == [255] * 3
    assert (levels[..., 0].flatten() == np.arange(65536) // 257).all()


def test_grey_of_more_than_sixteen_bits_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="grey levels from 70000 to 70000; at most 16 bits are read"):
        open_picture(tmp_path / "a.tif")


def test_a_folder_one_level_too_deep_names_its_parent(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path / "set", 2) / "1_zebrafolder"
    with pytest.raises(InputError, match=f"give its parent '{tmp_path / 'set'}'"):
        read_all(folder)


def test_a_folder_one_level_too_high_names_its_child(tmp_path: Path) -> None:
    tiny.write_pictures(tmp_path / "set", 2)
    with pytest.raises(InputError, match=f"one level too high; give '{tmp_path / 'set'}'"):
        read_all(tmp_path)


def test_pictures_without_a_named_folder_point_to_the_switch(tmp_path: Path) -> None:
    for index in range(3):
        tiny.write_picture(tmp_path / f"{index}.png", index)
    with pytest.raises(InputError, match="has 3 images and no folder named <repeats>_<class>; use --flat_data_dir"):
        read_all(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        read_all(tmp_path)


def test_a_folder_whose_name_has_no_repeats_is_not_passed_over_in_silence(tmp_path: Path, caplog) -> None:
    tiny.write_pictures(tmp_path, 2)
    for name in ("extra", "sample"):
        (tmp_path / name).mkdir()
        tiny.write_picture(tmp_path / name / "x.png", 9)
    assert len(read_all(tmp_path)) == 2
    assert (
        "train_data_dir: folders without repeats in front of their names are passed over: 'extra', 'sample'; a name "
        "such as '10_extra' is read" in caplog.text
    )


def test_corrupt_pictures_and_bad_captions_are_reported_together(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path, 4) / "1_zebrafolder"
    (folder / "quokka000.png").write_bytes(b"\x89PNG no picture")
    (folder / "quokka001.txt").write_text("\n")
    (folder / "quokka002.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError) as caught:
        read_all(tmp_path)
    text = str(caught.value)
    assert "quokka000.png' cannot be decoded" in text
    assert "quokka001.txt' is empty" in text and "quokka002.txt' is not UTF-8" in text


def test_a_truncated_picture_is_reported(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path, 4) / "1_zebrafolder"
    whole = (folder / "quokka000.png").read_bytes()
    (folder / "quokka000.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="quokka000.png' cannot be decoded"):
        read_all(tmp_path)


def test_missing_captions_are_an_error_where_nothing_can_stand_in(tmp_path: Path) -> None:
    tiny.write_picture(tmp_path / "a.png", 1)
    with pytest.raises(InputError, match="1 images have no caption file.*'a.png'"):
        read_all(tmp_path, flat_data_dir=True)


def test_class_words_stand_in_for_missing_captions_unless_captions_are_strict(tmp_path: Path) -> None:
    tiny.write_picture(tiny.write_pictures(tmp_path, 1) / "1_zebrafolder" / "a.png", 50)
    assert {example.caption for example in read_all(tmp_path)} == {"zebrafolder", "walrus000, ocelot picture"}
    with pytest.raises(InputError, match="no caption file"):
        read_all(tmp_path, strict_captions=True)


def test_groups_come_from_a_file_the_folder_or_the_name(tmp_path: Path) -> None:
    tiny.write_pictures(tmp_path, 3)
    (tmp_path / "groups.json").write_text('{"quokka000": "kin", "quokka001": "kin"}')
    groups = [example.group for example in read_all(tmp_path)]
    assert groups[0] == groups[1] == "kin" and groups[2] not in ("kin", None)
    assert {example.group for example in read_all(tmp_path, group_by="folder")} == {"1_zebrafolder"}
    assert len({example.group for example in read_all(tmp_path, group_by="none")}) == 3
    with pytest.raises(InputError, match="group_by must be"):
        read_all(tmp_path, group_by="identity")


def test_a_table_of_what_was_found_goes_to_the_terminal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.write_pictures(tmp_path, 4, repeats=3)
    (tmp_path / "3_zebrafolder" / "quokka001.txt").unlink()
    with caplog.at_level(logging.INFO, "library"):
        read_all(tmp_path)
    lines = [line.split() for line in caplog.text.splitlines()]
    assert any(line[-6:] == ["3_zebrafolder", "4", "3", "1", "0", "3"] for line in lines)
    assert "walrus" not in caplog.text and "3_zebrafolder: captions are read from .txt files" in caplog.text


def test_every_line_of_a_caption_file_is_kept_only_for_wildcards(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path, 1) / "1_zebrafolder"
    (folder / "quokka000.txt").write_text("one\n\n two \n")
    assert read_all(tmp_path)[0].caption == "one"
    assert read_all(tmp_path, enable_wildcard=True)[0].caption == "one\ntwo"


def test_regularisation_images_stand_apart_and_may_not_be_candidates(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path / "train", 4)
    public = tiny.write_pictures(tmp_path / "reg", 3, first=50)
    found = read(folder, reg_data_dir=str(public))
    assert len(found.candidates) == 4 and len(found.regularisation) == 3 and not found.outsiders
    tiny.write_picture(public / "1_zebrafolder" / "copy.png", 2)
    with pytest.raises(InputError, match="regularisation image '.*copy.png' is the same picture as '.*quokka002.png'"):
        read(folder, reg_data_dir=str(public))


def test_a_class_folder_without_pictures_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.write_pictures(tmp_path, 1)
    (tmp_path / "10_forgotten").mkdir()
    picture_folders(tmp_path, False, "train_data_dir")
    assert "10_forgotten' has no pictures directly in it" in caplog.text
