"""Errors for the person who runs the suite, and a collector that reports all faults at once."""

import difflib
import reprlib
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from library.plain_text import plain

MOST_OF_A_KIND = 10
LONGEST = 4000  # letters of a message
SHORT_REPR = reprlib.Repr()
SHORT_REPR.maxlevel, SHORT_REPR.maxstring, SHORT_REPR.maxother = 3, 120, 120
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class InputError(Exception):
    """Something the person gave cannot be used; each message says what, shows the value and gives the way out.

    A message is one plain line, whatever the values in it hold.
    """

    def __init__(self, *messages: object) -> None:
        self.messages = [one_line(message) for message in messages]
        super().__init__("\n".join(self.messages))


class RunStopped(Exception):
    """A run ended before its end; the message says why and what is kept. The exit status is 130, as after Ctrl-C."""


class Faults:
    """Collects messages, so that one run reports every fault instead of the first."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.about: set[str] = set()  # options whose value cannot be used
        self._counts: dict[str, int] = {}

    def add(self, message: str, kind: str = "", about: str = "") -> None:
        """Remember one fault; the same text is reported once.

        Args:
            about: the option whose value cannot be used, so that nothing that depends on it is looked at.
            kind: what a folder of thousands can be full of, e.g. "pictures without a mask"; of one kind the first few
                are shown and the rest is counted.
        """
        message = one_line(message)
        if about:
            self.about.add(about)
        if message in self.messages:
            return
        if kind:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            beyond = self._counts[kind] - MOST_OF_A_KIND
            if beyond > 1:
                self.messages.remove(f"and {beyond - 1} more {kind}")
            if beyond > 0:
                message = f"and {beyond} more {kind}"
        self.messages.append(message)

    def attempt(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result | None:
        """What the function returns; None where it raises an InputError, whose messages are remembered."""
        try:
            return function(*args, **kwargs)
        except InputError as error:
            self.take(error)
            return None

    def take(self, error: InputError, kind: str = "") -> None:
        """Remember the messages of an error that was caught.

        Args:
            kind: see ``add``.
        """
        for message in error.messages:
            self.add(message, kind)

    def raise_if_any(self) -> None:
        """Raises: InputError with every message, one a line."""
        if self.messages:
            raise InputError(*self.messages)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like a misspelt one; empty when nothing is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), "")


def one_line(message: object) -> str:
    """A message as one plain line of bounded length; of a longer one the middle is left out."""
    text = str(message)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 500]} ... {text[-400:]}"
    return plain(text)


def shown(value: object) -> str:
    """A value for a message: its ``repr``, shortened where it is long or deeply nested."""
    return SHORT_REPR.repr(value)


def shortest(error: BaseException) -> str:
    """The first line of an error's own text, else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint like ``; did you mean 'param_alpha'?`` or an empty text when nothing is near."""
    near = nearest(name, known)
    return f"; did you mean '{plain(near)}'?" if near else ""


def shortened(names: list[str], most: int = 10) -> str:
    """The first names of a list in quotes, and how many more there are."""
    shown = ", ".join(f"'{plain(name)}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
