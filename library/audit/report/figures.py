"""The report's figures as SVG text; each can be read alone and at the width of a phone."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from scipy import stats

from library.audit.attacks.attack_result import sides_of, test_groups
from library.audit.report.evaluation import Evaluation
from library.audit.statistics.intervals import group_draws
from library.audit.statistics.metrics import roc_points
from library.audit.targets.candidate_table import Candidates, FloatArray
from library.plain_text import for_figure

MEMBER, NON_MEMBER, QUIET, GRID = "#c2410c", "#1d4ed8", "#64748b", "#e2e8f0"
LINES = ("#c2410c", "#1d4ed8", "#047857", "#7c3aed", "#0f172a")


def canvas(height: float = 3.6) -> tuple[Figure, Axes]:
    """A figure as wide as a phone, with quiet axes."""
    figure = Figure(figsize=(4.4, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def svg(figure: Figure) -> str:
    """SVG text without a date or random names, so that the same figures give the same file."""
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "audit", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def roc_figure(rows: Mapping[str, FloatArray], candidates: Candidates, logarithmic: bool) -> str:
    """ROC of a few attacks with the first one's 95 % band; the log-log one starts where the sample resolves."""
    figure, axes = canvas(4.9)
    smallest = 1 / (len(candidates.indices("non-members-test")) + 1)
    grid = np.geomspace(smallest, 1, 200) if logarithmic else np.linspace(0, 1, 200)
    first = True
    for (name, scores), colour in zip(rows.items(), LINES, strict=False):
        members, non_members = sides_of(scores, candidates, "test")
        false_rate, true_rate = roc_points(members, non_members)
        if first:
            low, high = roc_band(members, non_members, test_groups(candidates), grid)
            axes.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
            first = False
        axes.step(false_rate, true_rate, where="post", color=colour, linewidth=1.6, label=name)
    non_members_tested = len(candidates.indices("non-members-test"))
    guessed = (np.floor(grid * non_members_tested + 1e-9) + 1) / (non_members_tested + 1)  # mean TPR of a coin
    axes.plot(grid, np.minimum(guessed, 1), color=QUIET, linestyle="--", linewidth=1, label="guessing")
    if logarithmic:
        axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1.05))
    axes.set(xlabel="non-members accused (false-positive rate)", ylabel="members found (true-positive rate)")
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower center", frameon=False)
    return svg(figure)


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


def forest_figure(evaluation: Evaluation, titles: Mapping[str, str]) -> str:
    """AUC and 95 % interval of every attack, LoRA on (filled) and off (open), controls at the bottom."""
    blind = [one for name, one in evaluation.controls.items() if not name.endswith("LoRA off")]
    found = list(evaluation.findings.values())
    figure, axes = canvas(0.9 + 0.27 * (len(found) + len(blind)))
    labels = []
    for place, one in enumerate(found):
        axes.plot(one.auc_interval, [place] * 2, color=MEMBER, linewidth=2)
        axes.plot(one.auc, place, "o", color=MEMBER, markersize=5)
        if one.auc_off is not None:
            axes.plot(one.auc_off, place, "o", color=QUIET, markerfacecolor="white", markersize=5)
        other = evaluation.shadow_findings.get(one.name)
        if other is not None:
            axes.plot(other.auc_interval, [place + 0.3] * 2, color=NON_MEMBER, linewidth=1.2)
            axes.plot(other.auc, place + 0.3, "D", color=NON_MEMBER, markersize=3.5)
        labels.append(titles.get(one.name, one.name))
    for place, control in enumerate(blind, start=len(found)):
        axes.plot(control.interval, [place] * 2, color=QUIET, linewidth=2)
        axes.plot(control.auc, place, "s", color=QUIET, markersize=4)
        labels.append(f"control: {control.name}")
    axes.axvline(0.5, color=QUIET, linestyle="--", linewidth=1)
    axes.set(xlim=(0, 1.02), ylim=(len(labels) - 0.4, -0.6), xlabel="AUC: filled LoRA on, open LoRA off")
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    return svg(figure)


def timestep_figure(profiles: Mapping[str, Sequence[tuple[int, float, float]]]) -> str:
    """AUC against the timestep, LoRA on (solid) and off (dotted)."""
    figure, axes = canvas()
    for (name, rows), colour in zip(profiles.items(), LINES, strict=False):
        steps = [row[0] for row in rows]
        axes.plot(steps, [row[1] for row in rows], "o-", color=colour, markersize=3, label=f"{name}, LoRA on")
        axes.plot(steps, [row[2] for row in rows], "o:", color=colour, markersize=3, label=f"{name}, off")
    axes.axhline(0.5, color=QUIET, linestyle="--", linewidth=1)
    axes.set(xlabel="timestep of the noise", ylabel="AUC", ylim=(0, 1.02))
    axes.legend(fontsize=7, frameon=False, loc="lower right")
    return svg(figure)


