"""What lies in people's picture folders beside pictures, unusual kinds of them, and captions as people leave them."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, features

from library.data.examples import open_picture
from library.data.folders import caption_file, pictures_in
from library.data.read_pictures import read_sources
from library.data.split import draw_split
from library.data.split_file import reuse_split, write_split
from library.errors import InputError
from library.incoming import pictures as pictures_gate
from library.incoming.pictures import free_memory, open_image
from tests.helpers import tiny
from tests.helpers.data_toy import config, read
from tests.helpers.keys import secret_of


def told(folder: Path, **changed: object) -> list[str]:
    """What is wrong with a training folder, one fault a line."""
    with pytest.raises(InputError) as caught:
        read(folder, **changed)
    return str(caught.value).splitlines()


def png(width: int, height: int) -> bytes:
    """A valid grey PNG of one value: a large one is a few kilobytes long."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), io.BytesIO()
    for _ in range(height):
        rows.write(packer.compress(bytes(width // 8 + 1)))
    rows.write(packer.flush())
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows.getvalue()) + chunk(b"IEND", b"")


def test_what_other_programs_leave_beside_the_pictures_is_passed_over(tmp_path: Path, caplog) -> None:
    folder = tiny.write_pictures(tmp_path, 3) / "1_zebrafolder"
    for name in ("._quokka000.png", ".DS_Store", "desktop.ini", ".hidden.png"):
        (folder / name).write_bytes(b"not a picture")
    for name in (".ipynb_checkpoints", "sample", "CROP"):
        (folder / name).mkdir()
        tiny.write_picture(folder / name / "quokka000-copy.png", 8)
    os.symlink(folder / "gone.png", folder / "link.png")
    for number in range(11):
        (folder / f"{number}.jxl").write_bytes(b"\xff\x0a")
    (folder / "a.heic").write_bytes(b"x")
    assert [one.path.name for one in read(tmp_path).candidates] == ["quokka000.png", "quokka001.png", "quokka002.png"]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == [
        "1_zebrafolder: folders with pictures in them are passed over: 'CROP', 'sample'",
        "1_zebrafolder: 1 links that lead nowhere are passed over: 'link.png'",
        "1_zebrafolder: 12 files of kinds that are not read: .heic, .jxl are passed over",
    ]


def test_hidden_folders_and_files_beside_the_class_folders_are_not_worth_a_line(tmp_path: Path, caplog) -> None:
    tiny.write_pictures(tmp_path, 2)
    (tmp_path / ".cache").mkdir()
    tiny.write_picture(tmp_path / ".cache" / "a.png", 5)
    assert len(read(tmp_path).candidates) == 2 and not [one for one in caplog.records if one.levelname == "WARNING"]


def test_pictures_one_level_deeper_are_found_for_the_person(tmp_path: Path) -> None:
    place = tmp_path / "data/10_cat/inner"
    place.mkdir(parents=True)
    tiny.write_picture(place / "a.png", 1)
    (fault,) = told(tmp_path / "data")
    assert (
        f"'{place.parent}' has no pictures directly in it; they are one level deeper, in 'inner'; move them up" in fault
    )
    (fault,) = told(tmp_path / "data/10_cat", flat_data_dir=True)
    assert "they are one level deeper, in 'inner'; without --flat_data_dir" in fault
    (place / "a.png").rename(place.parent / "a.jxl")
    (fault,) = told(tmp_path / "data")
    assert "holds no pictures" in fault and "1 files of kinds that are not read: .jxl" in fault


def test_a_picture_above_pillows_limit_is_read_or_named_with_its_size(tmp_path: Path, monkeypatch) -> None:
    """20,000 x 10,000 is above 179 megapixels, where Pillow raises what is no OSError."""
    folder = tiny.write_pictures(tmp_path, 1) / "1_zebrafolder"
    (folder / "huge.png").write_bytes(png(20_000, 10_000))
    (folder / "huge.txt").write_text("a wall")
    monkeypatch.setattr(pictures_gate, "free_memory", lambda: 1_500_000_000)
    (fault,) = told(tmp_path)
    assert "huge.png' has 20000 x 10000 = 200 megapixels, which take about 2.0 GB of memory (1.5 GB are free)" in fault
    monkeypatch.setattr(pictures_gate, "free_memory", lambda: 3_000_000_000)
    with open_image(folder / "huge.png") as picture:
        assert picture.size == (20_000, 10_000)
    assert Image.MAX_IMAGE_PIXELS is not None, "the limit holds again elsewhere"
    assert free_memory() > 0


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_has_it(tmp_path: Path) -> None:
    tiny.write_picture(tmp_path / "a.png", 1)
    open_picture(tmp_path / "a.png").save(tmp_path / "b.avif", quality=100)
    assert [path.name for path in pictures_in(tmp_path)] == ["a.png", "b.avif"]
    assert open_picture(tmp_path / "b.avif").size == (16, 16)


def test_a_picture_that_states_its_face_has_the_caption_of_its_stem(tmp_path: Path) -> None:
    (tmp_path / "face.txt").write_text("a face")
    assert caption_file(tmp_path / "face_120_40_64_64.png", None) == tmp_path / "face.txt"
    assert caption_file(tmp_path / "face_120_40_64_64.png", ".txt") == tmp_path / "face.txt"
    assert caption_file(tmp_path / "face_120_40_64.png", None) is None
    (tmp_path / "face_120_40_64_64.txt").write_text("its own")
    assert caption_file(tmp_path / "face_120_40_64_64.png", None) == tmp_path / "face_120_40_64_64.txt"


def test_many_empty_captions_are_one_fault_with_their_number_and_five_names(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path, 12) / "1_zebrafolder"
    for number in range(12):
        (folder / f"quokka{number:03d}.txt").write_bytes(b"" if number % 2 else b"\n \n")
    (fault,) = told(tmp_path)
    names = ", ".join(f"'quokka{number:03d}.txt'" for number in range(5))
    assert fault == (f"'{folder}': 12 caption files are empty: {names} and 7 more; write a caption or remove the file")


def test_of_a_caption_with_a_blank_first_line_the_next_line_counts(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path, 1) / "1_zebrafolder"
    (folder / "quokka000.txt").write_text("\n  \na walrus\nand more\n")
    assert read(tmp_path).candidates[0].caption == "a walrus"


def test_pictures_up_to_the_stated_area_are_passed_over_as_in_kohya(tmp_path: Path, caplog) -> None:
    """Width times height counts, not each side: 16 x 16 and 8 x 32 are 256 pixels, 32 x 16 are more."""
    caplog.set_level("INFO")
    tiny.write_pictures(tmp_path, 6, sizes=((16, 16), (8, 32), (32, 16)))
    kept = [one.path.name for one in read(tmp_path, skip_image_resolution="16").candidates]
    assert kept == ["quokka002.png", "quokka005.png"]
    assert "4 pictures are passed over by skip_image_resolution: 'quokka000.png', 'quokka001.png'" in caplog.text
    assert len(read(tmp_path, skip_image_resolution="15,17").candidates) == 6, "255 pixels"
    subset = f'[[datasets.subsets]]\nimage_dir = "{tmp_path}/1_zebrafolder"\n'
    (tmp_path / "data.toml").write_text(
        f"[[datasets]]\nskip_image_resolution = [16, 16]\n{subset}[[datasets]]\n{subset}"
    )
    from library.data.picture_sources import pick_rules

    found = read_sources(*pick_rules(config(dataset_config=str(tmp_path / "data.toml")))).candidates
    assert [sum(one.subset.dataset == place for one in found) for place in (0, 1)] == [2, 6]


def test_pictures_whose_names_are_no_text_too_long_or_steer_a_terminal_are_read_and_found_again(tmp_path: Path) -> None:
    """With the captions beside them, and in a split that is written and read."""
    folder = os.fsencode(tiny.write_pictures(tmp_path, 12) / "1_zebrafolder")
    names = [b"\xff\xfe seal", b"x" * 240, b"\x1b[31mrouge\n'\""]
    for number, name in enumerate(names):
        for ending in (b".png", b".txt"):
            os.rename(folder + f"/quokka{number:03d}".encode() + ending, folder + b"/" + name + ending)
    found = read(tmp_path).candidates
    stems = {os.fsencode(one.path.stem): one.caption for one in found}
    assert len(found) == 12 and [stems[name] for name in names] == [
        f"walrus{number:03d}, ocelot picture" for number in range(3)
    ]
    drawn = draw_split(found, [], nonmember_share=0.5, aux_share=0.5, inclusion="fixed", secret=secret_of(1))
    write_split(drawn, tmp_path / "split.json")
    again = reuse_split(tmp_path / "split.json", found, secret_of(1))
    assert again.sides == drawn.sides


def test_windows_paths_in_metadata_are_read_as_paths_or_named_as_the_reason(tmp_path: Path, caplog) -> None:
    folder = tiny.write_pictures(tmp_path, 3) / "1_zebrafolder"
    names = ["1_zebrafolder\\quokka000.png", "C:\\Users\\me\\1_zebrafolder\\quokka001.png", "/elsewhere/quokka002.png"]
    file = tmp_path / "meta.json"
    file.write_text(json.dumps({name: {"caption": f"walrus {place}"} for place, name in enumerate(names)}))
    found = read(tmp_path, in_json=str(file)).candidates
    assert sorted((one.path.name, one.caption) for one in found) == [
        (f"quokka{place:03d}.png", f"walrus {place}") for place in range(3)
    ]
    assert "2 pictures are named by paths of another machine, and found by the end of these paths" in caplog.text
    file.write_text('{"C:\\data\\quokka000.png": {"caption": "a"}}')  # as a program writes it that does not escape
    (fault,) = told(tmp_path, in_json=str(file))
    assert "is not valid JSON" in fault and "in a Windows path double every backslash, or write /" in fault
    file.write_text('{"C:\\new\\t.png": {"caption": "a"}}')
    (fault,) = told(tmp_path, in_json=str(file))
    assert "JSON reads a single backslash as part of a letter: double it, or write /" in fault
    assert folder.is_dir()
