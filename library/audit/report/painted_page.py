"""From pictures.json of benchmarks/pictures_of_weights.py to the two tables of painted pictures on its page."""

from collections.abc import Mapping, Sequence
from typing import Any

from library.audit.reconstruction.pictures.attribution import HELD_OUT, PRIVATE
from library.audit.reconstruction.retrieval import share_text
from library.audit.report.weights_page import figure_of, markdown, number

Line = Mapping[str, Any]
SHOWN = ("whitened",)  # spaces on the page; the others stand in pictures.json


def painted_table(result: Mapping[str, Any]) -> str:
    """Every attack and every control: where its pictures rank their person, and what the verdict is."""
    head = ("pictures", "space", "outputs", "private: top-1", "AUC", "held-out: top-1", "AUC", "cosine, own / others",
            "credited, private / held-out")  # fmt: skip
    lines = []
    for private, held_out in pairs(result["table"]):
        said = [verdict(one) for one in (private, held_out)]
        lines.append([
            private["row"], private["space"], str(private["outputs"]), *ranks(private), *ranks(held_out),
            f"{held_out['cosine_own']['value']:.2f} / {held_out['cosine_others']['value']:.2f}",
            " / ".join(said) if any(said) else "control",
        ])  # fmt: skip
    victims = result["victims"]
    steps = result["encoder_steps"]
    return (
        f"{victims} victims; the encoder took {steps} steps. Chance: top-1 {100 / victims:.1f} %, AUC .5. "
        "The cosines are those to held-out pictures.\n\n" + markdown(head, lines)
    )


def capacity_table(result: Mapping[str, Any]) -> str:
    """What an embedding that was fitted to the private pictures shows on the base: no encoder can do better."""
    head = ("on the base alone", "space", "private: top-1", "AUC", "held-out: top-1", "AUC")
    lines = [
        [private["row"], private["space"], *ranks(private), *ranks(held_out)]
        for private, held_out in pairs(result["capacity"])
    ]
    return markdown(head, lines)


def pairs(lines: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Each row against private pictures, and the same against held-out ones, in the spaces that are shown."""
    held_out = {(one["row"], one["space"]): one for one in lines if one["side"] == HELD_OUT}
    shown = [one for one in lines if one["side"] == PRIVATE and any(word in one["space"] for word in SHOWN)]
    return [(one, held_out[one["row"], one["space"]]) for one in shown]


def ranks(line: Line) -> tuple[str, str]:
    """Top-1 and AUC with intervals."""
    return share_text(figure_of(line["top_1"])), number(figure_of(line["auc"]))


def verdict(line: Line) -> str:
    """``yes``, or why not; empty for a control."""
    if "verdict" not in line:
        return ""
    return "yes" if line["verdict"]["credited"] else f"no ({line['verdict']['because']})"
