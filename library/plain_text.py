"""Text on its way out: what a stranger's file says must not steer the terminal, a log, a page or a shell."""

import html
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO

# Control characters (C0, DEL, C1), other line ends, marks that turn the direction of writing, lone surrogates.
TURNING = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
STEERING = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{TURNING}\ud800-\udfff]")
SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
CURSOR_UP = re.compile(r"(\x1b\[A)*")  # what progress bars write by itself


def _visible(match: re.Match[str]) -> str:
    letter = match[0]
    return SHORT.get(letter) or (f"\\x{ord(letter):02x}" if ord(letter) < 0x100 else f"\\u{ord(letter):04x}")


def plain(text: object) -> str:
    """One line that steers nothing: every character that could is shown as an escape like ``\\x1b``."""
    return STEERING.sub(_visible, str(text))


def plain_lines(text: object) -> str:
    """The same for a text of several lines of one's own: its line breaks and tabs stay."""
    return STEERING.sub(lambda match: match[0] if match[0] in "\n\t" else _visible(match), str(text))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells steer nothing and keep their bars."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(plain(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def for_html(text: object) -> str:
    """The text for a page, inside an element or a quoted attribute."""
    return html.escape(plain(text))


def for_figure(text: object) -> str:
    """The text for a label of matplotlib, which would read formulas between dollar signs."""
    return plain(text).replace("$", r"\$")


def for_shell(words: Iterable[object]) -> str:
    """A command that can be copied into a shell as it stands, whatever its words hold."""
    return " ".join(_shell_word(str(word)) for word in words)


def _shell_word(word: str) -> str:
    """Quoted where that is needed; bash reads ``$'\\x1b'`` back as the byte that cannot be shown."""
    if not STEERING.search(word):
        return shlex.quote(word)
    shown = []
    for letter in word:
        if STEERING.match(letter):
            shown += [f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape")]
        else:
            shown.append(f"\\{letter}" if letter in "\\'" else letter)
    return f"$'{''.join(shown)}'"


class PlainFormatter(logging.Formatter):
    """A log message as one plain line."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return plain(super().format(record))


class PlainStream:
    """A terminal's stream that lets nothing steer it and ends no run: the net under everything that is printed.

    Line breaks and tabs pass, and on a stream for progress bars the return of the carriage. Where the terminal is gone,
    the pipe closed or the disk full, what is printed from then on is lost, and the work goes on.
    """

    def __init__(
        self, stream: TextIO, passing: str = "\n\t", on_loss: Callable[[OSError], None] = lambda error: None
    ) -> None:
        """
        Args:
            on_loss: called once, with the error of the first write that failed.
        """
        self._stream = stream
        self._passing = passing
        self._on_loss = on_loss
        self._is_lost = False

    def write(self, text: str) -> int:
        """Write the text with every other control character shown as an escape."""
        if "\r" not in self._passing or not CURSOR_UP.fullmatch(text):
            text = STEERING.sub(lambda match: match[0] if match[0] in self._passing else _visible(match), text)
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what is still in memory."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        """From now on everything goes nowhere, the rest in the stream's memory included."""
        with suppress(OSError, ValueError):  # a stream without a file has nothing to lead away
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if not self._is_lost:
            self._is_lost = True
            self._on_loss(error)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of them."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def with_plain_streams(main: Callable[[], int]) -> int:
    """Run a door with both streams of the terminal under the net; a traceback falls into it too."""
    before = sys.stdout, sys.stderr

    def tell(error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):  # whoever reads through head or less knows
            sys.stderr.write(f"standard output is lost ({error.strerror}); the work goes on without it\n")

    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # for streams that were closed before the start
        sys.stdout = PlainStream(before[0] or nowhere, on_loss=tell)  # type: ignore[assignment]
        sys.stderr = PlainStream(before[1] or nowhere, "\n\t\r")  # type: ignore[assignment]
        try:
            return main()
        except Exception:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before
