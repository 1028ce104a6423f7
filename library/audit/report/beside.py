"""What an audit measured of a LoRA beside membership: a line, a section of the report, and a page of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from library.audit.report import html
from library.tensor_files import private_folder, write_whole


@dataclass(frozen=True)
class Beside:
    """One further measurement of one LoRA."""

    word: str  # of the option attacks; names the page
    title: str  # of the section, and of the page
    headline: str  # one line for the terminal
    parts: Sequence[str]  # the section in HTML, without its heading

    def section(self) -> list[str]:
        """The section for the report."""
        return [html.heading(self.title), *self.parts]


def write_page(found: Beside, label: str, folder: Path) -> Path:
    """Write the measurement as a page of its own (0600 in a 0700 folder), and return it.

    Args:
        label: the folder's name, for the owner's eyes.
    """
    first = [f"<h1>{html.escape(found.title)}: {html.escape(label)}</h1>", html.paragraph(found.headline)]
    page = private_folder(folder) / f"{found.word}.html"
    write_whole(page, html.page(f"{found.title}: {label}", first, list(found.section())), private=True)
    return page
