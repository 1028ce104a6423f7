"""CelebA's raw archive -> the folders of configs/celeba.toml: the paper's Small, Large, Gender and Varying.

python -m tools.convert_celeba small --images img_align_celeba.zip --identities identity_CelebA.txt \
    --attributes list_attr_celeba.txt --output data/celeba_small
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from library.data.examples import pixel_hash
from library.data.split import SIDES
from library.errors import InputError, shortened
from library.seeding import permutation
from library.tensor_files import write_whole
from tools.blip import Blip
from tools.picture_archive import PictureArchive, empty_folder, write_pair


class Preset(NamedTuple):
    """How many people, and how many pictures of each (arXiv 2402.11989, appendix E, table 4)."""

    people: int
    least: int  # pictures of a person
    most: int
    total: int  # pictures
    women: int | None = None  # among the people; None: any number


PRESETS = {
    "small": Preset(25, 8, 8, 200),
    "large": Preset(100, 8, 8, 800),
    "gender": Preset(20, 8, 8, 160, women=14),
    "varying": Preset(100, 1, 4, 252),
}
HAIR = {"Black_Hair": "black", "Blond_Hair": "blond", "Brown_Hair": "brown", "Gray_Hair": "gray"}
WORN = {"Eyeglasses": "glasses", "Wearing_Hat": "a hat", "Wearing_Earrings": "earrings", "Wearing_Necktie": "a necktie"}


def read_identities(path: str) -> dict[int, list[str]]:
    """File names of each person, from lines like ``000001.jpg 2880``.

    Raises:
        InputError: a missing file, or lines of another form.
    """
    people: dict[int, list[str]] = {}
    for number, line in enumerate(_lines(path, "identities"), start=1):
        words = line.split()
        if len(words) != 2 or not words[1].isdigit():
            raise InputError(f"identities '{path}' line {number}: expected a file name and a number, got {line!r}")
        people.setdefault(int(words[1]), []).append(words[0])
    return {person: sorted(names) for person, names in people.items()}


def read_attributes(path: str) -> dict[str, set[str]]:
    """The attributes of each picture, from a file with a count, a line of names, and lines of a name with -1 and 1.

    Raises:
        InputError: a missing file, or lines of another form.
    """
    lines = _lines(path, "attributes")
    if len(lines) < 2 or "Male" not in lines[1].split():
        raise InputError(f"attributes '{path}': line 2 must name the attributes (Male, Smiling, ...)")
    names = lines[1].split()
    found: dict[str, set[str]] = {}
    for number, line in enumerate(lines[2:], start=3):
        file, *signs = line.split()
        if len(signs) != len(names):
            raise InputError(f"attributes '{path}' line {number}: {len(signs)} values for {len(names)} names")
        found[file] = {name for name, sign in zip(names, signs, strict=True) if sign == "1"}
    return found


def _lines(path: str, name: str) -> list[str]:
    if not Path(path).is_file():
        raise InputError(f"{name} '{path}' is not a file")
    return [line for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def sentence(shown: set[str]) -> str:
    """A plain caption from the attributes."""
    words = ["a"]
    words += ["smiling"] if "Smiling" in shown else []
    words += ["young"] if "Young" in shown else []
    words.append("man" if "Male" in shown else "woman")
    hair = [colour for name, colour in HAIR.items() if name in shown]
    parts = [f"{' '.join(hair)} hair"] if hair else []
    parts += ["a beard"] if "Male" in shown and "No_Beard" not in shown else []
    text = " ".join(words) + (f" with {' and '.join(parts)}" if parts else "")
    worn = [thing for name, thing in WORN.items() if name in shown]
    return text + (f" wearing {' and '.join(worn)}" if worn else "")


def choose(
    preset: Preset, people: dict[int, list[str]], is_woman: Callable[[int], bool], seed: int
) -> dict[int, list[str]]:
    """Draw people and pictures; the draw depends only on the seed and the identity file.

    Raises:
        InputError: too few people with enough pictures.
    """
    able = [person for person in sorted(people) if len(people[person]) >= preset.most]
    order = [able[index] for index in permutation(len(able), seed, "celeba", "people")]
    if preset.women is None:
        chosen = order[: preset.people]
    else:
        women = [person for person in order if is_woman(person)][: preset.women]
        chosen = women + [person for person in order if not is_woman(person)][: preset.people - len(women)]
    if len(chosen) < preset.people or (preset.women is not None and len(women) < preset.women):
        raise InputError(
            f"{preset.people} people with {preset.most} pictures each are needed"
            + (f", {preset.women} of them women" if preset.women is not None else "")
            + f"; the archive has {len(able)} people with that many"
        )
    counts = draw_counts(preset, seed)
    pictures = {}
    for person, count in zip(chosen, counts, strict=True):
        names = people[person]
        pictures[person] = [names[index] for index in permutation(len(names), seed, "celeba", person)[:count]]
    return pictures


def draw_counts(preset: Preset, seed: int) -> list[int]:
    """Pictures of each person: uniform on least..most, then changed one by one until the total is right."""
    span = preset.most - preset.least + 1
    counts = [preset.least + permutation(span, seed, "celeba", "count", place)[0] for place in range(preset.people)]
    for place in cycle(permutation(preset.people, seed, "celeba", "correction")):
        missing = preset.total - sum(counts)
        if missing == 0:
            return counts
        counts[place] = min(max(counts[place] + (1 if missing > 0 else -1), preset.least), preset.most)
    raise AssertionError("a cycle never ends")


def deal_sides(pictures: dict[int, list[str]]) -> dict[str, str]:
    """The paper's sides: pictures go to the sides in turn, so that each side has two of a person's eight."""
    return dict(zip((name for names in pictures.values() for name in names), cycle(SIDES), strict=False))


def convert(arguments: argparse.Namespace) -> dict[str, int]:
    """Write folders 1_cele<ID> and paper_split.json; returns images per side.

    Raises:
        InputError: missing files, people or pictures.
    """
    preset = PRESETS[arguments.preset]
    attributes = read_attributes(arguments.attributes) if arguments.attributes else {}
    if not attributes and (preset.women is not None or not arguments.blip):
        raise InputError("--attributes list_attr_celeba.txt is needed: for Gender, and for captions without --blip")
    people = read_identities(arguments.identities)
    archive = PictureArchive(arguments.images)
    inside = archive.by_file_name()
    people = {person: [name for name in names if name in inside] for person, names in people.items()}
    chosen = choose(
        preset, people, lambda person: "Male" not in attributes.get(people[person][0], set()), arguments.seed
    )
    silent = [name for names in chosen.values() for name in names if name not in attributes]
    if silent and not arguments.blip:
        raise InputError(
            f"attributes '{arguments.attributes}' do not list {shortened(silent)}; give the complete file, or --blip"
        )
    blip = Blip(arguments.blip) if arguments.blip else None
    sides, folder, images = deal_sides(chosen), empty_folder(arguments.output), []
    for person, name in tqdm([(person, name) for person, names in chosen.items() for name in names], unit="image"):
        picture = archive.square(inside[name], arguments.side)
        caption = f"cele{person}, {blip.caption(picture) if blip else sentence(attributes[name])}"
        place = folder / f"1_cele{person}"
        write_pair(place, Path(name).stem, picture, caption)
        pixels = pixel_hash(picture)
        path = (place / f"{Path(name).stem}.png").resolve().as_posix()
        images.append({"pixels": pixels, "path": path, "side": sides[name], "group": pixels, "repeats": 1})
    content = {"format": 1, "seed": arguments.seed, "inclusion": "fixed", "images": images}
    write_whole(folder / "paper_split.json", json.dumps(content, indent=1) + "\n", private=True)
    return {side: sum(entry["side"] == side for entry in images) for side in SIDES}


def main(words: Sequence[str]) -> int:
    """Convert, and print what was written and how to train on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=tuple(PRESETS))
    parser.add_argument("--images", required=True, help="img_align_celeba, as a folder or a zip file")
    parser.add_argument("--identities", required=True, help="identity_CelebA.txt")
    parser.add_argument("--attributes", help="list_attr_celeba.txt: for captions, and for Gender")
    parser.add_argument("--output", required=True, help="folder to write, e.g. data/celeba_small")
    parser.add_argument(
        "--blip", help="folder or hub id of a BLIP captioning model; else captions are made from attributes"
    )
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(words)
    try:
        sizes = convert(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(", ".join(f"{count} {side}" for side, count in sizes.items()))
    print(f"train: bash SPLoRA.sh --config_file configs/celeba.toml --train_data_dir {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
