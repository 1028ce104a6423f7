"""Puts a finished measurement into docs/pictures_from_weights.md: python -m tools.leak_of_weights FINDINGS.json.

The blocks ``setting``, ``attacks``, ``unknown recipe``, ``defences`` and ``answers`` of the page, and the figure beside
it, come from the file that benchmarks/leak_of_weights.py writes; the words around them are written by hand.
"""

import sys
from pathlib import Path

from library.audit.report.sections.weights_page import (
    answers,
    attack_table,
    defence_figure,
    defence_table,
    setting,
    unknown_recipe_table,
)
from library.errors import InputError
from library.incoming.texts import read_json
from tools.does_it_hold import filled, standing_alone

DOCS = Path(__file__).parent.parent / "docs"
BLOCKS = {
    "setting": setting, "attacks": attack_table, "unknown recipe": unknown_recipe_table, "defences": defence_table,
    "answers": answers,
}  # fmt: skip


def main(arguments: list[str], docs: Path = DOCS) -> int:
    """Write the page; returns 0. Raises: InputError for a file without a finished measurement."""
    if len(arguments) != 1:
        raise InputError("python -m tools.leak_of_weights takes the findings of a measurement, and nothing else")
    file, page = Path(arguments[0]), docs / "pictures_from_weights.md"
    findings = read_json(file, f"'{file}'")
    if not isinstance(findings, dict) or "none" not in findings.get("defences", {}):
        raise InputError(f"'{file}' holds no undefended LoRAs; run benchmarks/leak_of_weights.py to its end")
    text = page.read_text(encoding="utf-8")
    for name, content in BLOCKS.items():
        text = filled(text, name, content(findings))
    page.write_text(text, encoding="utf-8")
    drawing = standing_alone(defence_figure(findings))
    (docs / "pictures_from_weights.svg").write_text(drawing, encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(str(error))
