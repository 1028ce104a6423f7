"""AFHQ's raw archive -> the flat folder of configs/afhq.toml: 3,000 captioned pictures of cats, dogs and wild animals.

python -m tools.convert_afhq --images afhq.zip --output data/afhq
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath

from tqdm import tqdm

from library.errors import InputError
from library.seeding import permutation
from tools.blip import Blip
from tools.picture_archive import PictureArchive, empty_folder, write_pair

WORDS = {"cat": "a photo of a cat", "dog": "a photo of a dog", "wild": "a photo of a wild animal"}


def choose(names: list[str], count: int, seed: int) -> list[str]:
    """``count`` pictures, drawn in equal numbers from train/<kind>/.

    Raises:
        InputError: too few pictures of a kind.
    """
    chosen = []
    for place, kind in enumerate(WORDS):
        mine = [name for name in names if PurePosixPath(name).parts[-3:-1] == ("train", kind)]
        wanted = count // 3 + (place < count % 3)
        if len(mine) < wanted:
            raise InputError(
                f"{wanted} pictures of train/{kind} are needed, but the archive has {len(mine)}; lower --count"
            )
        chosen += [mine[index] for index in permutation(len(mine), seed, "afhq", kind)[:wanted]]
    return sorted(chosen)


def main(words: Sequence[str]) -> int:
    """Convert, and print what was written and how to train on it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="afhq, as a folder or a zip file with train/cat, dog, wild")
    parser.add_argument("--output", required=True, help="folder to write, e.g. data/afhq")
    parser.add_argument("--count", type=int, default=3000, help="pictures in total; the paper has 4 x 750")
    parser.add_argument("--blip", help="folder or hub id of a BLIP captioning model; else the kind is the caption")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(words)
    try:
        archive = PictureArchive(arguments.images)
        chosen = choose(archive.names, arguments.count, arguments.seed)
        blip = Blip(arguments.blip) if arguments.blip else None
        folder = empty_folder(arguments.output)
        for name in tqdm(chosen, unit="image"):
            picture = archive.square(name, arguments.side)
            caption = blip.caption(picture) if blip else WORDS[PurePosixPath(name).parts[-2]]
            write_pair(folder, PurePosixPath(name).stem, picture, caption)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(chosen)} pictures in {folder}")
    print(f"train: bash SPLoRA.sh --config_file configs/afhq.toml --train_data_dir {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
