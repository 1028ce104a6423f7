"""Held-out gain against leak for many LoRAs on several splits: which defence lies above plain LoRA's own curve."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from library.audit.report.comparison.comparison_table import read_findings
from library.audit.report.figures import legend_below
from library.audit.report.svg import LINES, QUIET, TEXT, canvas, inline
from library.audit.statistics.intervals import bootstrap_aucs
from library.audit.statistics.metrics import Scores, auc
from library.errors import InputError
from library.incoming.files import read_text
from library.plain_text import for_figure, markdown_table

DRAWS = 2000  # bootstrap samples of groups
Z = 1.96
LAST_DIGIT = 0.0005  # of a difference of two AUCs in the table
MARKERS = "sD^vP"  # with the colours enough for 25 trainings


@dataclass(frozen=True)
class Figure:
    """One figure with its standard error."""

    value: float
    error: float

    def text(self, form: str = ".3f", factor: float = 1.0) -> str:
        """The value with its 95 % interval."""
        low, middle, high = (
            factor * bound for bound in (self.value - Z * self.error, self.value, self.value + Z * self.error)
        )
        return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


@dataclass(frozen=True)
class Point:
    """One audited LoRA on one split."""

    title: str
    split: int
    is_plain: bool  # on plain LoRA's own curve: an undefended training whose schedule ends where it stops
    exposures: float | None
    gain: Figure  # held-out gain
    main: str  # the attack that was fixed beforehand
    worst: str  # the attack farthest from chance on this LoRA
    scores: Mapping[str, tuple[Scores, Scores]]  # of members-test and non-members-test, by attack
    groups: tuple[list[str], list[str]]
    epsilon: float | None = None  # of DP-SGD

    def area(self, attack: str) -> float:
        """AUC of an attack on the test sides."""
        return auc(*self.scores[attack])

    def samples(self, attack: str) -> Scores:
        """[DRAWS] AUC over bootstrap samples of groups; LoRAs of one split share the samples."""
        return bootstrap_aucs(*self.scores[attack], *self.groups, DRAWS, np.random.default_rng(self.split))


def read_point(folder: Path, title: str, split: int, *, is_plain: bool) -> Point:
    """An audited output folder. Raises: InputError for one that was not audited, or not by this version."""
    found, file = read_findings(folder), folder / "audit" / "scores.csv"
    try:
        utility = found["utility"]
        gain = Figure(utility["held_out_gain"], (utility["held_out_gain_high"] - utility["held_out_gain_low"]) / 2 / Z)
        rows = list(csv.DictReader(io.StringIO(read_text(file, f"'{file}'"))))
        names = [one["name"] for one in found["findings"]]
        sides = [[row for row in rows if row["side"] == side] for side in ("members-test", "non-members-test")]
        scores = {name: tuple(np.array([float(row[name]) for row in side]) for side in sides) for name in names}
        return Point(
            title=title,
            split=split,
            is_plain=is_plain,
            exposures=found["exposures_per_image"],
            gain=gain,
            main=found["primary"],
            worst=found["worst"],
            scores={name: (inside, outside) for name, (inside, outside) in scores.items()},
            groups=([row["group"] for row in sides[0]], [row["group"] for row in sides[1]]),
            epsilon=found["settings"].get("dp_epsilon"),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"the audit of '{folder}' lacks {error}; audit it again with this version") from error


def curve_of(points: Sequence[Point], split: int) -> list[Point]:
    """Plain LoRA's points of a split by rising gain; what learnt less than a shorter training is left out."""
    plain_points = [one for one in points if one.is_plain and one.split == split]
    kept: list[Point] = []
    for one in sorted(plain_points, key=lambda point: point.exposures or 0.0):
        if not kept or one.gain.value > kept[-1].gain.value:
            kept.append(one)
    return kept


def below_curve(point: Point, curve: Sequence[Point], attacks: Mapping[str, str]) -> Figure | None:
    """AUC of a LoRA minus that of plain LoRA at the same held-out gain, on a line between its neighbours.

    The bootstrap draws the same groups for all three; the gains are taken as they are.

    Args:
        attacks: the attack that speaks for a LoRA, by its title.

    Returns:
        None where the gain lies outside the curve.
    """
    for less, more in pairwise(curve):
        if less.gain.value <= point.gain.value <= more.gain.value:
            share = (point.gain.value - less.gain.value) / (more.gain.value - less.gain.value)
            parts = ((point, 1.0), (less, share - 1.0), (more, -share))
            value = sum(weight * one.area(attacks[one.title]) for one, weight in parts)
            samples = sum(weight * one.samples(attacks[one.title]) for one, weight in parts)
            return Figure(value, float(np.std(samples, ddof=1)))
    return None


