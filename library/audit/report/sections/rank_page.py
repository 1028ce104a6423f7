"""Kept energy, what was learnt, membership and robustness against the rank of one LoRA: figure, tables, answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from library.audit.report.sections.robustness_figures import PERCENT_MORE, size_text
from library.audit.report.sections.robustness_section import (
    ATTACKS,
    area_text,
    difference_text,
    learnt_text,
    ratio_text,
    rise_text,
)
from library.audit.report.svg import MEMBER, NON_MEMBER, QUIET, canvas, inline
from library.audit.robustness.robustness_findings import Estimate
from library.audit.robustness.robustness_result import RobustnessResult
from library.plain_text import markdown_table

CONTROL = "half strength"
PERCENT = FuncFormatter(lambda value, place: f"{100 * value:g} %")


@dataclass(frozen=True)
class Membership:
    """What an audit of its own found of the LoRA at one rank."""

    auc: Estimate  # of the main attack
    learnt: Estimate  # held-out gain
    verdict: str
    members: int  # tested
    non_members: int
    minus_full: Estimate | None  # AUC minus the whole LoRA's on the same pictures; None for that one


def by_rank(result: RobustnessResult) -> list[str]:
    """Names of base, cuts by rising rank and whole LoRA."""
    cuts = [one for one in result.variants if one.name not in ("base", "full", CONTROL)]
    return ["base", *(one.name for one in sorted(cuts, key=lambda one: one.rank)), "full"]


def rank_figure(result: RobustnessResult, audited: Mapping[str, Membership]) -> str:
    """Five panels over the rank, one below the other."""
    names, size = by_rank(result), result.main_size
    figure, (energy, learnt, leak, sturdy, error) = canvas(9.6, (1, 1, 1, 1.1, 1.1))
    kept = {one.name: one.kept_energy for one in result.variants}
    energy.plot(range(len(names)), [kept[name] for name in names], "o-", color=QUIET, markersize=5)
    energy.set(ylabel="kept energy", ylim=(-0.05, 1.08))
    energy.yaxis.set_major_formatter(PERCENT)
    _with_intervals(learnt, {place: result.leak_of(name).learnt for place, name in enumerate(names)}, NON_MEMBER)
    learnt.set(ylabel="learnt, held out")
    learnt.yaxis.set_major_formatter(PERCENT)
    _with_intervals(leak, {place: result.leak_of(name).auc for place, name in enumerate(names) if place}, NON_MEMBER)
    areas = {place + 0.12: audited[name].auc for place, name in enumerate(names) if name in audited}
    if areas:
        _with_intervals(leak, areas, MEMBER, "s")
    leak.axhline(0.5, color=QUIET, linestyle="--", linewidth=1)
    leak.set(ylabel="membership AUC", ylim=(0.38, 1.02))
    rises = {place: result.of(name, "loss", size).value for place, name in enumerate(names)}
    _with_intervals(sturdy, rises, MEMBER)
    sturdy.set(ylabel=f"rise of the error\nat {size_text(size)}")
    sturdy.set_ylim(bottom=0)
    sturdy.yaxis.set_major_formatter(PERCENT_MORE)
    after = {place: result.of(name, "after", size).value for place, name in enumerate(names)}
    _with_intervals(error, after, MEMBER)
    before = [after[place].value / (1 + rises[place].value) for place in after]  # both are geometric means
    error.plot(list(after), before, "o--", color=QUIET, markersize=4)
    error.set(ylabel="error, dashed:\nbefore the attack", xlabel="rank that the LoRA was cut to")
    error.set_ylim(bottom=0)
    whole = next(one.rank for one in result.variants if one.name == "full")
    labels = [name.replace("rank ", "").replace("full", f"{whole}\n(whole)") for name in names]
    error.set_xticks(range(len(names)), labels)
    told = ", ".join(f"{name} {100 * found.value:+.0f} %" for name, found in zip(names, rises.values(), strict=True))
    return inline(figure, "ranks", f"Against the rank: kept energy, learnt, AUC, and rise of the error ({told}).")


def _with_intervals(axes: Axes, found: Mapping[Any, Estimate], colour: str, marker: str = "o-") -> None:
    places = sorted(found)
    axes.plot(places, [found[place].value for place in places], marker, color=colour, markersize=5)
    for place in places:
        axes.plot([place] * 2, [found[place].low, found[place].high], color=colour, linewidth=1.4, alpha=0.7)


def rank_table(result: RobustnessResult, audited: Mapping[str, Membership]) -> str:
    """One row for each variant, in Markdown."""
    size = result.main_size
    heads = (
        "variant", "kept energy", "learnt (held-out gain)", "AUC, loss against the base", "minus the whole LoRA's",
        "AUC, main attack", f"rise of the error at {size_text(size)}", "error after it, of the whole LoRA's",
    )  # fmt: skip
    kept = {one.name: one.kept_energy for one in result.variants}
    rows = []
    for name in [*by_rank(result), CONTROL]:
        one = result.leak_of(name)
        rows.append(
            (
                name,
                f"{100 * kept[name]:.0f} %",
                learnt_text(one.learnt),
                "-" if name == "base" else area_text(one.auc),
                difference_text(None if name == "base" else one.minus_full),
                area_text(audited[name].auc) if name in audited else "not audited",
                rise_text(result.of(name, "loss", size).value),
                ratio_text(result.of(name, "after", size).against_full),
            )
        )
    return markdown_table(heads, rows)


def ratio_table(result: RobustnessResult) -> str:
    """Every attack's ratio to the whole LoRA at the main size, in Markdown."""
    names = [name for name in [*by_rank(result), CONTROL] if name != "full"]
    rows = [
        (title, *(ratio_text(result.of(name, attack, result.main_size).against_full) for name in names))
        for attack, title in ATTACKS.items()
    ]
    return markdown_table((f"at {size_text(result.main_size)}", *names), rows)


