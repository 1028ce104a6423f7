"""A sheet of one demo run: each prompt's private picture beside what the base and the LoRA paint for it.

python demo/show_run.py OUTPUT_DIR SHEET.png [PROMPTS.txt]
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

HERE = Path(__file__).parent
ZOOM, MARGIN, LABEL = 2, 6, 14  # pixels but for the zoom


def captions_of(prompts: Path) -> list[str]:
    """The prompts without their options."""
    lines = prompts.read_text(encoding="utf-8").splitlines()
    return [re.split(r"\s--", line)[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def private_picture(caption: str) -> Image.Image:
    """The private picture of a caption."""
    for text in sorted((HERE / "images").glob("*/*.txt")):
        if text.read_text(encoding="utf-8").strip() == caption:
            return Image.open(text.with_suffix(".png")).convert("RGB")
    raise SystemExit(f"no private picture has the caption {caption!r}")


def distance(one: Image.Image, other: Image.Image) -> float:
    """Root mean squared difference of two pictures at a quarter of their side, 0 .. 255."""
    small = [np.asarray(picture.resize((16, 16), Image.Resampling.BOX), dtype=np.float64) for picture in (one, other)]
    return float(np.sqrt(((small[0] - small[1]) ** 2).mean()))


def main(output: Path, sheet_file: Path, prompts: Path) -> None:
    """Paste the three rows, print the mean distances to the private pictures."""
    captions = captions_of(prompts)
    rows = {"private": [private_picture(caption) for caption in captions]}
    for stage in ("base", "final"):
        files = sorted((output / "sample").glob(f"*_{stage}_[0-9][0-9].png"))
        rows[stage] = [Image.open(file).convert("RGB") for file in files]
    names = {"private": "private picture", "base": "base model", "final": "with the LoRA"}
    side = 64 * ZOOM + MARGIN
    sheet = Image.new("RGB", (side * len(captions) + MARGIN, (side + LABEL) * 3 + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for line, (row, pictures) in enumerate(rows.items()):
        top = line * (side + LABEL)
        pen.text((MARGIN, top + 1), names[row], fill="black")
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((64 * ZOOM, 64 * ZOOM), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (column * side + MARGIN, top + LABEL))
    sheet.save(sheet_file, optimize=True)
    figures = {stage: np.mean([distance(a, b) for a, b in zip(rows[stage], rows["private"], strict=True)])
               for stage in ("base", "final")}  # fmt: skip
    print(
        json.dumps(
            {f"distance_{stage}": round(float(value), 1) for stage, value in figures.items()} | {"n": len(captions)}
        )
    )


if __name__ == "__main__":
    main(
        Path(sys.argv[1]), Path(sys.argv[2]), Path((sys.argv[3:] or [HERE.parent / "configs" / "demo_prompts.txt"])[0])
    )
