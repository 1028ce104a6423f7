"""Other libraries' readers, closed in: whatever they raise about a file becomes one InputError, without the network."""

from collections.abc import Iterator
from contextlib import contextmanager

from library.errors import InputError, shortest

PANIC = "PanicException"  # of readers in Rust; no Exception


@contextmanager
def foreign_reader(what: str, way_out: str = "") -> Iterator[None]:
    """Turn every error of another library into an InputError about the file that it reads.

    Args:
        what: the file as messages call it.
        way_out: what to do, e.g. "fetch it again".

    Raises:
        InputError: with the first line of the library's own words.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:  # a stranger's parser on a stranger's file: every error is about the file
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        ending = f"; {way_out}" if way_out else ""
        raise InputError(f"{what} cannot be read ({shortest(error)}){ending}") from error
