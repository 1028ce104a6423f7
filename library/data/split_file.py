"""split.json and the split's secret: written, read, and where a run gets its sides from."""

import hashlib
import json
import logging
import re
import secrets
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from library.data.captions import plain_caption
from library.data.examples import Example
from library.data.split import SIDES, Split, checked, draw_split, in_fixed_order
from library.errors import Faults, InputError, shortened
from library.incoming.files import is_file, read_text
from library.incoming.shapes import Either, ListOf, Null, Number, Record, Shape, Text, Whole, check_shape
from library.incoming.texts import read_json
from library.tensor_files import write_whole

logger = logging.getLogger(__name__)
FORMAT = 2  # 1: no secret; the sides depended on a seed of 31 bits
SECRET_BYTES = 32  # of a fresh secret
LEAST_SECRET_BYTES = 16  # 128 bits cannot be searched
IMAGE = Record(
    {"pixels": Text(200), "path": Text(4096, is_path=True), "side": Text(choices=SIDES),
     "group": Text(1000, is_path=True)},
    {"repeats": Whole(), "caption_sha256": Text(200)},
)  # fmt: skip
SHAPE: Shape = Record(
    {"images": ListOf(IMAGE), "inclusion": Text(100), "format": Whole(1, FORMAT)},
    {"nonmember_share": Either((Number(0, 1), Null())), "aux_share": Either((Number(0, 1), Null()))},
)
SECRET = re.compile(f"([0-9a-f]{{2}}){{{LEAST_SECRET_BYTES},128}}")


@dataclass(frozen=True)
class SplitRules:
    """How the sides are drawn, or an earlier file that states them; the fields are options."""

    nonmember_share: float
    aux_share: float
    inclusion: str
    split_file: str | None
    split_secret_file: str | None
    resume: str | None  # a state; the split.json of its run is read


def open_split(rules: SplitRules, candidates: list[Example], outsiders: list[Example], fresh_secret: bytes) -> Split:
    """The sides of a run: those of an earlier split file, or newly drawn ones.

    Args:
        fresh_secret: 32 random bytes, the same in all processes; used if no file gives a secret.

    Raises:
        InputError: a split file or a secret file that cannot be used; empty sides.
    """
    pool = candidates + outsiders
    given = None if rules.split_secret_file is None else read_secret(Path(rules.split_secret_file))
    if rules.resume is not None:
        file = split_of_state(Path(rules.resume), rules.split_file)
        split = reuse_split(file, pool, fresh_secret)
        if given not in (None, split.secret):
            raise InputError(
                f"split_secret_file '{rules.split_secret_file}' is not the secret of '{file}', the split of the "
                "resumed run; leave split_secret_file out"
            )
        return split
    if rules.split_file is not None:
        if given is not None:
            raise InputError(
                "split_file and split_secret_file exclude each other, since a split file has its own secret; give one "
                "of them"
            )
        return reuse_split(rules.split_file, pool, fresh_secret)
    return draw_split(
        candidates,
        outsiders,
        nonmember_share=rules.nonmember_share,
        aux_share=rules.aux_share,
        inclusion=rules.inclusion,
        secret=fresh_secret if given is None else given,
    )


def new_secret() -> bytes:
    """A fresh secret from the operating system."""
    return secrets.token_bytes(SECRET_BYTES)


def read_secret(path: Path) -> bytes:
    """The secret in a file of hexadecimal digits.

    Raises:
        InputError: a file that cannot be read, other characters than hexadecimal digits, fewer than 128 bits.
    """
    way_out = f"write one with: openssl rand -hex {SECRET_BYTES}"
    try:
        text = read_text(path, f"split_secret_file '{path}'").strip()
        secret = bytes.fromhex(text)
    except InputError as error:
        raise InputError(f"{error}; {way_out}") from error
    except ValueError as error:
        raise InputError(f"split_secret_file '{path}' must hold only hexadecimal digits; {way_out}") from error
    if len(secret) < LEAST_SECRET_BYTES:
        raise InputError(
            f"split_secret_file '{path}' must hold at least {2 * LEAST_SECRET_BYTES} hexadecimal digits "
            f"({8 * LEAST_SECRET_BYTES} bits), got {len(text)}: a shorter secret can be guessed; {way_out}"
        )
    warn_of_readers(path)
    return secret


def warn_of_readers(path: Path) -> None:
    """Warn if others than the owner may read a file that reveals the members."""
    try:
        shared = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except OSError:
        return
    if shared:
        logger.warning("'%s' reveals the members, and others may read it; protect it with chmod 600", path)


