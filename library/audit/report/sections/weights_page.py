"""From the findings of benchmarks/leak_of_weights.py to the tables, the answers and the figure of its page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from library.audit.reconstruction.retrieval import BELOW, CEILING, Figure, share_text
from library.audit.report.svg import MEMBER, NON_MEMBER, QUIET, canvas, inline
from library.plain_text import markdown_table

Row = Mapping[str, Any]
NAIVE, ADAPTIVE = "naive", "adaptive"
OWN, HELD_OUT, STRANGERS = "own pictures", "held-out pictures", "strangers' pictures"
PRIVATE_SET = "private set"


def figure_of(values: Mapping[str, float]) -> Figure:
    """A figure as it was saved."""
    return Figure(values["value"], values["low"], values["high"])


def number(figure: Figure, form: str = ".2f") -> str:
    """``.98 [.96, .99]``."""
    return f"{figure.value:{form}} [{figure.low:{form}}, {figure.high:{form}}]"


def setting(findings: Mapping[str, Any]) -> str:
    """What was measured, in one paragraph."""
    facts = findings["facts"]
    return (
        f"{facts['victims']} victims (private persons of the demo), {facts['shadows']} shadow LoRAs and "
        f"{facts['others']} LoRAs as a control, of persons drawn for it; {facts['pictures']} pictures a person, rank "
        f"{facts['rank']}, {facts['steps']} steps of AdamW at {facts['learning_rate']:g} with {facts['batch']} "
        f"pictures each, {facts['layers']} layers (query and value projections). "
        f"Chance: top-1 {100 / facts['victims']:.1f} %, AUC .5.\n"
    )


def attack_table(findings: Mapping[str, Any]) -> str:
    """Undefended LoRAs: every attack beside its controls."""
    head = ("attack", "knows", "shadows", "ranks the", "top-1", "top-5", "median rank", "AUC",
            *(f"AUC, {name}" for name in (*BELOW, CEILING)), "above the strongest control")  # fmt: skip
    lines = []
    for row in undefended_rows(findings):
        found = row["figures"]
        controls = [f"{row['controls'][name]['auc']['value']:.2f}" for name in (*BELOW, CEILING)]
        lines.append([
            row["title"], ", ".join(row["knows"]), str(row["shadows"]), row["target"],
            share_text(figure_of(found["top_1"])), share_text(figure_of(found["top_5"])),
            number(figure_of(found["median_rank"]), ".3g"), number(figure_of(found["auc"])), *controls,
            number(figure_of(row["advantage"]), "+.2f"),
        ])  # fmt: skip
    return markdown_table(head, lines)


def undefended_rows(findings: Mapping[str, Any]) -> list[Row]:
    """Of the shadow attacks and of the gallery."""
    return [*findings["defences"]["none"][NAIVE], *findings["undefended"].get("gallery", [])]


def unknown_recipe_table(findings: Mapping[str, Any]) -> str:
    """Victims of several ranks for an attacker whose shadows have several ranks and lengths."""
    head = ("victims' rank", "attack", "shadows", "ranks the", "top-1", "AUC", "above the strongest control")
    lines = [
        [str(row["rank"]), row["title"], str(row["shadows"]), row["target"], *shares(row),
         number(figure_of(row["advantage"]), "+.2f")]
        for row in findings["undefended"].get("unknown recipe", [])
    ]  # fmt: skip
    return markdown_table(head, lines) if lines else "Not measured.\n"


def strongest(rows: Sequence[Row]) -> Row:
    """The row with the most first ranks among those that rank the private set, then by AUC."""
    own = [row for row in rows if row["target"] == PRIVATE_SET]
    return max(own, key=lambda row: (row["figures"]["top_1"]["value"], row["figures"]["auc"]["value"]))


def defence_table(findings: Mapping[str, Any]) -> str:
    """Utility beside leak, for the attacker who does not know the defence and for the one who does."""
    head = ("defence", "victims", f"fall of the loss, {HELD_OUT}", OWN, STRANGERS, "strongest attack, naive", "top-1",
            "AUC", "strongest attack, adaptive", "shadows", "top-1", "AUC")  # fmt: skip
    lines = []
    for title, found in by_use(findings):
        falls = [percent(found["utility"][name]) for name in (HELD_OUT, OWN, STRANGERS)]
        naive, adaptive = (strongest(found[kind]) for kind in (NAIVE, ADAPTIVE))
        lines.append([
            title, str(naive["figures"]["victims"]), *(f"{number(fall, '.1f')} %" for fall in falls),
            naive["title"], *shares(naive), adaptive["title"], str(adaptive["shadows"]), *shares(adaptive),
        ])  # fmt: skip
    return markdown_table(head, lines)


def by_use(findings: Mapping[str, Any]) -> list[tuple[str, Row]]:
    """Defences by what they leave of the held-out use, most first; none is the first line."""
    found: Mapping[str, Row] = findings["defences"]
    return sorted(found.items(), key=lambda item: (item[0] != "none", -item[1]["utility"][HELD_OUT]["value"]))


def shares(row: Row) -> tuple[str, str]:
    """Top-1 and AUC."""
    return share_text(figure_of(row["figures"]["top_1"])), number(figure_of(row["figures"]["auc"]))


def percent(values: Mapping[str, float]) -> Figure:
    """A share in per cent."""
    return Figure(*(100 * values[name] for name in ("value", "low", "high")))


def answers(findings: Mapping[str, Any]) -> str:
    """What the tables say, whatever that is."""
    return "\n".join(_answers(findings)) + "\n"


def _answers(findings: Mapping[str, Any]) -> Iterator[str]:
    rows = undefended_rows(findings)
    best = strongest(rows)
    credited = [row for row in rows if row["reads_the_weights"]]
    if not credited:
        yield "* **No attack reads the weights**: none is above all of its controls with an interval clear of zero."
    else:
        found = best["figures"]
        yield (
            f"* **The weights give the private set away**: {best['title']} ranks it first for "
            f"{share_text(figure_of(found['top_1']))} of {found['victims']} victims (chance "
            f"{100 / found['candidates']:.1f} %), AUC {number(figure_of(found['auc']))}."
        )
    silent = [f"{row['title']} ({row['target']})" for row in rows if not row["reads_the_weights"]]
    if silent:
        yield f"* Not above their controls: {'; '.join(silent)}."
    same = [row for row in rows if row["target"] != PRIVATE_SET and row["reads_the_weights"]]
    yield (
        "* **It is the person, not only the pictures**: held-out pictures of the same person are found as well "
        f"({max(same, key=lambda row: row['figures']['auc']['value'])['title']}, AUC "
        f"{max(row['figures']['auc']['value'] for row in same):.2f})."
        if same
        else "* Held-out pictures of the same person are not found: what leaks is the pictures, not the person."
    )
    yield from _of_defences(findings["defences"])


def _of_defences(defences: Mapping[str, Any]) -> Iterator[str]:
    """Which defences keep half of the held-out use, and what they leave to read."""
    use = defences["none"]["utility"][HELD_OUT]["value"]
    kept = {title: found["utility"][HELD_OUT]["value"] / use for title, found in defences.items()} if use > 0 else {}
    holds = [title for title, share in kept.items() if share >= 0.5 and _hidden(defences[title])]
    if holds:
        told = "; ".join(f"{title} ({kept[title]:.0%} of the held-out use)" for title in holds)
        yield f"* **Hides the person from every attack here and keeps half of the use**: {told}."
    else:
        yield "* **No defence here takes every attack to its controls and keeps half of the held-out use.**"
    useful = [title for title, share in kept.items() if share >= 0.5 and title != "none"]
    if useful:
        best = min(useful, key=lambda title: _worst(defences[title])["figures"]["auc"]["value"])
        figures = _worst(defences[best])["figures"]
        yield (
            f"* Of those that keep half of it, the least is left to read by {best} ({kept[best]:.0%}): "
            f"top-1 {share_text(figure_of(figures['top_1']))}, AUC {number(figure_of(figures['auc']))}."
        )
    silent = [f"{title} ({kept[title]:.0%})" for title in kept if _hidden(defences[title])]
    if silent:
        yield f"* No attack is above its controls, with what is left of the held-out use: {'; '.join(silent)}."


def _hidden(found: Mapping[str, Any]) -> bool:
    """Whether no attack is credited, naive or adaptive."""
    return not any(row["reads_the_weights"] for kind in (NAIVE, ADAPTIVE) for row in found[kind])


def _worst(found: Mapping[str, Any]) -> Row:
    """The strongest attack on the private set of either attacker, by AUC."""
    rows = [row for kind in (NAIVE, ADAPTIVE) for row in found[kind] if row["target"] == PRIVATE_SET]
    return max(rows, key=lambda row: row["figures"]["auc"]["value"])


def defence_figure(findings: Mapping[str, Any]) -> str:
    """Held-out use against top-1 of the strongest attack: naive hollow, adaptive filled, numbered as in the table."""
    figure, (axes,) = canvas(4.6)
    told = []
    for place, (title, found) in enumerate(by_use(findings), 1):
        use = 100 * found["utility"][HELD_OUT]["value"]
        for kind, colour, fill in ((NAIVE, NON_MEMBER, "none"), (ADAPTIVE, MEMBER, MEMBER)):
            share = figure_of(strongest(found[kind])["figures"]["top_1"])
            label = f"{kind} attacker" if place == 1 else None
            reach = [[100 * (share.value - share.low)], [100 * (share.high - share.value)]]
            axes.errorbar(use, 100 * share.value, yerr=reach, color=colour, linewidth=1, alpha=0.5)
            axes.plot(use, 100 * share.value, marker="o", color=colour, markerfacecolor=fill, linestyle="", label=label)
            if kind == ADAPTIVE:
                axes.annotate(str(place), (use, 100 * share.value), xytext=(5, 4), textcoords="offset points")
                told.append(f"{title}: {use:.0f} %, top-1 {100 * share.value:.0f} %")
    axes.axhline(100 / findings["facts"]["victims"], color=QUIET, linestyle="--", linewidth=1)
    axes.set(
        xlabel="fall of the loss on held-out pictures, %", ylabel="top-1 of the strongest attack, %", ylim=(-3, 105)
    )
    axes.legend(frameon=False, loc="best")
    return inline(figure, "weights", f"Use against leak by defence: {'; '.join(told)}.")
