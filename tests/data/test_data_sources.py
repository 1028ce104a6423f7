"""Captions from metadata files, and Hugging Face datasets as files of their own."""

import json
import os
from pathlib import Path

import pytest

from library.audit.targets.candidates import read_pictures, training_sizes
from library.errors import InputError
from tests.helpers import tiny
from tests.helpers.data_toy import config, from_dataset, picture_bytes, read, write_parquet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures without caption files: a.png, b.png, deep/c.png."""
    (tmp_path / "set" / "deep").mkdir(parents=True)
    for index, name in enumerate(("a.png", "b.png", "deep/c.png")):
        tiny.write_picture(tmp_path / "set" / name, index)
    return tmp_path / "set"


def captions_of(folder: Path, content: object, name: str = "meta.json", **changed: object) -> dict[str, str]:
    """Caption by file name of a metadata file."""
    file = folder.parent / name
    if isinstance(content, list):
        file.write_text("".join(json.dumps(line) + "\n" for line in content))
    else:
        file.write_text(json.dumps(content))
    return {one.path.name: one.caption for one in read(folder, in_json=str(file), **changed).candidates}


def test_a_metadata_file_names_pictures_by_path_relative_path_or_stem(folder: Path) -> None:
    content = {
        str(folder / "a"): {"caption": "walrus"},
        "b.png": {"tags": "x, y"},
        "deep/c": {"caption": "one", "tags": ["two", "three"], "train_resolution": [64, 64]},
    }
    assert captions_of(folder, content) == {"a.png": "walrus", "b.png": "x, y", "c.png": "one, two, three"}
    assert captions_of(folder, {"c": {"caption": "by stem"}}) == {"c.png": "by stem"}


def test_json_lines_of_both_kinds_are_read(folder: Path) -> None:
    kohya = [{"image_path": str(folder / "a.png"), "caption": "walrus", "tags": "x"}]
    assert captions_of(folder, kohya, "meta.jsonl") == {"a.png": "walrus, x"}
    imagefolder = [{"file_name": "deep/c.png", "text": "walrus"}]
    assert captions_of(folder, imagefolder, "metadata.jsonl") == {"c.png": "walrus"}


def test_tags_follow_every_line_of_a_caption_where_wildcards_draw_one(folder: Path) -> None:
    content = {"a": {"caption": "one\ntwo", "tags": "x"}}
    assert captions_of(folder, content) == {"a.png": "one, x"}
    assert captions_of(folder, content, enable_wildcard=True) == {"a.png": "one, x\ntwo, x"}
    assert captions_of(folder, content, caption_separator=";") == {"a.png": "one; x"}


def test_pictures_that_are_missing_unclear_or_without_caption_are_reported_together(folder: Path) -> None:
    tiny.write_picture(folder / "deep" / "a.png", 9)
    with pytest.raises(InputError) as caught:
        captions_of(folder, {"a": {"caption": "x"}, "gone": {"caption": "x"}, "b": {"caption": ""}, "c": {}})
    text = str(caught.value)
    assert "1 pictures are not in" in text and "'gone'" in text
    assert "2 pictures have neither caption (or text) nor tags: 'b', 'c'" in text
    with pytest.raises(InputError, match="1 names match several pictures below .*: 'a.*'; write the relative path"):
        (folder / "a.png").unlink()
        tiny.write_picture(folder / "a.jpg", 7)
        tiny.write_picture(folder / "a.webp", 8)
        captions_of(folder, {"a": {"caption": "x"}})


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("[1]", "meta.json", "must be one JSON object"),
        ('{"a": {"caption": "x"}, "b": 3}', "meta.json", "the value of 'b' is not an object$"),
        ("{", "meta.json", "is not valid JSON: .*; a file of JSON lines must end in .jsonl"),
        ('{"caption": "x"}\n', "meta.jsonl", "line 1 needs image_path"),
        ("\nnonsense\n", "meta.jsonl", "line 2 is not valid JSON"),
    ],
)
def test_other_shapes_of_metadata_are_refused(folder: Path, text: str, name: str, message: str) -> None:
    (folder.parent / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read(folder, in_json=str(folder.parent / name))


def test_repeats_of_a_metadata_file_come_from_dataset_repeats(folder: Path) -> None:
    (folder.parent / "m.json").write_text('{"a": {"caption": "x"}}')
    assert read(folder, in_json=str(folder.parent / "m.json"), dataset_repeats=3).candidates[0].repeats == 3


def test_a_parquet_dataset_becomes_private_files_with_their_own_bytes(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "train.parquet")
    found = from_dataset(file, tmp_path / "cache", group_column="person", dataset_repeats=2)
    assert sorted(one.caption for one in found) == [f"walrus {index}" for index in range(4)]
    assert {one.path.read_bytes() for one in found} == {picture_bytes(i, ["PNG", "JPEG"][i % 2]) for i in range(4)}
    assert {one.path.suffix for one in found} == {".png", ".jpg"} and {one.repeats for one in found} == {2}
    groups = {one.caption: one.group for one in found}
    assert groups["walrus 0"] == groups["walrus 1"] != groups["walrus 2"] == groups["walrus 3"]
    (inner,) = (path for path in (tmp_path / "cache" / "datasets").iterdir() if path.name != ".locks")
    for place in (tmp_path / "cache", inner.parent, inner):
        assert os.stat(place).st_mode & 0o777 == 0o700
    assert len(list(inner.iterdir())) == 5  # four pictures and the captions
    assert all(os.stat(path).st_mode & 0o777 == 0o600 for path in inner.iterdir())
    times = {path: path.stat().st_mtime_ns for path in inner.iterdir() if path.suffix != ".jsonl"}
    again = from_dataset(file, tmp_path / "cache", group_column="person")
    assert [one.pixels for one in again] == [one.pixels for one in found]
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())


def test_an_imagefolder_is_read_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        tiny.write_picture(folder / f"{index}.png", index)
    lines = [json.dumps({"file_name": f"{index}.png", "text": f"walrus {index}"}) for index in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    found = from_dataset(folder, tmp_path / "cache")
    assert {one.path: one.caption for one in found} == {folder / f"{i}.png": f"walrus {i}" for i in range(3)}


def test_columns_are_options_and_a_wrong_one_names_those_that_there_are(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", label=["a cat"] * 4)
    assert {one.caption for one in from_dataset(file, tmp_path / "c", caption_column="label")} == {"a cat"}
    with pytest.raises(InputError) as caught:
        from_dataset(file, tmp_path / "c", caption_column="txt", image_column="img", group_column="who")
    text = str(caught.value)
    for option, name in (("caption_column", "txt"), ("image_column", "img"), ("group_column", "who")):
        assert f"{option}: dataset_name '{file}' has no column '{name}'; it has 'image', 'text', 'person'" in text


def test_rows_without_picture_or_caption_are_named_by_number(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "x.parquet", text=["a", "", None, "d"])
    with pytest.raises(InputError, match="2 rows have no caption: rows '1', '2'"):
        from_dataset(file, tmp_path / "cache")


def test_parquet_files_of_a_folder_are_chosen_by_split(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_parquet(folder / "train-00000-of-00001.parquet", 4)
    write_parquet(folder / "test-00000-of-00001.parquet", 2)
    assert len(from_dataset(folder, tmp_path / "cache")) == 4
    assert len(from_dataset(folder, tmp_path / "cache", dataset_split="test")) == 2
    with pytest.raises(InputError, match="dataset_split 'dev' has no parquet file here; use one of 'test', 'train'"):
        from_dataset(folder, tmp_path / "cache", dataset_split="dev")


def test_what_is_no_dataset_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "x.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="must be a parquet file, a folder, or a hub id"):
        from_dataset(tmp_path / "x.txt", tmp_path / "cache")
    with pytest.raises(InputError, match="cannot be read as a dataset"):
        from_dataset(tmp_path / "x.parquet", tmp_path / "cache")
    with pytest.raises(InputError, match="is neither a file, a folder, nor a hub id"):
        from_dataset("no such thing!", tmp_path / "cache")


def test_a_hub_id_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be fetched from the hub: .*give the local parquet file or folder"):
        from_dataset("nobody/no-such-dataset", tmp_path / "cache")


def test_the_audit_reads_each_picture_once_with_its_whole_caption_and_first_size(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path / "set", 4) / "1_zebrafolder"
    reg = tiny.write_pictures(tmp_path / "reg", 2, first=30) / "1_zebrafolder"
    (tmp_path / "data.toml").write_text(f"""
        [general]
        caption_prefix = "sks"
        shuffle_caption = true
        [[datasets]]
        resolution = 32
          [[datasets.subsets]]
          image_dir = "{folder}"
          [[datasets.subsets]]
          image_dir = "{reg}"
          is_reg = true
        [[datasets]]
        resolution = 64
          [[datasets.subsets]]
          image_dir = "{folder}"
        """)
    settings = vars(config(dataset_config=str(tmp_path / "data.toml"), group_by="folder"))
    found = read_pictures(settings)
    assert len(found) == 4 and training_sizes(found, 8) == [(32, 32)] * 4
    assert {one.caption for one in found} == {f"sks walrus{index:03d}, ocelot picture" for index in range(4)}


@pytest.mark.parametrize(("reachable", "proxies", "offline"), [(True, {}, False), (False, {}, True),
                                                               (False, {"https": "http://box"}, False)])  # fmt: skip
def test_a_hub_that_does_not_answer_is_asked_once_and_then_only_the_cache(
    monkeypatch: pytest.MonkeyPatch, caplog, reachable: bool, proxies: dict, offline: bool
) -> None:
    import datasets
    import huggingface_hub

    from library.data import hub_datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_datasets, "answers", lambda host, port: reachable)
    monkeypatch.setattr("urllib.request.getproxies", lambda: proxies)
    with hub_datasets.offline_where_unreachable():
        assert datasets.config.HF_HUB_OFFLINE is huggingface_hub.constants.HF_HUB_OFFLINE is offline
    assert datasets.config.HF_HUB_OFFLINE is huggingface_hub.constants.HF_HUB_OFFLINE is False
    assert ("does not answer" in caplog.text) is offline
