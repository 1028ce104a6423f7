"""The report's figures as SVG elements; each can be read alone, at the width of a phone, and says what is seen "
"in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy import stats

from library.audit.attacks.attack_result import sides_of, test_groups
from library.audit.report.evaluation import Evaluation
from library.audit.report.svg import LINES, MEMBER, NON_MEMBER, QUIET, TEXT, canvas, inline
from library.audit.statistics.gain import Share
from library.audit.statistics.intervals import group_draws
from library.audit.statistics.metrics import roc_points
from library.audit.targets.candidate_table import Candidates, FloatArray
from library.plain_text import for_figure

PERCENT = FuncFormatter(lambda value, place: f"{100 * value:g} %")
STRENGTHS = np.linspace(-1, 1, 9)  # edges of the colours of a correlation


def legend_below(figure: Figure, axes: Axes, columns: int = 1) -> None:
    """The legend under the axes, where it hides nothing."""
    handles = axes.get_legend_handles_labels()
    figure.legend(*handles, fontsize=TEXT, loc="outside lower center", frameon=False, ncols=columns)


def roc_figure(rows: Mapping[str, FloatArray], candidates: Candidates, logarithmic: bool) -> str:
    """ROC of a few attacks with the first one's 95 % band; the log-log one starts where the sample resolves."""
    figure, (axes,) = canvas(5.0)
    smallest = 1 / (len(candidates.indices("non-members-test")) + 1)
    grid = np.geomspace(smallest, 1, 200) if logarithmic else np.linspace(0, 1, 200)
    seen: list[str] = []
    for (name, scores), colour in zip(rows.items(), LINES, strict=False):
        members, non_members = sides_of(scores, candidates, "test")
        false_rate, true_rate = roc_points(members, non_members)
        if not seen:
            low, high = roc_band(members, non_members, test_groups(candidates), grid)
            axes.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
        found = true_rate[np.searchsorted(false_rate, 0.05, side="right") - 1]
        seen.append(f"{name} finds {100 * found:.0f} %")
        axes.step(false_rate, true_rate, where="post", color=colour, linewidth=1.6, label=name)
    non_members_tested = len(candidates.indices("non-members-test"))
    guessed = (np.floor(grid * non_members_tested + 1e-9) + 1) / (non_members_tested + 1)  # mean TPR of a coin
    axes.plot(grid, np.minimum(guessed, 1), color=QUIET, linestyle="--", linewidth=1, label="guessing")
    if logarithmic:
        axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1.05))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PERCENT)
        axis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="non-members accused (FPR)", ylabel="members found (TPR)")
    legend_below(figure, axes)
    scale = "logarithmic" if logarithmic else "plain"
    text = f"ROC curves on {scale} axes. Where 5 % of the non-members are accused, {', '.join(seen)} of the members."
    return inline(figure, f"roc {scale}", text)


