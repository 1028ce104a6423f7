"""Figures of several LoRAs side by side: over exposures, and privacy against fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from library.audit.figures import GRID, LINES, QUIET, canvas, svg
from library.plain_text import for_figure


@dataclass(frozen=True)
class Stop:
    """One LoRA on the way of its training."""

    exposures: float  # per member picture
    auc: float
    low: float
    high: float
    member_loss: float  # of the base's
    non_member_loss: float


def course_figure(courses: Mapping[str, Sequence[Stop]]) -> str:
    """Above: AUC of the main attack with its interval against exposures. Below: what was learnt meanwhile."""
    figure = Figure(figsize=(4.4, 5.4), layout="constrained")
    FigureCanvasSVG(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes in (above, below):
        axes.grid(color=GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    for (name, stops), colour in zip(courses.items(), LINES * 4, strict=False):
        stops = sorted(stops, key=lambda stop: stop.exposures)
        seen = [stop.exposures for stop in stops]
        above.plot(seen, [stop.auc for stop in stops], "o-", color=colour, markersize=4, label=for_figure(name))
        above.fill_between(seen, [stop.low for stop in stops], [stop.high for stop in stops], color=colour, alpha=0.12,
                           linewidth=0)  # fmt: skip
        if len(stops) == 1:
            above.plot(seen * 2, [stops[0].low, stops[0].high], color=colour, linewidth=1.2)
        below.plot(seen, [100 * stop.member_loss for stop in stops], "o-", color=colour, markersize=3)
        below.plot(seen, [100 * stop.non_member_loss for stop in stops], "o:", color=colour, markersize=3)
    above.axhline(0.5, color=QUIET, linestyle="--", linewidth=1)
    above.set(ylabel="AUC of the main attack", ylim=(0, 1.02))
    above.legend(fontsize=7, frameon=False, loc="lower right")
    below.axhline(100, color=QUIET, linestyle="--", linewidth=1)
    below.set(xlabel="exposures per member picture", ylabel="loss, % of the base's")
    below.plot([], [], "-", color=QUIET, label="members")
    below.plot([], [], ":", color=QUIET, label="non-members")
    below.legend(fontsize=7, frameon=False)
    return svg(figure)


def tradeoff_figure(points: Mapping[str, tuple[float, float, float, float]]) -> str:
    """Privacy against fit: relative member loss (x) and flipped AUC with interval (y) of every run."""
    figure, axes = canvas()
    for (name, (fit, area, low, high)), colour in zip(points.items(), LINES * 4, strict=False):
        axes.plot([fit] * 2, [low, high], color=colour, linewidth=1.5)
        axes.plot(fit, area, "o", color=colour, label=for_figure(name))
    axes.axvline(1, color=QUIET, linestyle=":", linewidth=1)
    axes.axhline(0.5, color=QUIET, linestyle="--", linewidth=1)
    axes.set(
        xlabel="loss on members, of the base's (lower = learnt more)", ylabel="AUC of the best attack", ylim=(0.4, 1.02)
    )
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside lower center", frameon=False, ncols=2)
    return svg(figure)
