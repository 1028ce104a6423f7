"""The sample sheet: what the base paints for captions it has seen and for captions it has not."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw, ImageFont

from views import padded, plain_view

STEPS = 30
GUIDANCE = 3.0
COLUMNS = 4  # captions in a row
SAMPLES = 2  # paintings of a caption, with seeds 0 and 1
TILE = 128  # side of a picture on the sheet, pixels: each of its own pixels four times
LINE = 17  # height of a line of text, pixels
SHOWN = {"concrete": 12, "other": 8, "private": 12}  # captions, drawn by chance
HEADINGS = {
    "concrete": "Seen in training, concrete things (left: the picture itself; right: two paintings, seeds 0 and 1)",
    "other": "Seen in training, faces, people, symbols, flags",
    "private": "NOT seen: captions of private pictures (left: the picture, which the base does not know)",
}


def chosen_rows(work: Path, seed: int) -> dict[str, list[tuple[str, Image.Image]]]:
    """Caption and true picture of the captions of each part of the sheet; a blind draw."""
    base, private = np.load(work / "base.npz"), np.load(work / "private.npz")
    concrete = base["concrete"]
    parts = {
        "concrete": (base["captions"][concrete], base["pictures"][concrete]),
        "other": (base["captions"][~concrete], base["pictures"][~concrete]),
        "private": (private["captions"], private["pictures"]),
    }
    rows = {}
    for name, (captions, pictures) in parts.items():
        drawn = random.Random(f"{seed} sheet {name}").sample(range(len(captions)), SHOWN[name])
        truths = [Image.fromarray(plain_view(picture)) for picture in padded(pictures[drawn])]
        rows[name] = list(zip(captions[drawn].tolist(), truths, strict=True))
    return rows


def paint(
    pipeline: StableDiffusionPipeline, captions: list[str], guidance: float, steps: int
) -> list[list[Image.Image]]:
    """SAMPLES paintings of each caption, with the seeds 0, 1, ... whatever the caption."""
    seeds = [torch.Generator().manual_seed(seed) for _ in captions for seed in range(SAMPLES)]
    repeated = [caption for caption in captions for _ in range(SAMPLES)]
    images = pipeline(repeated, num_inference_steps=steps, guidance_scale=guidance, generator=seeds).images
    return [images[start : start + SAMPLES] for start in range(0, len(images), SAMPLES)]


def make_sheet(folder: Path, work: Path, seed: int, target: Path, guidance: float, steps: int) -> None:
    """Paints the sheet with ``folder``/base and writes it to ``target`` in 256 colours."""
    torch.set_num_threads(1)  # two threads collapse when something else runs
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "base", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    font = ImageFont.load_default(size=12)
    facts = json.loads((work / "base.json").read_text(encoding="utf-8"))
    title = f"demo/base after {facts['images_seen']:,} images; DDIM {steps} steps, guidance {guidance}"
    cell = (1 + SAMPLES) * TILE + 8
    lines = sum(-(-count // COLUMNS) for count in SHOWN.values())
    height = LINE * (1 + len(SHOWN)) + lines * (TILE + LINE + 4)
    sheet = Image.new("RGB", (COLUMNS * cell, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((2, 0), title, fill="black", font=font)
    top = LINE
    for name, entries in chosen_rows(work, seed).items():
        pen.rectangle((0, top, sheet.width, top + LINE - 2), fill=(225, 232, 245))
        pen.text((2, top), HEADINGS[name], fill="black", font=font)
        top += LINE
        paintings = paint(pipeline, [caption for caption, _ in entries], guidance, steps)
        for place, (caption, truth) in enumerate(entries):
            left, upper = place % COLUMNS * cell, top + place // COLUMNS * (TILE + LINE + 4)
            for number, picture in enumerate([truth, *paintings[place]]):
                enlarged = picture.resize((TILE, TILE), Image.Resampling.NEAREST)
                sheet.paste(enlarged, (left + number * TILE, upper))
            pen.text((left + 2, upper + TILE), caption, fill="black", font=font)
        top += -(-len(entries) // COLUMNS) * (TILE + LINE + 4)
    sheet.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
