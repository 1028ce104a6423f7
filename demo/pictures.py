"""The pictures: drawn from the emoji font, grouped into families of near-duplicates, split into base and private."""

import json
import random
import re
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from names import named_families

FONT_SIZE = 109  # the only size of the font's bitmaps
CANVAS = 136  # width of one glyph, pixels
SIDE = 64  # side of the pictures that are trained on, pixels
CONCRETE = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
SKIN_TONES = range(0x1F3FB, 0x1F400)
NEAR = 0.27  # distance of two 16 x 16 thumbnails, as a share of their ink, below which they are one family
LARGEST_PRIVATE_FAMILY = 2  # pictures
PRIVATE_PICTURES = 480  # at least


@dataclass(frozen=True)
class Emoji:
    """One entry of Unicode's list."""

    text: str
    name: str
    group: str
    has_skin_tone: bool

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "_")

    @property
    def caption(self) -> str:
        return f"emoji of {self.name}"


def plain_name(name: str) -> str:
    """Lower-case ASCII letters, digits and single spaces; the symbols of keycaps become words."""
    name = name.replace("#", "number sign").replace("*", "asterisk").replace("&", "and").replace("’", "")
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9]+", ascii_name.replace("'", "").replace(".", "")))


def read_emoji(listing: Path) -> list[Emoji]:
    """Fully qualified entries of Unicode's emoji-test.txt, in its order."""
    found, group = [], ""
    for line in listing.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        match = re.match(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (.+)", line)
        if match:
            points = [int(point, 16) for point in match[1].split()]
            toned = any(point in SKIN_TONES for point in points)
            found.append(Emoji("".join(map(chr, points)), plain_name(match[2]), group, toned))
    return found


def draw(emoji: Emoji, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The glyph on a white square of side CANVAS; None if the font has no single glyph for it."""
    if round(font.getlength(emoji.text)) != CANVAS:
        return None
    square = Image.new("RGB", (CANVAS, CANVAS), "white")
    ImageDraw.Draw(square).text((CANVAS // 2, CANVAS // 2), emoji.text, font=font, embedded_color=True, anchor="mm")
    return square


def drawn_once(listing: Path, font_file: Path) -> tuple[list[Emoji], list[Image.Image]]:
    """All emoji the font can draw, without pixel-exact duplicates and second uses of a name."""
    font = ImageFont.truetype(str(font_file), FONT_SIZE)
    emoji, squares = [], []
    seen = {draw(Emoji(chr(0x10FFFE), "", "", False), font).tobytes()}  # what an unknown character looks like
    names: set[str] = set()
    for entry in read_emoji(listing):
        square = draw(entry, font)
        if square is None or square.tobytes() in seen or entry.name in names:
            continue
        seen.add(square.tobytes())
        names.add(entry.name)
        emoji.append(entry)
        squares.append(square)
    return emoji, squares


def near_pairs(squares: list[Image.Image]) -> list[tuple[int, int]]:
    """Pairs whose 16 x 16 thumbnails are closer than NEAR, as they are or one of them mirrored."""
    small = [np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS), np.float32) / 255 for square in squares]
    thumbnails = 1 - np.stack(small)  # [N, 16, 16, 3], white = 0
    flat = thumbnails.reshape(len(squares), -1)
    mirrored = thumbnails[:, :, ::-1].reshape(len(squares), -1)
    ink = (flat**2).sum(1)
    limit = NEAR**2 * np.minimum(ink[:, None], ink[None])
    total = ink[:, None] + ink[None]
    near = (total - 2 * flat @ flat.T < limit) | (total - 2 * flat @ mirrored.T < limit)
    return [(int(i), int(j)) for i, j in zip(*np.nonzero(near), strict=True) if i < j]


def families_of(emoji: list[Emoji], squares: list[Image.Image]) -> list[list[int]]:
    """Union-find over likeness in name and in pixels: every position belongs to exactly one family."""
    parent = list(range(len(emoji)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    pairs = near_pairs(squares)
    for members in named_families([entry.name for entry in emoji]):
        pairs += [(members[0], other) for other in members[1:]]
    for i, j in pairs:
        first, second = sorted((root(i), root(j)))
        parent[second] = first
    families: dict[int, list[int]] = {}
    for i in range(len(emoji)):
        families.setdefault(root(i), []).append(i)
    return list(families.values())


def private_families(emoji: list[Emoji], families: list[list[int]], seed: int) -> list[list[int]]:
    """A random draw of small families of concrete things, PRIVATE_PICTURES pictures or a few more."""
    concrete = [family for family in families if all(emoji[i].group in CONCRETE for i in family)]
    small = [family for family in concrete if len(family) <= LARGEST_PRIVATE_FAMILY]
    random.Random(f"{seed} private families").shuffle(small)
    chosen: list[list[int]] = []
    while sum(map(len, chosen)) < PRIVATE_PICTURES:
        chosen.append(small.pop())
    return chosen


def write_private(folder: Path, emoji: list[Emoji], squares: list[Image.Image], families: list[list[int]]) -> None:
    """demo/images/10_emoji/<slug>.png and .txt, and demo/images/groups.json."""
    images = folder / "images" / "10_emoji"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    family_of = {}
    for family in families:
        for i in family:
            picture = squares[i].resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            picture.save(images / f"{emoji[i].slug}.png", optimize=True)
            (images / f"{emoji[i].slug}.txt").write_text(emoji[i].caption + "\n", encoding="utf-8")
            family_of[emoji[i].slug] = emoji[family[0]].slug
    (folder / "images" / "groups.json").write_text(
        json.dumps(family_of, indent=0, sort_keys=True) + "\n", encoding="utf-8"
    )


def make_pictures(folder: Path, work: Path, listing: Path, font_file: Path, seed: int) -> str:
    """Writes the private pictures into ``folder``, the base's and the held-out ones into ``work``; returns counts."""
    drawn, drawn_squares = drawn_once(listing, font_file)
    kept = [i for i, entry in enumerate(drawn) if not entry.has_skin_tone]
    emoji, squares = [drawn[i] for i in kept], [drawn_squares[i] for i in kept]
    families = families_of(emoji, squares)
    private = private_families(emoji, families, seed)
    write_private(folder, emoji, squares, private)
    is_private = {i for family in private for i in family}
    for name, wanted in (("base", False), ("private", True)):
        chosen = [i for i in range(len(emoji)) if (i in is_private) is wanted]
        np.savez(
            work / f"{name}.npz",
            pictures=np.stack([np.asarray(squares[i]) for i in chosen]),  # [N, CANVAS, CANVAS, 3] uint8
            captions=np.array([emoji[i].caption for i in chosen]),
            groups=np.array([emoji[i].group for i in chosen]),
            concrete=np.array([emoji[i].group in CONCRETE for i in chosen]),
        )
    concrete = [family for family in families if emoji[family[0]].group in CONCRETE]
    others = len([family for family in concrete if not is_private.intersection(family)])
    return (
        f"{len(is_private)} private pictures in {len(private)} families; {len(emoji) - len(is_private)} base pictures, "
        f"{sum(e.group in CONCRETE for e in emoji) - len(is_private)} of them concrete, in {others} families"
    )
