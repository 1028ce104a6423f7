"""The blind sheet: what the base paints for captions of styles that it knows, and for captions of the house style."""

import json
import random
import textwrap
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

STEPS = 30
GUIDANCE = 3.0
SAMPLES = 2  # paintings of a caption, with seeds 0 and 1
COLUMNS = 4  # captions in a row
TILE = 128  # side of a picture on the sheet, pixels: each of its own pixels four times
LINE, LINES = 13, 3  # height of a line of text in pixels, lines of a caption
SHOWN = {"held_out": 20, "private": 12}  # captions, drawn by chance
HEADINGS = {
    "held_out": "Known styles, captions not trained on (left: the drawing; right: two paintings of the base)",
    "private": "The house style, which the base does not know (left: the drawing; right: two paintings of the base)",
}


def blind_draw(work: Path, name: str, seed: int) -> list[tuple[str, Image.Image]]:
    """Captions and their drawings, picked by chance alone."""
    archive = np.load(work / f"{name}.npz")
    chosen = random.Random(f"{seed} sheet {name}").sample(range(len(archive["captions"])), SHOWN[name])
    pictures = archive["pictures"]
    return [(str(archive["captions"][i]), Image.fromarray(pictures[i])) for i in chosen]


def paint(
    pipeline: StableDiffusionPipeline, captions: list[str], guidance: float, steps: int
) -> list[list[Image.Image]]:
    """SAMPLES paintings of each caption, with the seeds 0, 1, ... whatever the caption."""
    seeds = [torch.Generator().manual_seed(seed) for _ in captions for seed in range(SAMPLES)]
    repeated = [caption for caption in captions for _ in range(SAMPLES)]
    images = pipeline(repeated, num_inference_steps=steps, guidance_scale=guidance, generator=seeds).images
    return [images[start : start + SAMPLES] for start in range(0, len(images), SAMPLES)]


def load_base(folder: Path) -> StableDiffusionPipeline:
    torch.set_num_threads(1)  # two threads collapse when something else runs
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "base", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def place(sheet: Image.Image, corner: tuple[int, int], caption: str, pictures: list[Image.Image]) -> None:
    """The pictures side by side and their caption below."""
    left, upper = corner
    for number, picture in enumerate(pictures):
        sheet.paste(picture.resize((TILE, TILE), Image.Resampling.NEAREST), (left + number * TILE, upper))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, line in enumerate(textwrap.wrap(caption, 64)[:LINES]):
        pen.text((left + 2, upper + TILE + number * LINE), line, fill="black", font=font)


def make_sheets(folder: Path, work: Path, seed: int) -> None:
    """``folder``/sheet.png, in 256 colours."""
    pipeline = load_base(folder)
    facts = json.loads((work / "base.json").read_text(encoding="utf-8"))
    title = f"base after {facts['images_seen']:,} images; DDIM {STEPS} steps, guidance {GUIDANCE}, seeds 0 and 1"
    cell, row = (1 + SAMPLES) * TILE + 8, TILE + LINES * LINE + 6
    rows = sum(-(-count // COLUMNS) for count in SHOWN.values())
    sheet = Image.new("RGB", (COLUMNS * cell, rows * row + (1 + len(SHOWN)) * (LINE + 4)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    pen.text((2, 0), title, fill="black", font=font)
    top = LINE + 4
    for name in SHOWN:
        pen.rectangle((0, top, sheet.width, top + LINE + 2), fill=(225, 232, 245))
        pen.text((2, top), HEADINGS[name], fill="black", font=font)
        top += LINE + 4
        entries = blind_draw(work, name, seed)
        paintings = paint(pipeline, [caption for caption, _ in entries], GUIDANCE, STEPS)
        for number, (caption, drawing) in enumerate(entries):
            corner = (number % COLUMNS * cell, top + number // COLUMNS * row)
            place(sheet, corner, caption, [drawing, *paintings[number]])
        top += -(-len(entries) // COLUMNS) * row
    sheet.quantize(256, dither=Image.Dither.NONE).save(folder / "sheet.png", optimize=True)
