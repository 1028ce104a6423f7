"""How a door ends: its exit status after an error or a signal, and Ctrl-C where the work is kept as it goes."""

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from library.errors import InputError, RunStopped
from library.plain_text import plain, plain_lines, with_plain_streams

GRACE = 2.0  # seconds in which what runs may end by itself
STATUS = 130  # of a program that Ctrl-C ended
Main = Callable[[list[str]], int]
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The machine's reasons for which a file cannot be written; any other OSError is a fault of the suite
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def run(main: Callable[[list[str]], int]) -> int:
    """Run a door from the command line.

    Returns:
        What it returns; 2 after an input error, 130 after Ctrl-C, a signal, or a run that could not go on.
    """

    def door() -> int:
        try:
            return main(sys.argv[1:])
        except InputError as error:
            print(plain_lines(error), file=sys.stderr)
            return 2
        except OSError as error:
            if error.errno not in FULL:
                raise
            place = f": '{plain(error.filename)}'" if error.filename else ""
            print(f"stopped: {error.strerror}{place}", file=sys.stderr)
            return 130
        except RunStopped as error:
            print(plain_lines(error), file=sys.stderr)
            return 130
        except KeyboardInterrupt:
            print("stopped, as asked", file=sys.stderr)
            return 130

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup and a door's own handler stay
            signal.signal(number, _interrupt)
    return with_plain_streams(door)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def interruptible(
    main: Callable[[list[str]], int], way_on: Callable[[Sequence[str]], str]
) -> Callable[[list[str]], int]:
    """A door's main that Ctrl-C ends: at once where Python runs, and after GRACE where compiled code or threads run.

    Args:
        way_on: the line that says how to go on, from the command line's words.
    """

    def run(arguments: list[str]) -> int:
        leave = Leaving(way_on(arguments))
        hears, tells = socket.socketpair()
        tells.setblocking(False)
        before = signal.set_wakeup_fd(tells.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=leave.after_signal, args=(hears,), daemon=True).start()
        try:
            return main(arguments)
        except KeyboardInterrupt:
            leave.now()
            raise
        finally:
            signal.set_wakeup_fd(before)
            tells.close()  # ends the thread that hears

    return run


class Leaving:
    """Ends the process, once, without waiting for its threads; files are written whole, so none is left broken."""

    def __init__(self, line: str) -> None:
        self.line = line
        self._lock = threading.Lock()

    def after_signal(self, hears: socket.socket) -> None:
        """Wait for a signal that ends the process, and end it after GRACE."""
        while received := hears.recv(1):
            if received[0] in ENDING:
                time.sleep(GRACE)
                self.now()

    def now(self) -> None:
        """Print the line and end."""
        if self._lock.acquire(blocking=False):
            sys.stdout.flush()
            sys.stderr.write(f"\n{plain(self.line)}\n")
            sys.stderr.flush()
            os._exit(STATUS)