def warn_of_weak_split(path: Path, content: dict) -> None:
    """Say what makes a split file tell more than it should: its permissions, or that it has no secret.

    Args:
        content: of ``read_split_file``.
    """
    warn_of_readers(path)
    if content["format"] == 1:
        logger.warning(
            "split_file '%s' was written by an earlier version, which drew the sides from its seed: anyone who has the "
            "pictures and a LoRA of an earlier version on this split can find the sides by trying seeds. Draw a new "
            "split for a LoRA that you publish, and do not publish an old one (docs/threat_model.md)",
            path,
        )


def split_of_state(state: Path, split_file: str | None) -> str:
    """The split file of a resumed run: its own, else the given one.

    Raises:
        InputError: neither file exists.
    """
    own = state.resolve().parent.parent / "split.json"
    if is_file(own):
        return str(own)
    if split_file is not None:
        return split_file
    raise InputError(
        f"--resume '{state}': the split.json of the state's run is missing ('{own}'), and only it states "
        "the members; restore it, or name a copy with --split_file"
    )


def write_split(split: Split, path: Path) -> None:
    """Write split.json with mode 0600, since it names the private pictures and holds the secret.

    Captions are stored only as a hash.
    """
    images = [
        {
            "pixels": example.pixels,
            "path": example.path.resolve().as_posix(),
            "side": side,
            "group": example.group,
            "repeats": example.repeats,
            "caption_sha256": _caption_hash(example),
        }
        for side in SIDES
        for example in split.sides[side]
    ]
    shares = {"nonmember_share": split.nonmember_share, "aux_share": split.aux_share}
    drawn = {"secret": split.secret.hex(), "inclusion": split.inclusion, **shares}
    content = {"format": FORMAT, **drawn, "images": images}
    write_whole(path, json.dumps(content, indent=1) + "\n", private=True)


def _caption_hash(example: Example) -> str:
    """SHA-256 (hex) of the complete caption with prefix and suffix, as an audit reads it."""
    return hashlib.sha256(plain_caption(example.caption, example.subset.captions).encode()).hexdigest()


def reuse_split(path: str | Path, examples: list[Example], fresh_secret: bytes) -> Split:
    """Put pictures on their sides in an earlier split.json; they are recognised by their pixels.

    Groups are those of the split, which it was drawn by, whatever group_by says now.

    Args:
        fresh_secret: for the random streams of a run with a split file of an earlier version, which has no secret.

    Raises:
        InputError: a file that is not a split; missing pictures of the split; pictures that are not in it.
    """
    content = read_split_file(Path(path))
    warn_of_weak_split(Path(path), content)
    side_of = {entry["pixels"]: (entry["side"], entry["group"]) for entry in content["images"]}
    here = {example.pixels for example in examples}
    faults = Faults()
    lost = [Path(entry["path"]).name for entry in content["images"] if entry["pixels"] not in here]
    unknown = [example.path.name for example in examples if example.pixels not in side_of]
    if lost:
        faults.add(
            f"split_file '{path}': {len(lost)} of its {len(side_of)} images are missing or changed: {shortened(lost)}"
        )
    if unknown:
        faults.add(
            f"{len(unknown)} images of the folders are not in split_file '{path}': {shortened(unknown)}; "
            "draw a new split or move them away"
        )
    faults.raise_if_any()
    sides: dict[str, list[Example]] = {side: [] for side in SIDES}
    for example in in_fixed_order(examples):
        side, group = side_of[example.pixels]
        sides[side].append(replace(example, group=group))
    shares = content.get("nonmember_share"), content.get("aux_share")  # files of earlier versions do not state them
    secret = bytes.fromhex(content["secret"]) if content["format"] == FORMAT else fresh_secret
    return checked(Split(sides, secret, content["inclusion"], *shares))


def read_split_file(path: Path) -> dict:
    """The content of a split.json, after a check of its form."""
    name = f"split_file '{path}'"
    content = read_json(path, name)
    check_shape(content, SHAPE, f"{name} is not a split.json of this suite")
    if content["format"] == FORMAT and not SECRET.fullmatch(str(content.get("secret"))):  # which no message shows
        raise InputError(
            f"{name} is not a split.json of this suite: its secret is not {2 * LEAST_SECRET_BYTES} or more "
            "hexadecimal digits"
        )
    return content
