"""Draws docs/pictures_from_weights.png: python -m tools.pictures_from_weights OUT, the --out of the measurement.

OUT/sheet.safetensors holds a blind draw of the demo's victims (benchmarks/pictures_of_weights.py writes it): a column
for each of them, a line for what was private, for what each attack made of the weights, and for the controls.
"""

import sys
from pathlib import Path

from library.audit.reconstruction.pictures.contact_sheet import contact_sheet
from library.errors import InputError
from library.tensor_files import read_tensors

DOCS = Path(__file__).parent.parent / "docs"


def main(arguments: list[str], docs: Path = DOCS) -> int:
    """Write the picture; returns 0. Raises: InputError for a folder without a finished measurement."""
    if len(arguments) != 1:
        raise InputError("python -m tools.pictures_from_weights takes the --out of a finished measurement alone")
    file = Path(arguments[0]) / "sheet.safetensors"
    if not file.is_file():
        raise InputError(f"'{file}' is missing; run benchmarks/pictures_of_weights.py with --stages sheet first")
    tensors, metadata = read_tensors(file)
    names = metadata.get("rows", "").split("\n")
    if sorted(names) != sorted(tensors):
        raise InputError(f"'{file}' does not name its rows; write it again with --stages sheet")
    sheet = contact_sheet([(name, tensors[name]) for name in names], metadata.get("title", ""))
    (docs / "pictures_from_weights.png").write_bytes(sheet)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(str(error))
