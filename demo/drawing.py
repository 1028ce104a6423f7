"""From options to pixels, through the drawing packages, which nothing but this file needs."""

import io
import json
from functools import cache
from importlib.resources import files

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

SIDE = 64  # pixels


@cache
def style_of(definition: str) -> Style:
    return Style(json.loads(files("dicebear_styles").joinpath(f"{definition}.json").read_text("utf-8")))


def licence_of(definition: str) -> dict[str, dict[str, str]]:
    """Licence, creator and source of a style, as its definition states them."""
    return json.loads(files("dicebear_styles").joinpath(f"{definition}.json").read_text("utf-8"))["meta"]


def draw(definition: str, options: dict[str, object]) -> np.ndarray:
    """[SIDE, SIDE, 3] uint8."""
    svg = Avatar(style_of(definition), {"size": SIDE, **options}).to_string()
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
    return np.asarray(Image.open(io.BytesIO(bytes(drawn))).convert("RGB"))
