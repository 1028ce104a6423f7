"""Opens files from outside: regular files only, of a bounded size, as bytes or as UTF-8."""

import errno
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from library.errors import InputError
from library.plain_text import STEERING

LONGEST_PART, LONGEST_PATH = 255, 4095  # bytes, of Linux
MIB = 1024**2
MOST_SETTINGS = MIB // 2  # configs, prompts, captions: a stranger's TOML of this size still takes 4 s
MOST_LIST = 128 * MIB  # lists of pictures, logs, vocabularies: about a million entries
KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def is_file(path: str | Path) -> bool:
    """Whether a path leads to a regular file. Names that no file can have lead to none, where ``Path`` raises."""
    return os.path.isfile(path)


def is_folder(path: str | Path) -> bool:
    """Whether a path leads to a folder; see ``is_file``."""
    return os.path.isdir(path)


def exists(path: str | Path) -> bool:
    """Whether there is something of this name; see ``is_file``."""
    return os.path.exists(path)


def unusable_name(path: str) -> str:
    """Why no file can have this name, as the end of a sentence; empty where one can."""
    if "\0" in path:
        return "has a NUL in it"
    if len(os.fsencode(path)) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_PART for part in path.split("/")):
        return f"has a part of more than {LONGEST_PART} bytes, or more than {LONGEST_PATH} in all"
    return "" if path.isprintable() or not STEERING.search(path) else "has control characters or is no UTF-8"


def check_regular(path: str | Path, name: str) -> os.stat_result:
    """What the system says of a regular file, links followed, which may be read; nothing is opened.

    Args:
        name: how messages call it, e.g. "config_file 'run.toml'".

    Raises:
        InputError: no file, one without the right to read, a folder, a pipe, a device, a socket.
    """
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{name} {_why(error)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{name} is {KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, not a file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{name} cannot be read: {os.strerror(errno.EACCES)}")
    return found


@contextmanager
def open_regular(path: str | Path, name: str) -> Iterator[io.BufferedReader]:
    """A regular file, open for reading. Neither a pipe nor a device is opened, since both may wait or act.

    Raises:
        InputError: see ``check_regular``; a file that fails while it is read.
    """
    check_regular(path, name)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):  # exchanged since
                raise InputError(f"{name} is not a file")
            yield file
    except OSError as error:
        raise InputError(f"{name} {_why(error)}") from error


def read_bytes(path: str | Path, name: str, most: int = MOST_LIST) -> bytes:
    """The content of a regular file.

    Args:
        most: bytes; a larger file is refused unread.

    Raises:
        InputError: see ``open_regular``; a file above the bound.
    """
    with open_regular(path, name) as file:
        content = file.read(most + 1) or b""
    if len(content) > most:
        raise InputError(f"{name} has more than {most / MIB:g} MiB; a file of its kind has less")
    return content


def read_text(path: str | Path, name: str, most: int = MOST_SETTINGS) -> str:
    """The content of a regular file in UTF-8, without a byte order mark.

    Raises:
        InputError: see ``read_bytes``; the first byte that is not UTF-8, with its line.
    """
    content = read_bytes(path, name, most)
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{name} is not UTF-8 but UTF-16; save it as UTF-8")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} is not UTF-8; save it as UTF-8 (line {line}, byte 0x{content[error.start]:02x} at {error.start})"
        ) from error


def file_hash(path: str | Path, name: str) -> str:
    """SHA-256 (hex) of a regular file. Raises: InputError, see ``open_regular``."""
    with open_regular(path, name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _why(error: OSError | ValueError) -> str:
    """The end of a sentence about a path that does not open."""
    if isinstance(error, ValueError):  # a NUL in the name
        return "is no name that a file can have"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "is not a file: there is nothing of this name"
    return f"cannot be read: {error.strerror or error}"
