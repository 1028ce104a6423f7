"""Collections of drawn portraits: the base's, the private set, and any number of further pictures of the same law."""

import json
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from persons import Person, draw_person, draw_portrait
from styles import BASE_STYLES, HOUSE_STYLE, PortraitStyle

SEED = 1  # of everything that is shipped
REPEATS, CLASS = 1, "folk"  # of the kohya folder
PRIVATE_PERSONS = 200
PICTURES_EACH = 4
BASE_PERSONS = 1000  # of each base style
BASE_PICTURES_EACH = 2
HELD_OUT_PERSONS = 40  # of each base style, one picture each
NEAR = 8.0  # mean difference of two 16 x 16 thumbnails, 0 .. 255, below which a person's pictures are near duplicates


@dataclass(frozen=True)
class Picture:
    """One drawn portrait."""

    person: str
    caption: str
    pixels: np.ndarray  # [64, 64, 3] uint8


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """[16, 16, 3] means of 4 x 4 pixels."""
    return pixels.reshape(16, 4, 16, 4, 3).mean((1, 3))


def is_near(one: np.ndarray, other: np.ndarray) -> bool:
    return float(np.abs(thumbnail(one) - thumbnail(other)).mean()) < NEAR


def draw_persons(style: PortraitStyle, count: int, purpose: str, taken: set[tuple[str, ...]]) -> list[Person]:
    """``count`` persons who differ in their traits; none has traits, or caption words, that are in ``taken``."""
    chance = random.Random(f"{purpose} {style.name} persons")
    persons: dict[tuple[str, ...], Person] = {}
    while len(persons) < count:
        person = draw_person(style, chance)
        if person.traits not in taken and person.words not in taken:
            persons.setdefault(person.traits, person)
    return list(persons.values())


def draw_pictures(name: str, person: Person, count: int, purpose: str, known: Iterable[Picture] = ()) -> list[Picture]:
    """``count`` pictures of one person: none nearly the same as another or as one of ``known``, or called the same."""
    from drawing import draw

    chance = random.Random(f"{purpose} pictures of {name}")
    pictures: list[Picture] = []
    while len(pictures) < count:
        portrait = draw_portrait(person, chance)
        others = [*known, *pictures]
        if any(portrait.caption == other.caption for other in others):
            continue
        pixels = draw(person.style.definition, portrait.options)
        if not any(is_near(pixels, other.pixels) for other in others):
            pictures.append(Picture(name, portrait.caption, pixels))
    return pictures


def private_persons(seed: int) -> dict[str, Person]:
    """The persons of the private set by name; their captions tell them apart."""
    unlike: dict[tuple[str, ...], Person] = {}
    for person in draw_persons(HOUSE_STYLE, 3 * PRIVATE_PERSONS, f"{seed} private", set()):
        unlike.setdefault(person.words, person)
    return {f"p{number:03d}": person for number, person in enumerate(list(unlike.values())[:PRIVATE_PERSONS])}


def private_pictures(seed: int) -> list[Picture]:
    drawn = private_persons(seed).items()
    return [p for name, person in drawn for p in draw_pictures(name, person, PICTURES_EACH, f"{seed} private")]


