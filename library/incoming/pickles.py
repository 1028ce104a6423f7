"""Reads torch's pickles of tensors: what they would build is worked out first, without building it.

``torch.load(weights_only=True)`` runs no code of a file, but it follows cycles, unfolds a few bytes to any size, and
reads past the end of a record whose size is stated wrongly.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from library.errors import InputError
from library.incoming.files import MIB, open_regular
from library.incoming.foreign import foreign_reader
from library.incoming.texts import DEEPEST

MOST_PICKLE = 16 * MIB  # without the tensors' values
MOST_STEPS = 300_000
MOST_NODES = 10_000_000  # after unfolding
LEGACY_PICKLES = 5  # magic number, version, machine, content, keys of the storages
WIDTHS = {
    "Byte": 1, "Char": 1, "Bool": 1, "Half": 2, "BFloat16": 2, "Short": 2, "Float": 4, "Int": 4, "Double": 8, "Long": 8,
}  # fmt: skip
CALLED = (
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor", "torch._utils._rebuild_parameter",
    "collections.OrderedDict", "collections.Counter", "torch.Size", "torch.device",
)  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
EMPTY = {"EMPTY_TUPLE": "tuple", "EMPTY_LIST": "list", "EMPTY_DICT": "dict", "EMPTY_SET": "set"}


class UnfitPickleError(Exception):
    """What a pickle would build is not what a file of tensors holds."""


@dataclass(eq=False)
class Node:
    """One object that a pickle would build."""

    kind: str  # plain, tuple, list, dict, set, global, storage, call
    value: Any = None  # of a plain one; the name of a global or of what is called
    inner: list["Node"] = field(default_factory=list)


def read_pickle(path: str | Path, name: str, way_out: str = "fetch it again") -> Any:
    """The tensors and plain values in a file that ``torch.save`` wrote, on the CPU.

    Args:
        name: how messages call the file.

    Raises:
        InputError: code, cycles, more than tensors and plain values, records that are missing or too short.
    """
    check_pickle_file(path, name, way_out)
    with foreign_reader(name, way_out):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_pickle_file(path: str | Path, name: str, way_out: str = "fetch it again") -> None:
    """Look through a file that another library will read. Raises: InputError, see ``read_pickle``."""
    with open_regular(path, name) as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    check = _check_zip if is_zip else _check_legacy
    with foreign_reader(name, way_out):
        try:
            check(path, name)
        except UnfitPickleError as error:
            raise InputError(f"{name} was not opened: {error}; {way_out}") from error


def _check_zip(path: str | Path, name: str) -> None:
    """Raises: UnfitPickleError, or an error of zipfile or pickletools."""
    with open_regular(path, name) as file, zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        sizes = {record.filename.partition("/")[2]: record.file_size for record in records}
        if len(sizes) < len(records) or any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise UnfitPickleError("its records are compressed or there twice, which torch.save does not do")
        content = next((record for record in records if record.filename.partition("/")[2] == "data.pkl"), None)
        if content is None:
            raise UnfitPickleError("it is a zip file without data.pkl, which torch.save writes")
        if content.file_size > MOST_PICKLE:
            raise UnfitPickleError(f"its pickle has more than {MOST_PICKLE // MIB} MiB without the tensors")
        data = archive.read(content)

    def bytes_of(key: str) -> int:
        return sizes.get(f"data/{key}", -1)

    check_pickle(data, bytes_of)


def _check_legacy(path: str | Path, name: str) -> None:
    """The format before torch 1.6: five pickles, then the values. Raises: as ``_check_zip``."""
    whole = Path(path).stat().st_size
    with open_regular(path, name) as file:
        data = file.read(MOST_PICKLE)
    at = 0
    stored: dict[str, int] = {}  # bytes of the values, by storage
    for number in range(LEGACY_PICKLES):
        at += check_pickle(data[at:], lambda key: whole, stored)
        if number == 0 and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" not in data[:at]:
            raise UnfitPickleError("it is a pickle that torch.save did not write")
    behind = whole - at - sum(stored.values())
    if behind > MIB:  # torch writes a few bytes before each tensor, and nothing after the last
        raise UnfitPickleError(f"{behind // MIB} MiB stand behind its tensors, which torch.save does not write")


def check_pickle(data: bytes, bytes_of: Callable[[str], int], stored: dict[str, int] | None = None) -> int:
    """Work out what a pickle would build.

    Args:
        data: begins with the pickle.
        bytes_of: size of a storage's record by its key; negative where there is none.
        stored: takes the bytes that the pickle states of each storage, by its key.

    Returns:
        Number of its bytes.

    Raises:
        UnfitPickleError: see ``read_pickle``.
        ValueError: pickletools' error of a damaged pickle.
    """
    machine = _Machine(bytes_of, {} if stored is None else stored)
    end = 0
    for step, (code, argument, position) in enumerate(pickletools.genops(data)):
        end = (position or 0) + 1
        if step > MOST_STEPS:
            raise UnfitPickleError(f"its pickle has more than {MOST_STEPS} steps")
        if code.name == "STOP":
            break
        try:
            machine.step(code.name, argument)
        except (IndexError, KeyError) as error:
            raise UnfitPickleError("its pickle is damaged") from error
    _check_unfolded(machine.stack[-1] if machine.stack else Node("plain"))
    return end


class _Machine:
    """The stack and the memo of pickle, with nodes in place of objects."""

    def __init__(self, bytes_of: Callable[[str], int], stored: dict[str, int]) -> None:
        self.stored = stored
        self.bytes_of = bytes_of
        self.stack: list[Node] = []
        self.marks: list[int] = []
        self.memo: dict[int, Node] = {}

    def step(self, name: str, argument: Any) -> None:
        """One opcode. Raises: IndexError or KeyError for a damaged pickle; UnfitPickleError."""
        if name in EMPTY or name in CONSTANTS or name in VALUES or name == "GLOBAL":
            self.stack.append(_simple(name, argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name.startswith("TUPLE"):
            self.stack.append(Node("tuple", inner=self._taken(name.removeprefix("TUPLE"))))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(name)
        elif name in ("REDUCE", "BUILD", "BINPERSID"):
            self._call(name)
        elif name != "PROTO":
            raise UnfitPickleError(f"its pickle holds more than tensors and plain values (step {name})")

    def _taken(self, count: str) -> list[Node]:
        """The last nodes of the stack: as many as a text says, or those behind the mark."""
        start = len(self.stack) - int(count) if count else self.marks.pop()
        if start < 0:
            raise IndexError(count)
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def _fill(self, name: str) -> None:
        items = self._taken("" if name.endswith("S") else "1" if name == "APPEND" else "2")
        target = self.stack[-1]
        is_dict = target.kind == "dict" or (target.kind == "call" and str(target.value).startswith("collections."))
        if (name.startswith("SETITEM") and not is_dict) or (name.startswith("APPEND") and target.kind != "list"):
            raise UnfitPickleError("its pickle is damaged")
        keys = items[::2] if is_dict else []
        if any(key.kind != "plain" for key in keys):
            raise UnfitPickleError("a table in it has keys that are no texts or numbers")
        target.inner += items

    def _call(self, name: str) -> None:
        last = self.stack.pop()
        if name == "BINPERSID":
            self.stack.append(self._storage(last))
            return
        called = self.stack[-1]
        if name == "BUILD":  # _metadata of a state_dict
            if called.kind != "call" or called.value != "collections.OrderedDict" or last.kind != "dict":
                raise UnfitPickleError("its pickle holds more than tensors and plain values")
            called.inner.append(last)
            return
        if called.kind != "global" or called.value not in CALLED or last.kind != "tuple":
            raise UnfitPickleError(
                f"its pickle holds more than tensors and plain values ({str(called.value)[:80]}) and could run code "
                "on loading"
            )
        if called.value.startswith("torch._utils._rebuild_tensor"):
            _check_tensor(last.inner)
        self.stack[-1] = Node("call", called.value, last.inner)

    def _storage(self, wanted: Node) -> Node:
        """A record of values. Raises: UnfitPickleError where it is missing or shorter than stated."""
        said = [one.value for one in wanted.inner]
        if wanted.kind != "tuple" or len(said) < 5 or said[0] != "storage" or wanted.inner[1].kind != "global":
            raise UnfitPickleError("its pickle is damaged")
        kind = str(said[1]).rpartition(".")[2].removesuffix("Storage")
        width = 1 if kind == "Untyped" else WIDTHS.get(kind, 0)
        if not width:
            raise UnfitPickleError(f"it holds values of a kind that no model has ({kind[:40]})")
        if not isinstance(said[2], str) or not isinstance(said[4], int):
            raise UnfitPickleError("its pickle is damaged")
        if not 0 <= said[4] * width <= self.bytes_of(said[2]):
            raise UnfitPickleError(f"its record {said[2][:40]} is missing or shorter than stated")
        self.stored[said[2]] = said[4] * width
        return Node("storage", said[4], [])


def _simple(name: str, argument: Any) -> Node:
    """What an opcode without inner objects puts on the stack."""
    if name in EMPTY:
        return Node(EMPTY[name])
    if name == "GLOBAL":
        return Node("global", argument.replace(" ", "."))
    return Node("plain", CONSTANTS.get(name, argument))


def _check_tensor(arguments: list[Node]) -> None:
    """Raises: UnfitPickleError when a tensor reaches beyond its storage, or is larger than it."""
    storage, offset, size, stride = arguments[:4]
    sizes, strides = ([one.value for one in node.inner] for node in (size, stride))
    numbers = [offset.value, *sizes, *strides]
    whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
    if storage.kind != "storage" or not whole or len(sizes) != len(strides) or len(sizes) > DEEPEST:
        raise UnfitPickleError("its pickle is damaged")
    reach = offset.value + sum((side - 1) * step for side, step in zip(sizes, strides, strict=True))
    if math.prod(sizes) > storage.value or (math.prod(sizes) and reach >= storage.value):
        raise UnfitPickleError("a tensor in it is larger than its values")


def _check_unfolded(root: Node) -> None:
    """Raises: UnfitPickleError for an object inside itself, deep nesting, and one that unfolds beyond the bounds."""
    sizes: dict[int, int] = {}
    depths: dict[int, int] = {}
    path: set[int] = set()
    waiting: list[tuple[Node, Iterator[Node]]] = [(root, iter(root.inner))]
    path.add(id(root))
    while waiting:
        node, rest = waiting[-1]
        child = next(rest, None)
        if child is None:
            waiting.pop()
            path.discard(id(node))
            sizes[id(node)] = 1 + sum(sizes[id(one)] for one in node.inner)
            depths[id(node)] = 1 + max((depths[id(one)] for one in node.inner), default=0)
            if sizes[id(node)] > MOST_NODES or depths[id(node)] > DEEPEST:
                raise UnfitPickleError("it unfolds to more than any model has")
        elif id(child) in path:
            raise UnfitPickleError("an object in it contains itself")
        elif id(child) not in sizes:
            path.add(id(child))
            waiting.append((child, iter(child.inner)))
