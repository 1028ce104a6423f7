"""The measurements beside membership, by the words of the option ``attacks``."""

from collections.abc import Callable, Mapping

from library.assembly.audit_lora import Subject
from library.assembly.beside import reconstruction, robustness
from library.audit.report.beside import Beside, write_page
from library.plain_text import plain

MEASURES: Mapping[str, Callable[[Subject], Beside]] = {
    "robustness": robustness.measured,
    "reconstruction": reconstruction.measured,
}


def measured(subject: Subject, say: Callable[[str], None]) -> list[Beside]:
    """Measure what was asked for beside membership; every measurement gets a page of its own.

    Args:
        say: prints a line.
    """
    found = []
    for word in dict.fromkeys(subject.config.attacks):
        if word in MEASURES:
            one = MEASURES[word](subject)
            found.append(one)
            say(plain(one.headline))
            say(plain(f"  {word} of {subject.run.label}: {write_page(one, subject.run.label, subject.run.audit)}"))
    return found
