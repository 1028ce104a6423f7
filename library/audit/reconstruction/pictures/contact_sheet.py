"""Pictures of several rows and persons on one sheet: what was private, what attacks made, what controls made."""

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LABEL, GAP, LINE = 300, 12, 18  # pixels: width of the names of the rows, between persons, of a heading
HEADING = "#"  # begins the name of a row without pictures


def contact_sheet(rows: Sequence[tuple[str, Tensor]], title: str) -> bytes:
    """A PNG with a line for each row and a column for each person.

    Args:
        rows: name and pictures [P, S, 3, h, w] uint8; of a heading (see ``HEADING``) the pictures do not count.
    """
    shown = [pictures for name, pictures in rows if not name.startswith(HEADING)]
    most = max(pictures.shape[1] for pictures in shown)
    persons, side, width = shown[0].shape[0], shown[0].shape[-2], shown[0].shape[-1]
    column = most * width + GAP
    height = LINE + sum(LINE if name.startswith(HEADING) else side + 2 for name, _ in rows)
    sheet = Image.new("RGB", (LABEL + persons * column, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    pen.text((2, 2), title, fill="black", font=font)
    top = LINE
    for name, pictures in rows:
        if name.startswith(HEADING):
            pen.rectangle((0, top, sheet.width, top + LINE - 2), fill=(225, 232, 245))
            pen.text((2, top + 1), name.removeprefix(HEADING).strip(), fill="black", font=font)
            top += LINE
            continue
        pen.text((2, top + side // 2 - 8), name, fill="black", font=font)
        for person, some in enumerate(pictures):
            for place, one in enumerate(some):
                tile = Image.fromarray(one.permute(1, 2, 0).numpy())
                sheet.paste(tile, (LABEL + person * column + place * width, top))
        top += side + 2
    written = io.BytesIO()
    sheet.save(written, format="PNG", optimize=True)
    return written.getvalue()
