"""What ``audit.py`` measures of a LoRA beside membership, by the words of the option ``attacks``."""

from collections.abc import Callable, Mapping

from library.assembly import audit_robustness
from library.assembly.audit_lora import Subject
from library.audit.report.beside import Beside, write_page
from library.plain_text import plain

MEASURES: Mapping[str, Callable[[Subject], Beside]] = {"robustness": audit_robustness.measured}


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
            say(plain(f"{one.headline}\n  {word}: {write_page(one, subject.run.label, subject.run.audit)}"))
    return found
