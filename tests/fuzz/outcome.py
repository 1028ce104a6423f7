"""One case: sound files laid down, one damaged, read; what came of it is a reading, an error, or a fault."""

import contextlib
import io
import logging
import os
import re
import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from library.errors import InputError
from library.plain_text import STEERING
from tests.fuzz import sound
from tests.fuzz.damage import Damage, apply
from tests.fuzz.way_in import WayIn

MOST_SECONDS = 10.0  # of processor time
MOST_MIB = 1024
NOBODY = 65534


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    kind: str  # read, refused, or the fault
    message: str
    seconds: float  # of processor time
    mib: float  # of memory above what was in use before

    @property
    def is_fault(self) -> bool:
        """Whether the suite must be mended."""
        return self.kind not in ("read", "refused")


def outcome_of(way: WayIn, damage: Damage) -> Outcome:
    """Run one case in a folder of its own."""
    folder = sound.fresh_case()
    way.prepare(folder)
    (folder / way.writes).mkdir(exist_ok=True)
    try:
        apply(damage, folder / way.file, way.form)
    except (OverflowError, TypeError, ValueError, RuntimeError, RecursionError, IndexError, KeyError) as error:
        return Outcome("read", f"not applied: {type(error).__name__}", 0, 0)  # the writer does not make such a file
    before = looks(folder, way.writes)
    with (
        measured() as used,
        offline() as asked,
        another_user(damage.kind == "unreadable", folder / way.writes),
        silent(),
    ):
        kind, message = read(way, folder)
    if asked:
        kind, message = "network", f"asked for {asked[0]}"
    elif kind in ("read", "refused") and looks(folder, way.writes) != before:
        kind, message = "changed a file", str(set(looks(folder, way.writes).items()) ^ set(before.items()))[:300]
    elif used["seconds"] > MOST_SECONDS:
        kind = "slow"
    elif used["mib"] > MOST_MIB:
        kind = "memory"
    return Outcome(kind, message, used["seconds"], used["mib"])


def read(way: WayIn, folder: Path) -> tuple[str, str]:
    """Read, and what came of it."""
    try:
        way.read(folder)
        return "read", ""
    except InputError as error:
        message = str(error)
        steers = STEERING.search(message.replace("\n", ""))
        return ("raw control character" if steers or not message.strip() else "refused"), message
    except BaseException as error:  # noqa: B036  whatever it is, it is what this looks for
        if isinstance(error, KeyboardInterrupt):
            raise
        return "traceback", f"{type(error).__name__}: {str(error)[:300]} at {place_of(error)}"


def place_of(error: BaseException) -> str:
    """File and line of the suite's own code that an error came through last."""
    own, trace = "?", error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if re.search(r"/(library|networks)/", file) and "site-packages" not in file:
            own = f"{file.rpartition('/library/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return own


def looks(folder: Path, but: str) -> dict[str, tuple[int, int, int]]:
    """Kind, size and time of every file, but those in one folder."""
    found = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(place, name) != folder / but]
        for name in files + folders:
            facts = os.lstat(Path(place, name))
            found[str(Path(place, name))] = (facts.st_mode, facts.st_size if name in files else 0,
                                             facts.st_mtime_ns if name in files else 0)  # fmt: skip
    return found


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Processor time of the block, and the memory that it took above what was in use."""
    used: dict[str, float] = {"seconds": 0.0, "mib": 0.0}
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    started, before = time.process_time(), memory("VmRSS")
    yield used
    used |= {"seconds": time.process_time() - started, "mib": max(memory("VmHWM") - before, 0.0)}


def memory(name: str) -> float:
    """MiB, by the system's name."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
    return int(found[1]) / 1024 if found else 0.0


@contextlib.contextmanager
def offline() -> Iterator[list[str]]:
    """No connection is made; each that is asked for is noted."""
    asked: list[str] = []
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def refused(one: socket.socket, address: object) -> None:
        asked.append(str(address))
        raise OSError("no network in a test")

    def unknown(host: object, *rest: object, **more: object) -> list:
        asked.append(str(host))
        raise socket.gaierror("no network in a test")

    socket.socket.connect = refused  # type: ignore[method-assign, assignment]
    socket.getaddrinfo = unknown  # type: ignore[assignment]
    try:
        yield asked
    finally:
        socket.socket.connect, socket.getaddrinfo = connect, lookup  # type: ignore[method-assign]


@contextlib.contextmanager
def another_user(wanted: bool, own: Path) -> Iterator[None]:
    """The rights of a user who owns one folder, where this process has all rights and can take them again."""
    if not wanted or os.getuid() != 0:
        yield
        return
    for path in (own, *own.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """What is printed and logged is left out."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
