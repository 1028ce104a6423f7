"""Ways to damage a file: as a whole, byte by byte, or at one place of what it holds."""

import copy
import io
import json
import math
import os
import pickle
import socket
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

ANSI = "\x1b[2J\x1b[31mFORGED\x07\r"
DEEP = 100_000
WHOLE = ("absent", "folder", "pipe", "socket", "device", "unreadable", "link", "dangling link", "loop of links",
         "empty", "huge", "deep", "text", "binary", "UTF-16", "ANSI")  # fmt: skip
ODD: dict[str, Any] = {
    "null": None, "true": True, "zero": 0, "minus one": -1, "minus zero": -0.0, "10^40": 10**40, "-10^40": -(10**40),
    "NaN": math.nan, "infinity": math.inf, "1e308": 1e308, "2^63": 2**63, "2^31": 2**31, "half": 0.5, "empty text": "",
    "word": "word", "long text": "x" * 300, "very long text": "y" * 200_000, "ANSI text": ANSI, "NUL": "a\0b",
    "up": "../../../etc/passwd", "absolute": "/dev/zero", "surrogate": "\udcff", "digits": "9" * 40,
    "list": [], "list of null": [None], "long list": [1] * 5000, "table": {}, "table of table": {"a": {"b": 1}},
}  # fmt: skip
KEYS = ("extra", ANSI, "k" * 300, "\udcff", "a\0", "../up", "__class__", "", "1", "pärt")


@dataclass(frozen=True)
class Damage:
    """One damage, small enough to be shown: what is done, where, with what."""

    kind: str  # of WHOLE, or bytes, cut, value, key, lost, deep value
    place: float = 0.0  # 0 .. 1: of the bytes, or among the places of the value
    odd: str = ""
    data: bytes = b""


def damages(form: str) -> st.SearchStrategy[Damage]:
    """Damages that fit a form: text, json, jsonl, toml, tensors, pickle or bytes."""
    place = st.floats(0, 1, allow_nan=False)
    whole = st.builds(Damage, st.sampled_from(WHOLE))
    raw = st.one_of(
        st.builds(Damage, st.just("cut"), place),
        st.builds(Damage, st.just("bytes"), place, data=st.binary(min_size=1, max_size=12)),
    )
    if form in ("text", "bytes"):
        return st.one_of(whole, raw, raw)
    inner = st.one_of(
        st.builds(Damage, st.just("value"), place, st.sampled_from(sorted(ODD))),
        st.builds(Damage, st.just("key"), place, st.sampled_from(KEYS)),
        st.builds(Damage, st.just("lost"), place),
        st.builds(Damage, st.just("deep value"), place),
    )
    if form not in SPECIAL:
        return st.one_of(inner, inner, inner, raw, whole)
    special = st.builds(Damage, st.sampled_from(sorted(SPECIAL[form])))
    return st.one_of(inner, inner, raw, whole, special)


def apply(damage: Damage, file: Path, form: str) -> None:
    """Put the damaged file in place of a sound one."""
    if damage.kind in FILES:
        FILES[damage.kind](file)
        return
    content = file.read_bytes()
    if damage.kind in CONTENTS:
        file.write_bytes(CONTENTS[damage.kind])
    elif damage.kind == "deep":
        file.write_bytes(DEEPEST.get(form, b"[") * DEEP)
    elif damage.kind == "ANSI":
        file.write_bytes(ANSI.encode() + content)
    elif damage.kind == "cut":
        file.write_bytes(content[: int(damage.place * len(content))])
    elif damage.kind == "bytes":
        start = int(damage.place * len(content))
        file.write_bytes(content[:start] + damage.data + content[start + len(damage.data) :])
    elif damage.kind in SPECIAL.get(form, {}):
        file.write_bytes(SPECIAL[form][damage.kind](content))
    else:
        file.write_bytes(PACKED[form](content, lambda value: damaged_value(value, damage)))


def damaged_value(value: Any, damage: Damage) -> Any:
    """A copy of a value with one place changed."""
    value = copy.deepcopy(value)
    places = [place for place in places_in(value)]
    if not places:
        return ODD.get(damage.odd)
    holder, key = places[min(int(damage.place * len(places)), len(places) - 1)]
    if damage.kind == "value":
        holder[key] = copy.deepcopy(ODD[damage.odd])
    elif damage.kind == "deep value":
        holder[key] = DeepList()
    elif damage.kind == "lost":
        del holder[key]
    elif isinstance(holder, dict):
        holder[damage.odd] = holder[key]
    else:
        holder.append(copy.deepcopy(holder[key]))
    return value


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of every place of a value, outer ones first; of long lists the first few."""
    keys = list(value) if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
    for key in keys:
        yield from places_in(value[key])


class DeepList(list):
    """A list in a list, DEEP times, as a writer shows it."""

    text = "[" * DEEP + "]" * DEEP


def as_json(value: Any) -> str:
    """JSON, also of what JSON does not have."""
    if isinstance(value, DeepList):
        return DeepList.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {as_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_json(item) for item in value) + "]"
    return json.dumps(value)


def as_toml(value: Any) -> str:
    """TOML; what it does not have becomes something that is none either."""
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)} = {in_toml(item)}" for key, item in value.items() if not isinstance(item, dict)]
        for key, item in value.items():
            if isinstance(item, dict):
                lines += [
                    f"[{json.dumps(key)}]",
                    *(f"{json.dumps(name)} = {in_toml(one)}" for name, one in item.items()),
                ]
        return "\n".join(lines) + "\n"
    return in_toml(value)


def in_toml(value: Any) -> str:
    """A value in one line of TOML."""
    if isinstance(value, DeepList):
        return DeepList.text
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {in_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(in_toml(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return "null" if value is None else json.dumps(value)


def lines_changed(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """JSON lines with one place of all lines changed."""
    values = change([json.loads(line) for line in content.splitlines() if line.strip()])
    return "".join(as_json(one) + "\n" for one in (values if isinstance(values, list) else [values])).encode()


def header_changed(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """A safetensors file with one place of its header changed."""
    length = int.from_bytes(content[:8], "little")
    header = as_json(change(json.loads(content[8 : 8 + length]))).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def pickle_changed(content: bytes, change: Callable[[Any], Any]) -> bytes:
    """What torch.save wrote with one place changed."""
    value = change(torch.load(io.BytesIO(content), weights_only=True))
    buffer = io.BytesIO()
    torch.save(_without_deep(value), buffer)
    return buffer.getvalue()


def _without_deep(value: Any) -> Any:
    if isinstance(value, DeepList):
        inner: Any = []
        for _ in range(200):
            inner = [inner]
        return inner
    if isinstance(value, dict):
        return {key: _without_deep(item) for key, item in value.items()}
    return value


def with_pickle(content: bytes, data: bytes) -> bytes:
    """torch.save's zip file with another pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        for record in before.infolist():
            after.writestr(record.filename, data if record.filename.endswith("data.pkl") else before.read(record))
    return buffer.getvalue()