def pooled(figures: Sequence[Figure]) -> Figure | None:
    """The mean over splits; its error is that of the splits' own, or of their scatter where that is larger."""
    if not figures:
        return None
    values = [one.value for one in figures]
    own = math.sqrt(sum(one.error**2 for one in figures)) / len(figures)
    scatter = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Figure(float(np.mean(values)), max(own, scatter))


@dataclass(frozen=True)
class Row:
    """One kind of training over all splits."""

    title: str
    is_plain: bool
    splits: int
    exposures: float | None  # mean
    epsilon: float | None
    gain: Figure
    share_of_best: float  # of plain LoRA's best gain, mean over splits
    main: Figure  # AUC
    worst: Figure  # AUC of the attack that is worst over all splits
    worst_attack: str
    below_main: Figure | None  # AUC minus plain LoRA's at the same gain; None outside its curve
    below_worst: Figure | None
    compared: int  # splits on which its gain lies within plain LoRA's curve
    is_on_front: bool = False  # no other training learns more and leaks less


def frontier_rows(points: Sequence[Point]) -> list[Row]:
    """One row for each title, in the order of the points.

    The worst attack of a training is the one with the highest mean AUC over its splits, so that each split does not
    choose its own.
    """
    titles = list(dict.fromkeys(point.title for point in points))
    by_title = {title: [point for point in points if point.title == title] for title in titles}
    worst = {title: _worst_attack(by_title[title]) for title in titles}
    main = {title: by_title[title][0].main for title in titles}
    best = {
        split: max((one.gain.value for one in points if one.is_plain and one.split == split), default=math.nan)
        for split in {point.split for point in points}
    }
    rows = [_row(by_title[title], points, main, worst, best) for title in titles]
    return [replace(row, is_on_front=not any(_beats(other, row) for other in rows if other is not row)) for row in rows]


def _row(
    own: Sequence[Point],
    points: Sequence[Point],
    main: Mapping[str, str],
    worst: Mapping[str, str],
    best: Mapping[int, float],
) -> Row:
    title = own[0].title
    curves = {point.split: curve_of(points, point.split) for point in own}
    gain, of_main, of_worst = (
        pooled(figures)
        for figures in (
            [point.gain for point in own],
            [_area(point, main[title]) for point in own],
            [_area(point, worst[title]) for point in own],
        )
    )
    assert gain is not None and of_main is not None and of_worst is not None
    inside = [
        [figure for point in own if (figure := below_curve(point, curves[point.split], attacks))]
        for attacks in (main, worst)
    ]
    below = [None if own[0].is_plain else pooled(figures) for figures in inside]
    exposures = [point.exposures for point in own if point.exposures is not None]
    return Row(
        title=title,
        is_plain=own[0].is_plain,
        splits=len(own),
        exposures=float(np.mean(exposures)) if exposures else None,
        epsilon=own[0].epsilon,
        gain=gain,
        share_of_best=float(np.mean([point.gain.value / best[point.split] for point in own])),
        main=of_main,
        worst=of_worst,
        worst_attack=worst[title],
        below_main=below[0],
        below_worst=below[1],
        compared=len(inside[1]),
    )


def _area(point: Point, attack: str) -> Figure:
    return Figure(point.area(attack), float(np.std(point.samples(attack), ddof=1)))


def _worst_attack(own: Sequence[Point]) -> str:
    shared = [name for name in own[0].scores if all(name in point.scores for point in own)]
    return max(shared, key=lambda name: float(np.mean([point.area(name) for point in own])))


def _beats(other: Row, row: Row) -> bool:
    pair = (other.gain.value, -other.worst.value), (row.gain.value, -row.worst.value)
    return all(mine >= its for mine, its in zip(*pair, strict=True)) and pair[0] != pair[1]


