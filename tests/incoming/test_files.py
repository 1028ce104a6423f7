"""The gate: which files are opened, what is bounded, and what a message says."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from library.errors import LONGEST, InputError, shown
from library.incoming.files import is_file, read_bytes, read_text
from library.incoming.pickles import UnfitPickleError, check_pickle, read_pickle
from library.incoming.shapes import (
    Either,
    Flag,
    ListOf,
    Null,
    Number,
    Record,
    TableOf,
    Text,
    Whole,
    check_shape,
)
from library.incoming.texts import parse_json, parse_json_lines, parse_toml
from tests.fuzz.damage import PICKLES, with_pickle


def refused(function: Any, *arguments: Any) -> str:
    """The message of an InputError."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


def test_a_pipe_is_refused_without_waiting_and_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("a")
    (tmp_path / "link").symlink_to("text")
    (tmp_path / "loop").symlink_to("loop")
    assert read_text(tmp_path / "link", "it") == "a"
    assert refused(read_text, tmp_path / "pipe", "config 'x'") == "config 'x' is a pipe, not a file"
    assert refused(read_text, tmp_path, "it") == "it is a folder, not a file"
    assert refused(read_text, "/dev/zero", "it") == "it is a device, not a file"
    assert refused(read_text, tmp_path / "none", "it") == "it is not a file: there is nothing of this name"
    assert "Too many levels" in refused(read_text, tmp_path / "loop", "it")
    assert "name too long" in refused(read_text, tmp_path / ("x" * 300), "it")
    assert refused(read_text, "a\0b", "it") == "it is no name that a file can have"
    assert not is_file("x" * 300) and not is_file("a\0b")


def test_a_file_above_the_bound_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**40)
    assert refused(read_bytes, tmp_path / "large", "it", 2**20) == "it has more than 1 MiB; a file of its kind has less"


def test_the_first_byte_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\ntwo \xff\n")
    assert refused(read_text, tmp_path / "a", "it") == "it is not UTF-8; save it as UTF-8 (line 2, byte 0xff at 8)"
    (tmp_path / "b").write_bytes("a = 1".encode("utf-16"))
    assert refused(read_text, tmp_path / "b", "it") == "it is not UTF-8 but UTF-16; save it as UTF-8"
    (tmp_path / "c").write_bytes(b"\xef\xbb\xbfa\r\nb\r")
    assert read_text(tmp_path / "c", "it") == "a\nb\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested more than 64 deep"),
        ('{"a":' * 100_000, "nested more than 64 deep"),
        ("[" * 70 + "]" * 70, "nested more than 64 deep"),
        ("NaN", "NaN is no number"),
        ("[1e999]", "1e999 is no number"),
        ('{"a": [1, {"b": 1' + "0" * 40 + "}]}", "a[1].b is a whole number beyond 64 bits"),
        ("9" * 5000, "a whole number has thousands of digits"),
        ('{"a" 1}', "Expecting ':' delimiter: line 1 column 6"),
    ],
)
def test_json_beyond_its_bounds_is_refused(text: str, said: str) -> None:
    assert said in refused(parse_json, text, "it")


def test_json_within_its_bounds_is_read() -> None:
    assert parse_json("[" * 60 + "-0" + "]" * 60, "it")
    assert parse_json('{"a": 1e40}', "it") == {"a": 1e40}
    assert parse_json("1" + "0" * 40, "it", huge=True) == 10**40
    assert parse_json_lines('{"a": 1}\n\n[2]\n', "it") == [(1, {"a": 1}), (3, [2])]
    assert "it, line 2 is not valid JSON" in refused(parse_json_lines, "1\n{\n", "it")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 100_000, "nested more than 64 deep"),
        ("a." * 100_000 + "a = 1", "a key of more than 100 parts"),
        ("a = 1\nb = 0x" + "f" * 20, "b is a whole number beyond 64 bits"),
        ("a = 1\nb 2", "(at line 2, column 3)"),
    ],
)
def test_toml_beyond_its_bounds_is_refused(text: str, said: str) -> None:
    assert said in refused(parse_toml, text, "it")


def test_a_list_of_whole_and_other_numbers_is_toml() -> None:
    assert parse_toml("a = [0, 0.5]\n", "it") == {"a": [0, 0.5]}


SHAPE = Record(
    {"side": Text(choices=("left", "right")), "count": Whole(1, 5)},
    {"share": Either((Number(0, 1), Null())), "names": ListOf(Text(3)), "on": Flag(), "by": TableOf(Whole())},
    others=False,
)