def shorter_records(content: bytes) -> bytes:
    """torch.save's zip file whose records are shorter than its pickle says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(buffer, "w") as after:
        for record in before.infolist():
            data = before.read(record)
            after.writestr(record.filename, data[: len(data) // 2] if "/data/" in record.filename else data)
    return buffer.getvalue()


def compressed(content: bytes) -> bytes:
    """torch.save's zip file with a record of 2 GB of zeros in a few kilobytes."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data/bomb", "w") as file:
        for _ in range(200):
            file.write(bytes(1_000_000))
    return buffer.getvalue()


def cyclic() -> bytes:
    """A table that is its own state_dict."""
    table: dict[str, Any] = {}
    table["state_dict"] = table
    return pickle.dumps(table, 2)


PICKLES = {
    "cyclic pickle": cyclic(),
    "expanding pickle": b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b".",
    "expanding key": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "deep pickle": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
    "code": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.",
    "large array": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "large tensor": b"\x80\x02ctorch\nFloatTensor\nJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86R.",
    "underflow": b"\x80\x02aaaa.",
}


def weights_changed(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[bytes], bytes]:
    """A safetensors file with its first tensor changed."""

    def changed(content: bytes) -> bytes:
        tensors = load(content)
        first = sorted(tensors)[0]
        return save({**tensors, first: change(tensors[first]).contiguous()})

    return changed


SPECIAL: dict[str, dict[str, Callable[[bytes], bytes]]] = {
    "pickle": {
        **{name: (lambda content, data=data: with_pickle(content, data)) for name, data in PICKLES.items()},
        **{f"bare {name}": (lambda content, data=data: data) for name, data in PICKLES.items()},
        "shorter records": shorter_records, "compressed": compressed,
    },
    "tensors": {
        "NaN weights": weights_changed(lambda value: torch.full_like(value.float(), math.nan)),
        "other shape": weights_changed(lambda value: torch.zeros(3, 5, 7)),
        "no dimension": weights_changed(lambda value: torch.tensor(1.0)),
        "no value": weights_changed(lambda value: torch.zeros(0, 4)),
        "truth values": weights_changed(lambda value: torch.ones_like(value, dtype=torch.bool)),
        "complex": weights_changed(lambda value: value.to(torch.complex64)),
        "eighths": weights_changed(lambda value: value.float().to(torch.float8_e4m3fn)),
        "long header": lambda content: (2**62).to_bytes(8, "little") + content[8:],
    },
}  # fmt: skip
PACKED: dict[str, Callable[[bytes, Callable[[Any], Any]], bytes]] = {
    "json": lambda content, change: as_json(change(json.loads(content))).encode(),
    "jsonl": lines_changed,
    "toml": lambda content, change: as_toml(change(tomllib.loads(content.decode()))).encode(),
    "tensors": header_changed,
    "pickle": pickle_changed,
}
DEEPEST = {"json": b'{"a":', "jsonl": b"[", "toml": b"a = [["}
CONTENTS = {
    "empty": b"", "text": b"hello, I am not what you think\n", "binary": bytes(range(256)) * 20,
    "UTF-16": "a = 1\n".encode("utf-16"),
}  # fmt: skip


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _socket(file: Path) -> None:
    file.unlink()
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(file.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(file.name[:90])
    finally:
        os.fchdir(here)
        os.close(here)


def _linked(file: Path, target: str | None) -> None:
    kept = file.with_name(f"kept-{file.name}")
    file.rename(kept)
    file.symlink_to(kept if target is None else target)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _huge(file: Path) -> None:
    os.truncate(file, 3 * 1024**3)


FILES: dict[str, Callable[[Path], None]] = {
    "absent": Path.unlink,
    "folder": _folder,
    "pipe": _pipe,
    "socket": _socket,
    "device": lambda file: _linked(file, "/dev/zero"),
    "unreadable": lambda file: file.chmod(0),
    "link": lambda file: _linked(file, None),
    "dangling link": lambda file: _linked(file, "nowhere"),
    "loop of links": lambda file: _linked(file, file.name),
    "huge": _huge,
}
