"""One sheet of several runs: what the base and each LoRA paint for the same captions and seeds.

python demo/show_run.py SHEET.png "plain LoRA=OUTPUT_DIR" "SPLoRA=OUTPUT_DIR"
"""

import re
import sys
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
ZOOM, MARGIN, LABEL = 2, 6, 16  # pixels but for the zoom
LINE, LINES, WIDTH = 11, 6, 22  # of a caption below its column: height in pixels, number, letters


def captions_of(prompts: Path) -> list[str]:
    """The prompts without their options and without the name of the style, which all share."""
    lines = prompts.read_text(encoding="utf-8").splitlines()
    texts = [re.split(r"\s--", line)[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return [text.partition(", ")[2] for text in texts]


def previews(output: Path, stage: str) -> list[Image.Image]:
    """The previews of one stage of a run, in the order of the prompts."""
    files = sorted((output / "sample").glob(f"*_{stage}_[0-9][0-9].png"))
    if not files:
        raise SystemExit(f"{output}/sample holds no previews of the stage '{stage}'; train with --sample_at_first")
    return [Image.open(file).convert("RGB") for file in files]


def make_sheet(rows: dict[str, list[Image.Image]], captions: list[str]) -> Image.Image:
    """Each row under its name, captions below the columns."""
    side, font = 64 * ZOOM + MARGIN, ImageFont.load_default(size=11)
    height = (side + LABEL) * len(rows) + LINES * LINE + 2 * MARGIN
    sheet = Image.new("RGB", (side * len(captions) + MARGIN, height), "white")
    pen = ImageDraw.Draw(sheet)
    for line, (name, pictures) in enumerate(rows.items()):
        top = line * (side + LABEL)
        pen.text((MARGIN, top + 1), name, fill="black", font=font)
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((64 * ZOOM, 64 * ZOOM), Image.Resampling.LANCZOS)
            sheet.paste(enlarged, (column * side + MARGIN, top + LABEL))
    for column, caption in enumerate(captions):
        for number, text in enumerate(textwrap.wrap(caption, WIDTH)[:LINES]):
            place = (column * side + MARGIN, (side + LABEL) * len(rows) + number * LINE)
            pen.text(place, text, fill="black", font=font)
    return sheet


def main(target: Path, runs: list[str]) -> None:
    """Paste the base's row and one of each run."""
    named = {name: Path(folder) for name, _, folder in (run.partition("=") for run in runs)}
    rows = {"base model": previews(next(iter(named.values())), "base")}
    rows |= {name: previews(folder, "final") for name, folder in named.items()}
    make_sheet(rows, captions_of(HERE / "prompts.txt")).quantize(256, dither=Image.Dither.NONE).save(
        target, optimize=True
    )


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in run for run in sys.argv[2:]):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