def check_table(result: RobustnessResult) -> str:
    """The least of each check over the variants, in Markdown."""
    heads = ("attack", "many steps beat one", "beats noise", "grows with the size", "beats the base's change")
    rows = []
    for attack in ("loss", "text"):
        checks = [one for one in result.checks if one.attack == attack]
        transfers = [one.beats_transfer for one in checks if one.beats_transfer is not None]
        least = [
            min(getattr(one, name) for one in checks) for name in ("beats_one_step", "beats_noise", "grows_with_size")
        ]
        rows.append((ATTACKS[attack], *map(_percent, least), _percent(min(transfers)) if transfers else "-"))
    return markdown_table(heads, rows)


def answers(result: RobustnessResult, audited: Mapping[str, Membership]) -> str:
    """What the tables say of the claim, in Markdown; 95 % intervals decide, and nothing is said beyond them."""
    size = result.main_size
    cuts = [name for name in by_rank(result) if name not in ("base", "full")]
    learnt = ", ".join(f"{name} {learnt_text(result.leak_of(name).learnt)}" for name in cuts)
    lines = [
        f"* **Sturdier, relative to its own error** (rise at {size_text(size)}): {_sorted_by(result, 'loss', cuts)}",
        f"* **Sturdier in the error itself after the attack**: {_sorted_by(result, 'after', cuts)}",
        f"* **Text states changed**: {_sorted_by(result, 'text', cuts)}",
        f"* **Drawings from changed pictures** (by the error's gradient): {_sorted_by(result, 'damage_by_loss', cuts)}",
        f"* **The controls**: {_sorted_by(result, 'loss', [CONTROL, 'base'])} Where the LoRA at half strength and the "
        "base are sturdier too, a cut may be so because it is weaker, and not because of the directions that it keeps.",
        f"* **What it costs**: held-out gain {learnt}, whole LoRA {learnt_text(result.leak_of('full').learnt)}.",
        f"* **Less leaky**: {_leak(result, audited, [*cuts, CONTROL])}",
    ]
    return "\n".join(lines)


def _sorted_by(result: RobustnessResult, attack: str, names: Sequence[str]) -> str:
    """Which variants lie below the whole LoRA, above it, or on both sides of it."""
    kinds: dict[str, list[str]] = {"yes": [], "no, less sturdy": [], "undecided": []}
    for name in names:
        found = result.of(name, attack, result.main_size).against_full
        assert found is not None
        kind = "yes" if found.high < 1 else "no, less sturdy" if found.low > 1 else "undecided"
        kinds[kind].append(f"{name} ({ratio_text(found)})")
    return "; ".join(f"{kind}: {', '.join(some)}" for kind, some in kinds.items() if some) + "."


def _leak(result: RobustnessResult, audited: Mapping[str, Membership], names: Sequence[str]) -> str:
    """AUC of each variant against the whole LoRA's: the attack without labels on all, and their own audits."""
    whole = result.leak_of("full")
    told = [
        f"{name} {area_text(result.leak_of(name).auc)} ({difference_text(result.leak_of(name).minus_full)})"
        for name in names
    ]
    text = (
        f"loss against the base ({whole.members} members, {whole.non_members} others): whole LoRA "
        f"{area_text(whole.auc)}; {', '.join(told)}; in brackets the difference to the whole LoRA. "
    )
    own = [
        f"{name} {area_text(one.auc)}" + ("" if one.minus_full is None else f" ({difference_text(one.minus_full)})")
        for name, one in audited.items()
    ]
    return text + (f"Main attack of the audits: {', '.join(own)}." if own else "No rank was audited on its own.")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
