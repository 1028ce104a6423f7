"""Draws docs/pictures_from_weights.png: python -m tools.pictures_from_weights OUT, the --out of the measurement.

OUT/sheet.safetensors holds a blind draw of the demo's victims (benchmarks/pictures_of_weights.py writes it): a column
for each of them, a line for what was private, for what each attack made of the weights, and for the controls.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from library.errors import InputError
from library.tensor_files import read_tensors

DOCS = Path(__file__).parent.parent / "docs"
LABEL, GAP, LINE = 300, 12, 18  # pixels: width of the names of the rows, between persons, of a heading


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
    sheet([(name, tensors[name]) for name in names], metadata.get("title", "")).save(
        docs / "pictures_from_weights.png", optimize=True
    )
    return 0


def sheet(rows: list[tuple[str, Tensor]], title: str) -> Image.Image:
    """A line for each row, a column for each person.

    Args:
        rows: name and pictures [P, S, 3, h, w] uint8; a name that starts with "#" is a heading without pictures.
    """
    shown = [pictures for name, pictures in rows if not name.startswith("#")]
    most = max(pictures.shape[1] for pictures in shown)
    persons, side = shown[0].shape[0], shown[0].shape[-1]
    column = most * side + GAP
    height = LINE + sum(LINE if name.startswith("#") else side + 2 for name, _ in rows)
    picture = Image.new("RGB", (LABEL + persons * column, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    pen.text((2, 2), title, fill="black", font=font)
    top = LINE
    for name, pictures in rows:
        if name.startswith("#"):
            pen.rectangle((0, top, picture.width, top + LINE - 2), fill=(225, 232, 245))
            pen.text((2, top + 1), name[1:].strip(), fill="black", font=font)
            top += LINE
            continue
        pen.text((2, top + side // 2 - 8), name, fill="black", font=font)
        for person, some in enumerate(pictures):
            for place, one in enumerate(some):
                tile = Image.fromarray(one.permute(1, 2, 0).numpy())
                picture.paste(tile, (LABEL + person * column + place * side, top))
        top += side + 2
    return picture.quantize(256)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(str(error))
