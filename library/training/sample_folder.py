"""Previews on disk: numbered PNG files, and one sheet with the stages side by side."""

import io
import re
from pathlib import Path

from PIL import Image, ImageDraw

from library.tensor_files import private_folder, write_whole
from library.training.output_folder import OutputFolder

MARGIN, LABEL, ROW_LABEL = 4, 16, 56  # pixels


def write_previews(folder: Path, output_name: str, stage: str, images: list[Image.Image]) -> None:
    """Write ``last_e000001_00.png`` and so on. Neither names nor files contain prompts.

    Args:
        stage: "base", "e000001", "step00000050" or "final".
    """
    private_folder(folder)
    for index, image in enumerate(images):
        write_whole(folder / f"{output_name}_{stage}_{index:02d}.png", _png(image))


def write_sheet(output: OutputFolder) -> Path | None:
    """Put all previews of a run on one sheet: a row per prompt, a column per stage; None without any.

    Rows carry the prompt's number, which is the number in the file names; prompts stand on no sheet.
    """
    folder, output_name = output.samples(), output.output_name
    pattern = re.compile(re.escape(output_name) + r"_(base|e\d+|step\d+|final)_(\d+)\.png")
    found = {match.groups(): file for file in folder.glob("*.png") if (match := pattern.fullmatch(file.name))}
    if not found:
        return None
    stages = sorted({stage for stage, _ in found}, key=lambda stage: (stage == "final", stage != "base", stage))
    rows = sorted({row for _, row in found})
    pictures = {place: Image.open(file).convert("RGB") for place, file in found.items()}
    zoom = 2 if max(picture.width for picture in pictures.values()) <= 128 else 1
    width = max(picture.width for picture in pictures.values()) * zoom + MARGIN
    height = max(picture.height for picture in pictures.values()) * zoom + MARGIN
    sheet = Image.new("RGB", (ROW_LABEL + width * len(stages) + MARGIN, height * len(rows) + MARGIN + LABEL), "white")
    pen = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        pen.text((MARGIN, line * height + MARGIN + LABEL), f"prompt {row}", fill="black")
    for column, stage in enumerate(stages):
        pen.text((ROW_LABEL + column * width + MARGIN, 2), stage_title(stage), fill="black")
        for line, row in enumerate(rows):
            if (stage, row) in pictures:
                picture = pictures[stage, row]
                enlarged = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.LANCZOS)
                sheet.paste(enlarged, (ROW_LABEL + column * width + MARGIN, line * height + MARGIN + LABEL))
    path = folder / f"{output_name}_sheet.png"
    write_whole(path, _png(sheet))
    return path


def stage_title(stage: str) -> str:
    """``base model``, ``epoch 5``, ``step 50`` or ``final`` for the stage of a file name."""
    match = re.fullmatch(r"(e|step)(\d+)", stage)
    if match is None:
        return {"base": "base model"}.get(stage, stage)
    return f"{'epoch' if match[1] == 'e' else 'step'} {int(match[2])}"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