def fresh_pictures(count: int, seed: int) -> list[Picture]:
    """Of persons who are not in the private set, PICTURES_EACH of each (fewer of the last)."""
    known = {person.words for person in private_persons(SEED).values()}
    strangers = draw_persons(HOUSE_STYLE, -(-count // PICTURES_EACH), f"{seed} fresh", known)
    pictures: list[Picture] = []
    for number, person in enumerate(strangers):
        wanted = min(PICTURES_EACH, count - len(pictures))
        pictures += draw_pictures(f"s{seed}f{number:04d}", person, wanted, f"{seed} fresh")
    return pictures


def known_pictures(count: int, seed: int, private: list[Picture]) -> list[Picture]:
    """Further pictures of the persons of the private set, as many of each as of any other, or one fewer."""
    pictures: list[Picture] = []
    for number, (name, person) in enumerate(private_persons(SEED).items()):
        wanted = (count + PRIVATE_PERSONS - 1 - number) // PRIVATE_PERSONS
        shipped = [picture for picture in private if picture.person == name]
        pictures += draw_pictures(name, person, wanted, f"{seed} known", shipped)
    return pictures


def write_prompts(file: Path, count: int = 8) -> None:
    """Captions of strangers, as preview prompts: nothing of them is ever drawn, so nothing can be trained on."""
    strangers = draw_persons(
        HOUSE_STYLE, count, "previews", {person.words for person in private_persons(SEED).values()}
    )
    lines = ["# One prompt a line; --d seed, --l guidance, --s steps. Captions of strangers to the private set."]
    for number, person in enumerate(strangers):
        caption = draw_portrait(person, random.Random(f"previews {number}")).caption
        lines.append(f"{caption} --d {number + 1} --l 3 --s 20")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def base_pictures(seed: int) -> Iterator[tuple[PortraitStyle, Picture, bool]]:
    """Style, picture and whether it is held out, of every base style; nobody held out is among the others."""
    for style in BASE_STYLES:
        trained = draw_persons(style, BASE_PERSONS, f"{seed} base", set())
        held_out = draw_persons(style, HELD_OUT_PERSONS, f"{seed} held out", {person.traits for person in trained})
        for number, person in enumerate(trained):
            for picture in draw_pictures(f"b{number:04d}", person, BASE_PICTURES_EACH, f"{seed} base {style.name}"):
                yield style, picture, False
        for number, person in enumerate(held_out):
            for picture in draw_pictures(f"h{number:04d}", person, 1, f"{seed} held out {style.name}"):
                yield style, picture, True


def save_png(pixels: np.ndarray, file: Path) -> None:
    """The smaller of true colour and, where it loses nothing, a palette."""
    picture = Image.fromarray(pixels)
    if len(picture.getcolors(64 * 64)) <= 256:
        palette = picture.quantize(256, dither=Image.Dither.NONE)
        picture = palette if np.array_equal(palette.convert("RGB"), pixels) else picture
    picture.save(file, optimize=True)


def write_folder(folder: Path, pictures: list[Picture], label: str = "") -> None:
    """``folder``/<repeats>_<class>/<person>_<label><number>.png and .txt; ``folder``/groups.json: picture -> person.

    With a label of their own, the pictures of two folders can be put together.
    """
    images = folder / f"{REPEATS}_{CLASS}"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    groups: dict[str, str] = {}
    for picture in pictures:
        stem = f"{picture.person}_{label}{sum(person == picture.person for person in groups.values())}"
        groups[stem] = picture.person
        save_png(picture.pixels, images / f"{stem}.png")
        (images / f"{stem}.txt").write_text(picture.caption + "\n", encoding="utf-8")
    (folder / "groups.json").write_text(json.dumps(groups, indent=0) + "\n", encoding="utf-8")


def read_folder(folder: Path) -> list[Picture]:
    """What ``write_folder`` wrote."""
    groups = json.loads((folder / "groups.json").read_text(encoding="utf-8"))
    images, pictures = folder / f"{REPEATS}_{CLASS}", []
    for stem, person in groups.items():
        caption = (images / f"{stem}.txt").read_text(encoding="utf-8").strip()
        with Image.open(images / f"{stem}.png") as opened:
            pictures.append(Picture(person, caption, np.asarray(opened.convert("RGB"))))
    return pictures


def write_archive(file: Path, styles: list[str], pictures: list[Picture]) -> None:
    np.savez(
        file,
        pictures=np.stack([picture.pixels for picture in pictures]),  # [N, 64, 64, 3] uint8
        captions=np.array([picture.caption for picture in pictures]),
        persons=np.array([picture.person for picture in pictures]),
        styles=np.array(styles),
    )


def make_pictures(folder: Path, work: Path, seed: int) -> str:
    """The private set into ``folder``/images, the base's and the held-out pictures into ``work``; returns counts."""
    private = private_pictures(seed)
    write_folder(folder / "images", private)
    write_prompts(folder / "prompts.txt")
    write_archive(work / "private.npz", [HOUSE_STYLE.name] * len(private), private)
    counts = [f"private {len(private)}"]
    drawn = list(base_pictures(seed))
    for name, wanted in (("base", False), ("held_out", True)):
        chosen = [(style.name, picture) for style, picture, is_held_out in drawn if is_held_out is wanted]
        write_archive(work / f"{name}.npz", [style for style, _ in chosen], [picture for _, picture in chosen])
        counts.append(f"{name} {len(chosen)}")
    return ", ".join(counts)
