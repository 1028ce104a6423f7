"""training.png: loss and attacker over the course of a run, drawn from log.jsonl.

It has no step, count, epoch or name: steps per epoch would give the number of members.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from library.tensor_files import write_whole
from library.training.run_log import read_records

SMOOTHING = 0.02  # share of the run over which the loss of the batches is averaged
MEMBERS, NON_MEMBERS, QUIET = "#c2410c", "#1d4ed8", "#64748b"
Course = Sequence[tuple[float, float]]  # (share of the run, value)


def write_curve(log: Path, curve: Path) -> None:
    """Draw the log into a PNG, 0600."""
    write_whole(curve, drawn(read_records(log)), private=True)


def course(records: Sequence[Mapping[str, Any]], name: str) -> Course:
    """One figure over the run: the finite values, against the share of the steps that are done."""
    last = max(record["step"] for record in records) or 1
    return [
        (record["step"] / last, float(record[name])) for record in records if isinstance(record.get(name), (int, float))
    ]


def of_the_start(values: Course) -> Course:
    """In percent of the first value."""
    return [(place, 100 * value / values[0][1]) for place, value in values] if values and values[0][1] else []


def smoothed(values: Course) -> Course:
    """Running means over ``SMOOTHING`` of the run, as many as there are windows."""
    windows: dict[int, list[tuple[float, float]]] = {}
    for pair in values:
        windows.setdefault(int(pair[0] / SMOOTHING), []).append(pair)
    return [
        (sum(place for place, _ in pairs) / len(pairs), sum(value for _, value in pairs) / len(pairs))
        for _, pairs in sorted(windows.items())
    ]


def drawn(records: Sequence[Mapping[str, Any]]) -> bytes:
    """The picture as a PNG without metadata."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    fixed = "at fixed noise"
    for name, label, colour in (
        ("adaptation_loss_members_aux", f"members that the attacker knows, {fixed}", MEMBERS),
        ("adaptation_loss_non_members_aux", f"held-out pictures, {fixed}", NON_MEMBERS),
    ):
        above.plot(*_columns(of_the_start(course(records, name))), color=colour, label=label)
    above.plot(
        *_columns(of_the_start(smoothed(course(records, "adaptation_loss")))), color=QUIET, alpha=0.6, linewidth=1,
        label="training batches, averaged",
    )  # fmt: skip
    above.set(ylabel="loss, % of its start")
    accuracy = course(records, "proxy_balanced_accuracy")
    below.plot(*_columns([(place, 100 * value) for place, value in accuracy]), color=MEMBERS, label="proxy attacker")
    below.axhline(50, color=QUIET, linestyle="--", linewidth=1, label="guessing")
    below.set(xlabel="% of the training", ylabel="attacker is right, %", ylim=(0, 100), xlim=(0, 100))
    if not accuracy:
        below.text(50, 25, "no attacker in this run", horizontalalignment="center")
    for axes in (above, below):
        axes.grid(color="#e2e8f0")
        axes.legend(frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _columns(values: Course) -> tuple[list[float], list[float]]:
    return [100 * place for place, _ in values], [value for _, value in values]
