"""From a matplotlib figure to SVG inside a page: real text, colours of the page's theme, nothing that a strict "
"policy refuses."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from library.plain_text import for_html

WIDTH = 4.6  # inches: 331 units, as wide as a figure is on a phone of 390 pixels, so that a unit is a pixel there
TEXT = 11  # pixels there; no label is smaller
MEMBER, NON_MEMBER, QUIET, GRID, INK = "#c2410c", "#1d4ed8", "#64748b", "#e2e8f0", "#0f172a"
LINES = (MEMBER, NON_MEMBER, "#047857", "#7c3aed", INK)
IN_THE_DARK = {  # what each colour becomes on a dark page
    MEMBER: "#fb923c", NON_MEMBER: "#60a5fa", QUIET: "#94a3b8", GRID: "#334155", INK: "#e2e8f0",
    "#047857": "#34d399", "#7c3aed": "#c4b5fd", "#000000": "#e2e8f0", "#ffffff": "#0f172a",
}  # fmt: skip
DROPPED = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
SETTINGS: dict[Any, Any] = {"svg.fonttype": "none", "font.size": TEXT, "axes.labelsize": TEXT, "xtick.labelsize": TEXT,
            "ytick.labelsize": TEXT, "legend.fontsize": TEXT, "axes.edgecolor": INK}  # fmt: skip


def canvas(height: float, shares: Sequence[float] = (1.0,)) -> tuple[Figure, list[Axes]]:
    """A figure as wide as a phone with quiet axes, one below the other on one horizontal axis.

    Args:
        height: inches.
        shares: heights of the axes among each other.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        every = list(figure.subplots(len(shares), 1, sharex=True, squeeze=False, height_ratios=shares)[:, 0])
        for axes in every:
            axes.set_facecolor("none")
            axes.grid(color=GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
    return figure, every


def inline(figure: Figure, name: str, seen: str) -> str:
    """The figure as an ``<svg>`` element; the same figure gives the same text.

    Args:
        name: seeds the identifiers, which must differ between the figures of a page.
        seen: what a person sees in it, for those who do not see it.
    """
    stream = io.StringIO()
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = DROPPED.sub("", stream.getvalue())
    text = re.sub(r'<(g|path)( id="[a-zA-Z]+[\d._]*_\d+")', r"<\1", text)  # names of parts, alike in every figure
    text = re.sub(r' style="([^"]*)"', lambda match: _attributes(match[1]), text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    opening = f'<svg role="img" aria-label="{for_html(seen)}"'
    return re.sub(r"\s*\n\s*", "\n", text.replace("<svg", opening, 1)).strip()


def _attributes(style: str) -> str:
    """A style as attributes: a page's policy refuses styles that stand in elements."""
    pairs = (one.partition(":") for one in style.split(";") if one.strip())
    kept = [(key.strip(), value.strip()) for key, _, value in pairs]
    return "".join(f' {key}="{value}"' for key, value in kept if key != "font-family")


def dark_rules() -> str:
    """The style sheet's lines that recolour figures on a dark page."""
    return "".join(f'svg [fill="{light}"]{{fill:{dark}}}svg [stroke="{light}"]{{stroke:{dark}}}'
                   for light, dark in IN_THE_DARK.items())  # fmt: skip
