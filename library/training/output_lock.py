"""The lock of an output folder: one run at a time writes into it, from its first look to its end."""

import errno
import fcntl
import json
import logging
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from library.errors import InputError
from library.tensor_files import owners_file

NAME = "run.lock"
BUSY = (errno.EAGAIN, errno.EACCES)  # another process holds the lock; every other error: locks are not supported
BOOT = Path("/proc/sys/kernel/random/boot_id")
logger = logging.getLogger(__name__)


class OutputLock:
    """The kernel's lock (flock) on ``run.lock``: it is released when the process ends, however it ends.

    On NFS, Linux asks the server, so that runs of several machines exclude each other. Where the file system has no
    locks, the file itself is the lock, and the process that is named in it is looked for.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self._made: list[Path] = []  # folders that did not exist before, innermost first
        self._release: Any = None
        self._handle = -1

    def acquire(self) -> None:
        """Take the lock; a lock whose process has ended is taken over with one line.

        Raises:
            InputError: another run writes into the folder, or it cannot be written.
        """
        try:
            self._make_folder()
            self._handle = self._opened()
        except OSError as error:
            remove_empty(self._made)
            raise InputError(f"output_dir '{self.file.parent}' cannot be written: {error.strerror or error}") from error
        self._release = weakref.finalize(self, released, self.file, self._handle, self._made)

    def release(self) -> None:
        """Remove the lock, and the folders that were made for it if they are empty."""
        if self._release is not None:
            self._release()

    def renew(self) -> bool:
        """Take the lock again where its file, or the whole folder, was removed; returns whether it was.

        Raises:
            InputError: by now another run writes into the folder.
        """
        if self._release is None or is_still_there(self.file, self._handle):
            return False
        self.release()
        self.acquire()
        return True

    @contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Whatever is raised inside releases the lock."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def _make_folder(self) -> None:
        self._made.clear()
        place = self.file.parent
        while not place.exists():
            self._made.append(place)
            place = place.parent
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def _opened(self) -> int:
        """The locked file, with this process noted in it. Raises: InputError where another run holds it."""
        while True:
            handle, is_fresh = opened(self.file)
            try:
                before, supported = None if is_fresh else read_note(handle), True
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    supported = error.errno in BUSY
                    if supported or not (is_fresh or (before and not may_run(before))):
                        raise self._taken(before, supported) from error
                if not is_still_there(self.file, handle):  # its holder removed it after it was opened here
                    os.close(handle)
                    continue
                if before:
                    logger.warning(
                        "'%s' was left by a run that has ended (process %s); it is taken over", self.file,
                        before.get("process", "unknown"),
                    )  # fmt: skip
                write_note(handle)
                return handle
            except BaseException:
                with suppress(OSError):
                    os.close(handle)
                raise

    def _taken(self, note: dict[str, Any] | None, supported: bool) -> InputError:
        who = f"process {note.get('process')} on {note.get('machine')}" if note else "its process is not noted yet"
        way_out = "" if supported else (
            f" (this file system has no locks: if that run has ended, remove '{self.file.name}' there)"
        )  # fmt: skip
        return InputError(
            f"output_dir '{self.file.parent}' is in use by another run ({who}); wait for its end, or give another "
            f"--output_dir{way_out}"
        )


def this_process() -> dict[str, Any]:
    """What a lock notes of the process that holds it."""
    boot = BOOT.read_text(encoding="ascii").strip() if BOOT.is_file() else ""
    return {"process": os.getpid(), "machine": socket.gethostname(), "boot": boot}


def may_run(note: dict[str, Any]) -> bool:
    """Whether the process of a note may still run: not after a new start of this machine, or when it is gone."""
    here = this_process()
    if note.get("machine") != here["machine"]:
        return True
    if note.get("boot") != here["boot"] or not isinstance(note.get("process"), int):
        return False
    try:
        os.kill(note["process"], 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def opened(file: Path) -> tuple[int, bool]:
    """A lock file's handle, and whether it was made just now."""
    try:
        return owners_file(str(file), os.O_RDWR | os.O_CREAT | os.O_EXCL), True
    except FileExistsError:
        return owners_file(str(file), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW), False


def read_note(handle: int) -> dict[str, Any]:
    """The note in a lock file; empty where there is none."""
    try:
        note = json.loads(os.pread(handle, 4096, 0))
    except (ValueError, OSError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def write_note(handle: int) -> None:
    """Note this process."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(this_process()).encode(), 0)


def is_still_there(file: Path, handle: int) -> bool:
    """Whether a path still leads to the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(file.stat(), os.fstat(handle))
    return False


def released(file: Path, handle: int, made: list[Path]) -> None:
    """Remove a lock file and then its lock, in this order, so that nobody finds the file unlocked."""
    with suppress(OSError):
        if is_still_there(file, handle):
            file.unlink()
    with suppress(OSError):
        os.close(handle)
    remove_empty(made)


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to the first that is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