def test_a_value_of_its_shape_is_taken() -> None:
    good = {"side": "left", "count": 5, "share": None, "names": ["abc", ""], "on": True, "by": {"x": 0}}
    check_shape(good, SHAPE, "it")
    check_shape({"side": "right", "count": 1, "share": 1}, SHAPE, "it")
    assert refused(check_shape, {**good, "count": 6}, SHAPE, "it")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"side": "up"}, "'side' must be one of left, right, got 'up'"),
        ({"count": True}, "'count' must be a whole number from 1 to 5, got True"),
        ({"count": 2.0}, "'count' must be a whole number from 1 to 5, got 2.0"),
        ({"share": 1.5}, "'share' must be a finite number from 0 to 1, got 1.5"),
        ({"share": float("nan")}, "'share' must be a finite number from 0 to 1, got nan"),
        ({"share": "1"}, "'share' must be a finite number from 0 to 1 or null, got '1'"),
        ({"names": ["a", "four"]}, "'names[1]' must be a text of at most 3 letters"),
        ({"names": ["\udcff"]}, "'names[0]' must be a text"),
        ({"names": "a"}, "'names' must be a list"),
        ({"by": {"x": -1}}, "'by.x' must be a whole number from 0, got -1"),
        ({"cuont": 1}, "'cuont' is unknown; did you mean 'count'?"),
    ],
)
def test_what_differs_from_its_shape_is_named_with_its_place(change: dict, said: str) -> None:
    assert f"it: {said}" in refused(check_shape, {"side": "left", "count": 1, **change}, SHAPE, "it")


def test_all_faults_of_a_value_are_told_at_once() -> None:
    said = refused(check_shape, {"count": 9, "on": 1}, SHAPE, "it").splitlines()
    assert said == ["it: it has no 'side'", "it: 'count' must be a whole number from 1 to 5, got 9",
                    "it: 'on' must be true or false, got 1"]  # fmt: skip


def saved(value: Any, legacy: bool = False) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def test_an_old_checkpoint_with_much_behind_its_tensors_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """A sparse file of 3 GiB: hashing it whole would take minutes."""
    file = tmp_path / "a.pt"
    file.write_bytes(saved({"a": torch.zeros(3, 5)}, legacy=True))
    os.truncate(file, 3 << 30)
    with pytest.raises(InputError, match="3071 MiB stand behind its tensors"):
        read_pickle(file, "a.pt", "give another")


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_is_read_bit_for_bit(tmp_path: Path, legacy: bool) -> None:
    module = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    shared = torch.arange(6.0).reshape(2, 3)
    value = {"m": module.state_dict(), "o": optimizer.state_dict(), "s": schedule.state_dict(), "v": shared.T,
             "e": torch.empty(0), "x": torch.arange(4).expand(1, -1), "b": torch.ones(2).bfloat16(), "n": None,
             "d": torch.float32, "t": (1, "a", 2.5, True)}  # fmt: skip
    (tmp_path / "a.pt").write_bytes(saved(value, legacy))
    found = read_pickle(tmp_path / "a.pt", "it")
    assert torch.equal(found["v"], shared.T) and torch.equal(found["m"]["weight"], module.weight)
    assert found["o"]["param_groups"] == optimizer.state_dict()["param_groups"] and found["t"] == value["t"]
    assert found["s"]["milestones"] == schedule.state_dict()["milestones"] and found["d"] is torch.float32


@pytest.mark.parametrize("name", sorted(PICKLES))
@pytest.mark.parametrize("bare", [False, True])
def test_a_pickle_that_hangs_grows_or_runs_is_refused_unopened(tmp_path: Path, name: str, bare: bool) -> None:
    data = PICKLES[name]
    (tmp_path / "a.pt").write_bytes(data if bare else with_pickle(saved({"a": torch.ones(2)}), data))
    assert refused(read_pickle, tmp_path / "a.pt", "it").startswith("it was not opened: ")


def test_a_record_that_is_shorter_than_stated_is_not_read_past_its_end(tmp_path: Path) -> None:
    """torch makes a tensor of the stated size on the record's memory, whatever its size is."""
    whole = io.BytesIO(saved({"a": torch.ones(1000)}))
    with zipfile.ZipFile(whole) as before, zipfile.ZipFile(tmp_path / "a.pt", "w") as after:
        for record in before.infolist():
            data = before.read(record)
            after.writestr(record.filename, data[:8] if "/data/" in record.filename else data)
    assert "its record 0 is missing or shorter than stated" in refused(read_pickle, tmp_path / "a.pt", "it")


def test_the_length_of_a_pickle_is_returned() -> None:
    assert check_pickle(b"\x80\x02K\x01.rest", lambda key: 0) == 5
    with pytest.raises(UnfitPickleError, match="its pickle is damaged"):
        check_pickle(b"\x80\x02a.", lambda key: 0)


def test_a_message_and_a_value_in_it_have_a_bounded_length() -> None:
    assert len(str(InputError("x" * 10**6))) <= LONGEST
    assert len(shown({"a": ["y" * 10**6] * 1000})) < 1000
    assert shown(json.loads("[" * 50 + "]" * 50)).count("[") < 10