def frontier_table(rows: Sequence[Row]) -> str:
    """Table 1 in Markdown."""
    head = ("training", "splits (compared)", "exposures", "held-out gain", "share of plain's best", "main attack, AUC",
            "worst attack, AUC", "main attack against plain at the same gain", "worst against plain's worst",
            "on the front")  # fmt: skip
    lines = []
    for row in rows:
        cells = (
            row.title if row.epsilon is None else f"{row.title} (epsilon {float(row.epsilon):.3g})",
            str(row.splits) if row.is_plain else f"{row.splits} ({row.compared})",
            "-" if row.exposures is None else f"{row.exposures:.3g}",
            f"{row.gain.text('.1f', 100)} %",
            f"{row.share_of_best:.0%}",
            row.main.text(".2f"),
            f"{row.worst.text('.2f')} ({row.worst_attack})",
            *("plain" if row.is_plain else "outside" if figure is None else figure.text("+.3f")
              for figure in (row.below_main, row.below_worst)),
            "yes" if row.is_on_front else "",
        )  # fmt: skip
        lines.append(cells)
    return markdown_table(head, lines)


def frontier_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain numbers, intervals of 95 %."""
    return [{name: _plain(value) for name, value in vars(row).items()} for row in rows]


def _plain(value: Any) -> Any:
    if not isinstance(value, Figure):
        return value
    return {"value": value.value, "low": value.value - Z * value.error, "high": value.value + Z * value.error}


def answer(rows: Sequence[Row]) -> str:
    """Whether a defence lies above plain LoRA's curve, in a sentence for each that could be compared."""
    return "\n".join(_answers(rows)) + "\n"


def _answers(rows: Sequence[Row]) -> Iterator[str]:
    compared = [(row, row.below_worst) for row in rows if row.below_worst is not None]
    clear = [(row, figure) for row, figure in compared if figure.value + Z * figure.error <= -LAST_DIGIT]
    worse = [(row, figure) for row, figure in compared if figure.value - Z * figure.error >= LAST_DIGIT]
    for row, figure in clear:
        yield (
            f"* **{row.title}** leaks less than plain LoRA of the same held-out gain: worst attack "
            f"{figure.text('+.3f')}, over {row.compared} of {row.splits} splits."
        )
    if not compared:
        yield "* No other training lies within plain LoRA's own curve here, so none can be held against it."
    elif not clear:
        yield "* **No defence lies above plain LoRA's own curve** with an interval clear of zero."
    for row, figure in worse:
        yield (
            f"* **{row.title}** leaks *more* than plain LoRA of the same gain: {figure.text('+.3f')}, over "
            f"{row.compared} of {row.splits} splits."
        )


def frontier_figure(rows: Sequence[Row]) -> str:
    """Held-out gain against the worst attack's AUC as an SVG element; plain LoRA's points are joined and numbered."""
    figure, (axes,) = canvas(5.6)
    curve = sorted((row for row in rows if row.is_plain), key=lambda row: row.exposures or 0.0)
    places = [100 * row.gain.value for row in curve], [row.worst.value for row in curve]
    axes.plot(*places, color=QUIET, marker="o", markersize=5, label="plain LoRA, by exposures")
    others = [row for row in rows if not row.is_plain]
    looks = [(row, "", QUIET) for row in curve]
    looks += [(row, *look) for row, look in zip(others, product(MARKERS, LINES), strict=False)]
    for row, marker, colour in looks:
        spot = 100 * row.gain.value, row.worst.value
        reach, sure = 100 * Z * row.gain.error, Z * row.worst.error
        axes.errorbar(*spot, xerr=reach, yerr=sure, color=colour, linewidth=1, alpha=0.6)
        if marker:
            axes.plot(*spot, color=colour, marker=marker, markersize=5, linestyle="none", label=for_figure(row.title))
        elif row.exposures is not None:
            text = f"{row.exposures:.3g}"
            axes.annotate(text, spot, xytext=(5, 4), textcoords="offset points", fontsize=TEXT, color=QUIET)
    axes.axhline(0.5, color=QUIET, linestyle="--", linewidth=1)
    axes.set(xlabel="held-out gain, %", ylabel="worst attack, AUC")
    legend_below(figure, axes)
    told = ", ".join(f"{row.title} {row.gain.value:.0%} at {row.worst.value:.2f}" for row in rows)
    return inline(figure, "frontier", f"Held-out gain and AUC of the worst attack: {told}.")
