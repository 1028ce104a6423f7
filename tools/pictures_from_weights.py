"""Puts painted pictures into docs/pictures_from_weights.md: python -m tools.pictures_from_weights OUT.

OUT is the --out of benchmarks/pictures_of_weights.py. The blocks ``painted`` and ``capacity`` come from its
pictures.json, docs/pictures_from_weights.png from its sheet.safetensors: a column for each of a few victims of the
demo, drawn blindly, a line for what was private, for what each attack made of the weights, and for the controls.
"""

import sys
from pathlib import Path

from library.audit.reconstruction.pictures.contact_sheet import contact_sheet
from library.audit.report.painted_page import capacity_table, painted_table
from library.errors import InputError
from library.incoming.texts import read_json
from library.tensor_files import read_tensors
from tools.does_it_hold import filled

DOCS = Path(__file__).parent.parent / "docs"
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
