"""Lines about what is taken and changes nothing; keys with one reason share a line."""

import re
from collections.abc import Callable, Sequence

from library.options.sources import Given

ORIGIN = re.compile(r"(?P<place>.*?)(?: line (?P<line>\d+))?(?:, \[[^\]]*\])?")


class Notices:
    """Collects the keys that change nothing by their reason, and passes on every other line at once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self._idle: dict[str, list[tuple[str, str]]] = {}

    def idle(self, name: str, entry: Given, reason: str, *, with_value: bool = False) -> None:
        """Remember that a key changes nothing."""
        shown = f"{name} = {entry.value!r}" if with_value else f"'{name}'"
        self._idle.setdefault(reason, []).append((shown, entry.origin))

    def finish(self) -> None:
        """Tell of every reason once."""
        for reason, keys in self._idle.items():
            if len(keys) == 1:
                self.tell(f"{keys[0][1]}: {keys[0][0]} changes nothing here: {reason}")
            else:
                self.tell(f"{_together(keys)} change nothing here: {reason}")
        self._idle = {}


def _together(keys: Sequence[tuple[str, str]]) -> str:
    """``a.toml: 'x' (line 3), 'y' (line 7)``."""
    places: dict[str, list[str]] = {}
    for shown, origin in keys:
        match = ORIGIN.fullmatch(origin)
        assert match is not None
        line = f" (line {match['line']})" if match["line"] else ""
        places.setdefault(match["place"], []).append(f"{shown}{line}")
    return "; ".join(f"{place}: {', '.join(names)}" for place, names in places.items())