def roc_band(
    members: FloatArray, non_members: FloatArray, groups: tuple[list[str], list[str]], grid: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Pointwise 95 % band of the ROC over bootstrap samples of groups."""
    generator = np.random.default_rng(0)  # not a stream of library.seeding: the same data keep the same figure
    weights = [group_draws(side, 200, generator).astype(int) for side in groups]
    curves = []
    for inside, outside in zip(*weights, strict=True):
        false_rate, true_rate = roc_points(np.repeat(members, inside), np.repeat(non_members, outside))
        curves.append(true_rate[np.searchsorted(false_rate, grid, side="right") - 1])
    low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    return low, high


def named_rows(names: Sequence[str], start: float = 0.0) -> tuple[Figure, Axes]:
    """Axes with a row for each name; the name stands above its row, so that the row is as wide as the figure.

    Args:
        start: where the names begin on the horizontal axis.
    """
    figure, (axes,) = canvas(0.8 + 0.42 * len(names))
    for place, name in enumerate(names):
        axes.text(start, place - 0.3, for_figure(name), fontsize=TEXT, verticalalignment="center")
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.2, -0.8)
    axes.spines["left"].set_visible(False)
    return figure, axes


def forest_figure(evaluation: Evaluation, titles: Mapping[str, str]) -> str:
    """AUC and 95 % interval of every attack, LoRA on (filled) and off (open), controls at the bottom."""
    blind = [one for name, one in evaluation.controls.items() if not name.endswith("LoRA off")]
    found = list(evaluation.findings.values())
    figure, axes = named_rows([*(titles[one.name] for one in found), *(f"control: {one.name}" for one in blind)])
    for place, one in enumerate(found):
        axes.plot(one.auc_interval, [place + 0.15] * 2, color=MEMBER, linewidth=2)
        axes.plot(one.auc, place + 0.15, "o", color=MEMBER, markersize=5)
        if one.auc_off is not None:
            axes.plot(one.auc_off, place + 0.15, "o", color=QUIET, markerfacecolor="none", markersize=5)
        other = evaluation.shadow_findings.get(one.name)
        if other is not None:
            axes.plot(other.auc_interval, [place + 0.33] * 2, color=NON_MEMBER, linewidth=1.2)
            axes.plot(other.auc, place + 0.33, "D", color=NON_MEMBER, markersize=3.5)
    for place, control in enumerate(blind, start=len(found)):
        axes.plot(control.interval, [place + 0.15] * 2, color=QUIET, linewidth=2)
        axes.plot(control.auc, place + 0.15, "s", color=QUIET, markersize=4)
    axes.axvline(0.5, color=QUIET, linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1.02), xlabel="AUC (filled: LoRA on, open: off)")
    ordered = sorted(found, key=lambda one: -one.auc_flipped)
    best = ", ".join(f"{titles[one.name]} {one.auc:.2f}" for one in ordered[:3])
    rest = f"; the weakest of {len(found)}: {titles[ordered[-1].name]} {ordered[-1].auc:.2f}"
    return inline(figure, "forest", f"AUC of every attack with its interval. The strongest: {best}{rest}.")


def timestep_figure(profiles: Mapping[str, Sequence[tuple[int, float, float]]]) -> str:
    """AUC against the timestep, LoRA on (solid) and off (dotted)."""
    figure, (axes,) = canvas(4.2)
    peaks = []
    for (name, rows), colour in zip(profiles.items(), LINES, strict=False):
        steps = [row[0] for row in rows]
        axes.plot(steps, [row[1] for row in rows], "o-", color=colour, markersize=3, label=f"{name}, LoRA on")
        axes.plot(steps, [row[2] for row in rows], "o:", color=colour, markersize=3, label=f"{name}, off")
        peak = max(rows, key=lambda row: abs(row[1] - 0.5))
        peaks.append(f"{name} at {peak[0]} (AUC {peak[1]:.2f})")
    axes.axhline(0.5, color=QUIET, linestyle="--", linewidth=1)
    axes.set(xlabel="timestep of the noise", ylabel="AUC", ylim=(0, 1.02))
    legend_below(figure, axes, 2)
    return inline(figure, "timestep", f"AUC against the timestep. Farthest from 0.5: {', '.join(peaks)}.")


def histogram_figure(on: FloatArray, off: FloatArray, candidates: Candidates) -> str:
    """Scores of members and non-members of the test sides in shares of each side, LoRA on above, off below."""
    figure, (axes,) = canvas(3.9)
    on, off = (scaled(rows, candidates) for rows in (on, off))
    every = np.concatenate([np.concatenate(sides_of(rows, candidates, "test")) for rows in (on, off)])
    low, high = np.quantile(every, [0.005, 0.995])
    bins = np.linspace(float(low) - 1e-9, float(high) + 1e-9, 25)
    for rows, sign in ((on, 1), (off, -1)):
        for side, colour, name in zip(
            sides_of(rows, candidates, "test"), (MEMBER, NON_MEMBER), ("members", "non-members"), strict=True
        ):
            shares = np.histogram(np.clip(side, bins[0], bins[-1]), bins)[0] / len(side)
            label = name if sign == 1 else None
            axes.stairs(sign * shares, bins, fill=True, color=colour, alpha=0.45, label=label)
    axes.axhline(0, color=QUIET, linewidth=1)
    axes.set(xlabel="score, in spreads of non-members", ylabel="share of the side")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{100 * abs(value):g} %"))
    for height, text in ((0.97, "LoRA on"), (0.03, "LoRA off")):
        where = "top" if height > 0.5 else "bottom"
        axes.text(0.01, height, text, transform=axes.transAxes, fontsize=TEXT, verticalalignment=where)
    legend_below(figure, axes, 2)
    middles = [float(np.median(sides_of(rows, candidates, "test")[0])) for rows in (on, off)]
    text = (
        f"Histograms of the main attack's scores. The median member lies {middles[0]:+.1f} spreads from the mean "
        f"non-member with the LoRA on and {middles[1]:+.1f} with it off."
    )
    return inline(figure, "histogram", text)


def scaled(rows: FloatArray, candidates: Candidates) -> FloatArray:
    """In standard deviations of the test non-members, from their mean."""
    non_members = sides_of(rows, candidates, "test")[1]
    return (rows - non_members.mean()) / max(float(non_members.std()), 1e-12)


def transfer_figure(evaluation: Evaluation, titles: Mapping[str, str]) -> str:
    """Realised false-positive rate of the thresholds that were fixed on the aux sides, and the target."""
    kept = [(one.name, one.transfer) for one in evaluation.findings.values() if one.transfer is not None]
    figure, axes = named_rows([titles[name] for name, _ in kept])
    for place, (_, one) in enumerate(kept):
        axes.plot(one.fpr_interval, [place + 0.15] * 2, color=NON_MEMBER, linewidth=2)
        axes.plot(one.fpr, place + 0.15, "o", color=NON_MEMBER, markersize=4)
    axes.set(xlabel="non-members accused", xlim=(0, None))
    axes.xaxis.set_major_formatter(PERCENT)
    seen = "No attack has a threshold from the aux sides."
    if kept:
        target, rates = kept[0][1].target_fpr, [one.fpr for _, one in kept]
        axes.axvline(target, color=QUIET, linestyle="--", linewidth=1)
        seen = (
            f"Non-members accused by each attack at its threshold: from {100 * min(rates):.0f} to "
            f"{100 * max(rates):.0f} %, where {100 * target:g} % were meant."
        )
    return inline(figure, "transfer", seen)


def epsilon_figure(evaluation: Evaluation, claimed: float | None) -> str:
    """Lower bound on epsilon for each number of guesses, with what all guesses right would give and what is claimed."""
    figure, (axes,) = canvas(3.4)
    counts = [bound.guesses for bound in evaluation.epsilon]
    axes.plot(counts, [bound.epsilon for bound in evaluation.epsilon], "o-", color=MEMBER, label="lower bound")
    axes.plot(counts, [bound.ceiling for bound in evaluation.epsilon], "s--", color=QUIET, label="all guesses right")
    if claimed is not None:
        axes.axhline(claimed, color=NON_MEMBER, linewidth=1.2, label=f"claimed by the LoRA: {claimed:g}")
    axes.set(xlabel="guesses", ylabel="epsilon", ylim=(-0.1, None))
    legend_below(figure, axes, 2)
    largest = max((bound.epsilon for bound in evaluation.epsilon), default=0.0)
    text = f"Lower bounds on epsilon by number of guesses; the largest is {largest:.2f}"
    return inline(figure, "epsilon", f"{text}." if claimed is None else f"{text}, and the LoRA claims {claimed:g}.")


def group_figure(bars: Sequence[tuple[float, int]], highest: float) -> str:
    """Groups of member pictures by mean score, by number (names may name persons); a line for the best non-member.

    Args:
        bars: mean score and number of pictures, worst first.
    """
    figure, (axes,) = canvas(1.2 + 0.24 * len(bars))
    axes.barh(range(len(bars)), [score for score, _ in bars], color=MEMBER, alpha=0.75)
    axes.axvline(highest, color=NON_MEMBER, linewidth=1.2, label="highest non-member")
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.set(ylim=(len(bars) - 0.4, -0.6), xlabel="score, in spreads of non-members", ylabel="group (pictures)")
    axes.set_yticks(range(len(bars)), [f"{number} ({count})" for number, (_, count) in enumerate(bars, 1)])
    legend_below(figure, axes)
    above = sum(score > highest for score, _ in bars)
    text = f"Bars for {len(bars)} groups of member pictures; {above} of them score above every non-member."
    return inline(figure, "groups", text)


def group_bars(
    scores: FloatArray, candidates: Candidates, most: int = 16
) -> tuple[dict[str, tuple[float, int]], float]:
    """The most exposed groups of members (mean score in spreads of the non-members, pictures), worst first.

    Returns:
        The groups, and the highest non-member on the same scale.
    """
    level = scaled(scores, candidates)
    groups: dict[str, list[float]] = {}
    for row in np.flatnonzero(candidates.is_member).tolist():
        groups.setdefault(candidates.groups[row], []).append(float(level[row]))
    means = {name: (float(np.mean(rows)), len(rows)) for name, rows in groups.items()}
    worst = sorted(means, key=lambda name: (-means[name][0], name))[:most]
    return {name: means[name] for name in worst}, float(level[~candidates.is_member].max())


def agreement_figure(scores: Mapping[str, FloatArray], candidates: Candidates, titles: Mapping[str, str]) -> str:
    """Rank correlation (Spearman) of every pair of attacks over the test members: do they find the same pictures?

    The attacks stand there by number, in the order of ``scores``.
    """
    rows = candidates.indices("members-test")
    ranks = np.stack([stats.rankdata(values[rows]) for values in scores.values()])
    ranks -= ranks.mean(1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(ranks, axis=1), 1e-12)
    together = (ranks @ ranks.T) / np.outer(lengths, lengths)
    count = len(scores)
    figure, (axes,) = canvas(5.4)
    axes.grid(visible=False)
    edges = np.arange(count + 1) + 0.5
    shown = axes.pcolormesh(edges, edges, together, cmap="RdBu_r", norm=BoundaryNorm(STRENGTHS, 256))
    places = range(1, count + 1)
    axes.set_yticks(places, [str(place) for place in places])
    axes.set_xticks(places, [str(place) for place in places], rotation=90)
    axes.invert_yaxis()
    scale = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9, aspect=30, ticks=STRENGTHS[::2])
    scale.set_label("rank correlation", fontsize=TEXT)
    scale.ax.tick_params(labelsize=TEXT)
    names, apart = [titles[name] for name in scores], together + 2 * np.eye(count)
    first, second = np.unravel_index(int(np.argmin(apart)), apart.shape)
    text = f"Rank correlations of {count} attacks."
    if count > 1:
        text += f" The least alike are {names[first]} and {names[second]} ({together[first, second]:+.2f})."
    return inline(figure, "agreement", text)


@dataclass(frozen=True)
class Stop:
    """One saved LoRA of a training."""

    exposures: float  # per member picture, or the place among the saved files where those are unknown
    auc: float
    low: float
    high: float
    learnt: Share  # held-out gain and its interval
    member_gain: float


def exposure_figure(trainings: Mapping[str, Sequence[Stop]], known: bool) -> str:
    """Above: AUC of the main attack with its interval against exposures. Below: what the LoRA learnt.

    Args:
        known: whether the files state their exposures; else stops stand in the order of their files.
    """
    figure, (above, below) = canvas(5.6, (3, 2))
    seen = []
    for (name, stops), colour in zip(trainings.items(), LINES * 4, strict=False):
        stops = sorted(stops, key=lambda stop: stop.exposures)
        places = [stop.exposures for stop in stops]
        label = for_figure(name) if len(trainings) > 1 else "AUC with 95 % interval"
        above.plot(places, [stop.auc for stop in stops], "o-", color=colour, markersize=4, label=label)
        for place, stop in zip(places, stops, strict=True):
            above.plot([place] * 2, [stop.low, stop.high], color=colour, linewidth=1.2, alpha=0.6)
            below.plot([place] * 2, [100 * end for end in stop.learnt[1:]], color=colour, linewidth=1.2, alpha=0.6)
        below.plot(places, [100 * stop.learnt[0] for stop in stops], "o-", color=colour, markersize=4)
        below.plot(places, [100 * stop.member_gain for stop in stops], "o:", color=colour, markersize=3)
        first, last = stops[0], stops[-1]
        course = f"from {first.auc:.2f} at {first.exposures:g} to {last.auc:.2f} at {last.exposures:g}"
        seen.append(f"AUC {course}; learnt from {100 * first.learnt[0]:.0f} to {100 * last.learnt[0]:.0f} %")
    above.axhline(0.5, color=QUIET, linestyle="--", linewidth=1, label="guessing")
    above.set(ylabel="AUC of the main attack", ylim=(0, 1.02))
    below.axhline(0, color=QUIET, linestyle="--", linewidth=1)
    axis = "exposures per member picture" if known else "saved file, first to last"
    below.set(xlabel=axis, ylabel="gain, %")
    below.plot([], [], "-", color=QUIET, label="learnt (held out)")
    below.plot([], [], ":", color=QUIET, label="gain on members")
    handles = [pair for axes in (above, below) for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    figure.legend(*zip(*handles, strict=True), fontsize=TEXT, loc="outside lower center", frameon=False, ncols=2)
    return inline(figure, "exposures", f"Against {axis}: {'. '.join(seen)}.")


def tradeoff_figure(points: Mapping[str, tuple[Share, Share]]) -> str:
    """Privacy against utility: held-out gain (x) and flipped AUC (y) of every LoRA, with their intervals."""
    figure, (axes,) = canvas(4.2 + 0.1 * len(points))
    for (name, ((gain, *reach), (area, *sure))), colour in zip(points.items(), LINES * 4, strict=False):
        axes.plot([gain] * 2, sure, color=colour, linewidth=1.5)
        axes.plot(reach, [area] * 2, color=colour, linewidth=1.5)
        axes.plot(gain, area, "o", color=colour, label=for_figure(name))
    axes.axhline(0.5, color=QUIET, linestyle="--", linewidth=1)
    axes.set(
        xlabel="learnt (held-out gain)\n(right = more useful)",
        ylabel="AUC of the strongest attack",
        ylim=(0.4, 1.02),
    )
    axes.xaxis.set_major_formatter(PERCENT)
    legend_below(figure, axes)
    said = ", ".join(f"AUC {area:.2f}, learnt {100 * gain:.0f} %" for (gain, *_), (area, *_) in points.values())
    return inline(figure, "tradeoff", f"One point for each LoRA: {said}.")
