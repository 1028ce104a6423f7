"""Ctrl-C in a door whose work is kept as it goes: it ends within seconds, with one line and no traceback."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

from library.plain_text import plain

GRACE = 2.0  # seconds in which what runs may end by itself
STATUS = 130  # of a program that Ctrl-C ended
Main = Callable[[list[str]], int]
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