def histogram_figure(on: FloatArray, off: FloatArray, candidates: Candidates) -> str:
    """Scores of members and non-members of the test sides, LoRA on above, off below."""
    figure, axes = canvas()
    on, off = (scaled(rows, candidates) for rows in (on, off))
    every = np.concatenate([np.concatenate(sides_of(rows, candidates, "test")) for rows in (on, off)])
    low, high = np.quantile(every, [0.005, 0.995])
    bins = np.linspace(float(low) - 1e-9, float(high) + 1e-9, 25)
    for rows, sign in ((on, 1), (off, -1)):
        for side, colour, name in zip(
            sides_of(rows, candidates, "test"), (MEMBER, NON_MEMBER), ("members", "non-members"), strict=True
        ):
            counts, _ = np.histogram(np.clip(side, bins[0], bins[-1]), bins)
            label = name if sign == 1 else None
            axes.stairs(sign * counts, bins, fill=True, color=colour, alpha=0.45, label=label)
    axes.axhline(0, color=QUIET, linewidth=1)
    axes.set(
        xlabel="score of the main attack, in spreads of non-members",
        ylabel="pictures (LoRA on above, off below)",
    )
    axes.set_yticks(axes.get_yticks(), [f"{abs(tick):.0f}" for tick in axes.get_yticks()])
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def scaled(rows: FloatArray, candidates: Candidates) -> FloatArray:
    """In standard deviations of the test non-members, from their mean."""
    non_members = sides_of(rows, candidates, "test")[1]
    return (rows - non_members.mean()) / max(float(non_members.std()), 1e-12)


def transfer_figure(evaluation: Evaluation, titles: Mapping[str, str]) -> str:
    """Realised against target false-positive rate of the thresholds that were fixed on the aux sides."""
    figure, axes = canvas(4.2)
    kept = [one.transfer for one in evaluation.findings.values() if one.transfer is not None]
    for place, one in enumerate(kept):
        axes.plot([place] * 2, one.fpr_interval, color=NON_MEMBER, linewidth=2)
        axes.plot(place, one.fpr, "o", color=NON_MEMBER, markersize=4)
    if kept:
        axes.axhline(kept[0].target_fpr, color=QUIET, linestyle="--", linewidth=1)
    names = [titles.get(one.name, one.name) for one in evaluation.findings.values() if one.transfer is not None]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set(ylabel="non-members accused", ylim=(0, None))
    return svg(figure)


def epsilon_figure(evaluation: Evaluation, claimed: float | None) -> str:
    """Lower bound on epsilon for each number of guesses, with what all guesses right would give and what is claimed."""
    figure, axes = canvas(3.0)
    counts = [bound.guesses for bound in evaluation.epsilon]
    axes.plot(counts, [bound.epsilon for bound in evaluation.epsilon], "o-", color=MEMBER, label="lower bound")
    axes.plot(counts, [bound.ceiling for bound in evaluation.epsilon], "s--", color=QUIET, label="all guesses right")
    if claimed is not None:
        axes.axhline(claimed, color=NON_MEMBER, linewidth=1.2, label=f"claimed by the LoRA: {claimed:g}")
    axes.set(xlabel="guesses", ylabel="epsilon", ylim=(-0.1, None))
    axes.legend(fontsize=8, frameon=False)
    return svg(figure)


def group_figure(bars: Sequence[tuple[float, int]], highest: float) -> str:
    """Groups of member pictures by mean score, by number (names may name persons); a line for the best non-member.

    Args:
        bars: mean score and number of pictures, worst first.
    """
    figure, axes = canvas(0.9 + 0.24 * len(bars))
    axes.barh(range(len(bars)), [score for score, _ in bars], color=MEMBER, alpha=0.75)
    axes.axvline(highest, color=NON_MEMBER, linewidth=1.2, label="highest non-member")
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.set(ylim=(len(bars) - 0.4, -0.6), xlabel="score, in spreads of non-members")
    axes.set_yticks(range(len(bars)), [f"{number} ({count})" for number, (_, count) in enumerate(bars, 1)], fontsize=7)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower center", frameon=False)
    return svg(figure)


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
    """Rank correlation (Spearman) of every pair of attacks over the test members: do they find the same pictures?"""
    rows = candidates.indices("members-test")
    ranks = np.stack([stats.rankdata(values[rows]) for values in scores.values()])
    ranks -= ranks.mean(1, keepdims=True)
    lengths = np.maximum(np.linalg.norm(ranks, axis=1), 1e-12)
    together = (ranks @ ranks.T) / np.outer(lengths, lengths)
    count = len(scores)
    figure, axes = canvas(1.0 + 0.21 * count)
    axes.grid(visible=False)
    shown = axes.imshow(together, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    names = [f"{titles.get(name, name)}  {place}" for place, name in enumerate(scores, start=1)]
    axes.set_yticks(range(count), names, fontsize=7)
    axes.set_xticks(range(count), [str(place) for place in range(1, count + 1)], fontsize=6)
    figure.colorbar(shown, ax=axes, location="bottom", shrink=0.8, aspect=30, label="rank correlation")
    return svg(figure)


@dataclass(frozen=True)
class Stop:
    """One saved LoRA of a training."""

    exposures: float  # per member picture
    auc: float
    low: float
    high: float
    member_loss: float  # share of the base model's
    non_member_loss: float


def exposure_figure(trainings: Mapping[str, Sequence[Stop]]) -> str:
    """Above: AUC of the main attack with its interval against exposures. Below: what the LoRA learnt."""
    figure = Figure(figsize=(4.4, 5.4), layout="constrained")
    FigureCanvasSVG(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes in (above, below):
        axes.grid(color=GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    for (name, stops), colour in zip(trainings.items(), LINES * 4, strict=False):
        stops = sorted(stops, key=lambda stop: stop.exposures)
        seen = [stop.exposures for stop in stops]
        above.plot(seen, [stop.auc for stop in stops], "o-", color=colour, markersize=4, label=for_figure(name))
        above.fill_between(
            seen, [stop.low for stop in stops], [stop.high for stop in stops], color=colour, alpha=0.12, linewidth=0
        )
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
        xlabel="loss on members, share of the base's (lower = learnt more)",
        ylabel="AUC of the best attack",
        ylim=(0.4, 1.02),
    )
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside lower center", frameon=False, ncols=2)
    return svg(figure)
