"""The section on pictures from the weights: what each attack knows and finds, and what the controls find."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from library.audit.reconstruction.one_lora import AUC, SHUFFLED, OneRow
from library.audit.reconstruction.retrieval import CEILING, NOTHING, OTHERS
from library.audit.report import html
from library.audit.report.beside import Beside
from library.audit.statistics.permutation import p_text

WORD, TITLE = "reconstruction", "Pictures from the weights"
LEAK_P = 0.05  # over all attacks, by Bonferroni


def reconstruction_json(rows: Sequence[OneRow], skipped: Sequence[str], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Aggregate figures; no picture, caption or name is among them."""
    return {"facts": dict(facts), "rows": [asdict(row) for row in rows], "skipped": list(skipped)}


def is_credited(row: OneRow, attacks: int) -> bool:
    """Whether an attack is said to have read the weights: better than its controls, and not by luck among so many."""
    better = row.low > 0.5 if row.kind == AUC else True
    return better and row.beats_its_controls() and row.p * attacks <= LEAK_P


def reconstruction_section(rows: Sequence[OneRow], skipped: Sequence[str]) -> Beside:
    """A line for the terminal and a section for the report."""
    credited = [row for row in rows if is_credited(row, len(rows))]
    best = min(rows, key=lambda row: (row.p, -row.value))
    said = (
        f"{len(credited)} of {len(rows)} attacks read private pictures out of the weights"
        if credited
        else f"none of {len(rows)} attacks read private pictures out of the weights, which is no proof that none can"
    )
    parts = [
        html.paragraph(
            "Who has only this file and the public base asks what the LoRA's weights point to. No attack saw a private "
            "picture: they serve to score alone. An attack is credited with what its controls do not give: the base "
            "alone (B = 0), the same numbers in shuffled places, the LoRA of other persons. The mean of the true "
            "pictures in the attack's place shows the most that one prediction could reach."
        ),
        html.table(COLUMNS, [cells(row) for row in rows], [row in credited for row in rows]),
        html.paragraph(f"{said}. p is multiplied by {len(rows)}, the number of attacks, before it counts.", small=True),
    ]
    parts += [html.paragraph(f"Not measured: {text}", small=True) for text in skipped]
    return Beside(WORD, TITLE, f"pictures from the weights: {said}; {figure_text(best)} ({best.title})", parts)


COLUMNS = ("attack", "knows", "shadows", "finds", "p", NOTHING, SHUFFLED, OTHERS, CEILING)


def cells(row: OneRow) -> list[str]:
    """One line of the table."""
    shown = [number(row, row.controls[name]) if name in row.controls else "-" for name in COLUMNS[5:]]
    return [row.title, ", ".join(row.knows), str(row.shadows), figure_text(row), p_text(row.p), *shown]


def figure_text(row: OneRow) -> str:
    """``AUC .61 [.52, .69], 40 + 40 pictures`` or ``rank 3 of 50 sets``."""
    if row.kind == AUC:
        return f"AUC {row.value:.2f} [{row.low:.2f}, {row.high:.2f}], {row.members} + {row.others} pictures"
    return f"rank {row.value:.0f} of {row.others} sets of {row.members} pictures"


def number(row: OneRow, value: float) -> str:
    """A control's figure."""
    return f"{value:.2f}" if row.kind == AUC else f"rank {value:.0f}"
