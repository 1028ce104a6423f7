"""Puts painted pictures into docs/pictures_from_weights.md: python -m tools.pictures_from_weights OUT.

OUT is the --out of benchmarks/pictures_of_weights.py. The blocks ``painted`` and ``capacity`` come from its
pictures.json, docs/pictures_from_weights.png from its sheet.safetensors: a column for each of a few victims of the
demo, drawn blindly, a line for what was private, for what each attack made of the weights, and for the controls.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from library.audit.reconstruction.pictures.attribution import HELD_OUT, PRIVATE
from library.audit.reconstruction.pictures.contact_sheet import contact_sheet
from library.audit.reconstruction.retrieval import share_text
from library.audit.report.sections.weights_page import figure_of, number
from library.errors import InputError
from library.incoming.texts import read_json
from library.plain_text import markdown_table
from library.tensor_files import read_tensors
from tools.does_it_hold import filled

DOCS = Path(__file__).parent.parent / "docs"
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
    encoder = f"the encoder took {steps} steps" if steps else "**the encoder was not run here**, so it has no row"
    return (
        f"{victims} victims; {encoder}. Chance: top-1 {100 / victims:.1f} %, AUC .5. "
        "The cosines are those to held-out pictures.\n\n" + markdown_table(head, lines)
    )


def capacity_table(result: Mapping[str, Any]) -> str:
    """What an embedding that was fitted to the private pictures shows on the base: no encoder can do better."""
    head = ("on the base alone", "space", "private: top-1", "AUC", "held-out: top-1", "AUC")
    if not result["capacity"]:
        return "Not measured here.\n"
    lines = [
        [private["row"], private["space"], *ranks(private), *ranks(held_out)]
        for private, held_out in pairs(result["capacity"])
    ]
    return markdown_table(head, lines)


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


BLOCKS = {"painted": painted_table, "capacity": capacity_table}


def main(arguments: list[str], docs: Path = DOCS) -> int:
    """Write tables and picture; returns 0. Raises: InputError for a folder without a finished measurement."""
    if len(arguments) != 1:
        raise InputError("python -m tools.pictures_from_weights takes the --out of a finished measurement alone")
    sheet, found = (Path(arguments[0]) / name for name in ("sheet.safetensors", "pictures.json"))
    for file in (sheet, found):
        if not file.is_file():
            raise InputError(f"'{file}' is missing; run benchmarks/pictures_of_weights.py to its end first")
    tensors, metadata = read_tensors(sheet)
    names = metadata.get("rows", "").split("\n")
    if sorted(names) != sorted(tensors):
        raise InputError(f"'{sheet}' does not name its rows; write it again with --stages sheet")
    result = read_json(found, f"'{found}'")
    if not isinstance(result, dict) or not {"table", "capacity", "victims", "encoder_steps"} <= set(result):
        raise InputError(f"'{found}' holds no tables; write it again with --stages score")
    page = docs / "pictures_from_weights.md"
    text = page.read_text(encoding="utf-8")
    for name, content in BLOCKS.items():
        text = filled(text, name, content(result))
    page.write_text(text, encoding="utf-8")
    drawn = contact_sheet([(name, tensors[name]) for name in names], metadata.get("title", ""))
    (docs / "pictures_from_weights.png").write_bytes(drawn)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(str(error))
