"""The four-sided split into members and non-members: its draw, its checks and split.json."""

import hashlib
import json
import logging
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from library.data.captions import plain_caption
from library.data.examples import Example
from library.errors import Faults, InputError, shortened
from library.seeding import StreamKey, keyed_digest
from library.tensor_files import write_whole

logger = logging.getLogger(__name__)
SIDES = ("members-aux", "members-test", "non-members-aux", "non-members-test")
FORMAT = 2  # 1: no secret; the sides depended on a seed of 31 bits
SECRET_BYTES = 32  # of a fresh secret
LEAST_SECRET_BYTES = 16  # 128 bits cannot be searched


@dataclass(frozen=True)
class SplitRules:
    """How the sides are drawn, or an earlier file that states them; the fields are options."""

    nonmember_share: float
    aux_share: float
    inclusion: str
    split_file: str | None
    split_secret_file: str | None
    resume: str | None  # a state; the split.json of its run is read


@dataclass(frozen=True)
class Split:
    """Examples by side. The LoRA trains on both member sides; an attack is fitted only on the aux sides."""

    sides: dict[str, list[Example]]
    secret: bytes = field(repr=False)  # determines the sides and, with the seed, all random streams of the run
    inclusion: str  # bernoulli, fixed, or folders (non-members from a separate folder)
    nonmember_share: float | None = None  # as drawn; None: a separate folder, or an old file that does not state it
    aux_share: float | None = None

    def members(self) -> list[Example]:
        """All pictures that the LoRA trains on."""
        return self.sides["members-aux"] + self.sides["members-test"]

    def in_order(self) -> list[Example]:
        """All examples, side after side."""
        return [example for side in SIDES for example in self.sides[side]]

    def sides_in_order(self) -> list[str]:
        """The side of each example of ``in_order()``."""
        return [side for side in SIDES for _ in self.sides[side]]

    def used_in_training(self) -> int:
        """How many examples at the front of ``in_order()`` the training uses: all but non-members-test."""
        return len(self.in_order()) - len(self.sides["non-members-test"])

    def indices(self, side: str) -> list[int]:
        """Indices of a side's examples in ``in_order()``."""
        return [index for index, name in enumerate(self.sides_in_order()) if name == side]

    def require_aux(self, batch_size: int) -> None:
        """Raises: InputError when an aux side is smaller than the attacker's batch of that side."""
        faults = Faults()
        for side in ("members-aux", "non-members-aux"):
            if len(self.sides[side]) < batch_size:
                faults.add(
                    f"an attacker step needs {batch_size} images of {side}, the split has "
                    f"{len(self.sides[side])}; lower attack_batch_size (unset: train_batch_size) or give more images"
                )
        faults.raise_if_any()

    def hash(self) -> str:
        """SHA-256 (hex) over pictures and their sides: identifies the split without revealing a picture."""
        return sides_hash((example.pixels, side) for side in SIDES for example in self.sides[side])

    def key(self, seed: int) -> StreamKey:
        """The key of all random streams of a run with this seed."""
        return StreamKey(self.secret, seed)

    def sizes(self) -> dict[str, int]:
        """Different pictures per side: a picture of two datasets counts once."""
        return {side: len({example.pixels for example in self.sides[side]}) for side in SIDES}


def sides_hash(entries: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) over (pixels, side) pairs in any order: two files with the same sides have the same hash."""
    return hashlib.sha256("\n".join(sorted(f"{pixels} {side}" for pixels, side in entries)).encode()).hexdigest()


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
        text = path.read_text(encoding="ascii").strip()
        secret = bytes.fromhex(text)
    except OSError as error:
        raise InputError(f"split_secret_file '{path}' cannot be read: {error.strerror or error}; {way_out}") from error
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


def split_of_state(state: Path, split_file: str | None) -> str:
    """The split file of a resumed run: its own, else the given one.

    Raises:
        InputError: neither file exists.
    """
    own = state.resolve().parent.parent / "split.json"
    if own.is_file():
        return str(own)
    if split_file is not None:
        return split_file
    raise InputError(
        f"--resume '{state}': the split.json of the state's run is missing ('{own}'), and only it states "
        "the members; restore it, or name a copy with --split_file"
    )


def draw_split(
    candidates: list[Example],
    outsiders: list[Example],
    *,
    nonmember_share: float,
    aux_share: float,
    inclusion: str,
    secret: bytes,
) -> Split:
    """Draw the sides, whole groups at a time, by HMAC-SHA256 of each group's name under the secret.

    A group's draw depends only on the secret and on its own name, so its side does not change when pictures are added,
    removed or reordered. (With "fixed" inclusion a few groups may change, so that the counts fit.)

    Args:
        candidates: pictures of the training folder.
        outsiders: non-members from a separate folder; then every candidate is a member.
        inclusion: "bernoulli" draws each group independently (then an audit of the run is a valid one-run audit, arXiv
            2305.08846); "fixed" meets the shares as closely as whole groups allow.

    Raises:
        InputError: an empty side; a picture with two groups.
    """
    _check_groups(candidates + outsiders)
    if outsiders:
        members, non_members = candidates, outsiders
        inclusion_used, share_used = "folders", None
    else:
        non_members, members = _parted(candidates, nonmember_share, inclusion, secret, "inclusion", least=2)
        inclusion_used, share_used = inclusion, nonmember_share
    members_aux, members_test = _parted(members, aux_share, inclusion, secret, "members-aux")
    non_members_aux, non_members_test = _parted(non_members, aux_share, inclusion, secret, "non-members-aux")
    sides = dict(zip(SIDES, (members_aux, members_test, non_members_aux, non_members_test), strict=True))
    return checked(Split(sides, secret, inclusion_used, share_used, aux_share))


def _check_groups(examples: list[Example]) -> None:
    """Raises: InputError if copies of one picture have different groups, since they must be on one side."""
    faults = Faults()
    first: dict[str, Example] = {}
    for example in examples:
        other = first.setdefault(example.pixels, example)
        if other.group != example.group:
            faults.add(
                f"the same picture has two groups: '{other.path}' and '{example.path}'; give both one group with "
                "--group_by, or remove one"
            )
    faults.raise_if_any()


def _parted(
    examples: list[Example], share: float, inclusion: str, secret: bytes, purpose: str, least: int = 1
) -> tuple[list[Example], list[Example]]:
    """A random share of the examples (whole groups) and the rest; the draw depends on groups, never on file names.

    Args:
        least: images that a fixed draw leaves on both sides if there are enough.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    draws = {group: _uniform(keyed_digest(secret, "split", purpose, group)) for group in groups}
    if inclusion == "bernoulli":
        drawn = {group for group, draw in draws.items() if draw < share}
    else:
        drawn = _fitting_groups(
            {group: len(groups[group]) for group in sorted(groups, key=draws.__getitem__)}, share, least
        )
    ordered = in_fixed_order(examples)
    return [one for one in ordered if one.group in drawn], [one for one in ordered if one.group not in drawn]


def _uniform(digest: bytes) -> float:
    """The first 53 bits of a digest as a number in [0, 1)."""
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _fitting_groups(sizes: dict[str, int], share: float, least: int) -> set[str]:
    """Groups in their order, each taken if it brings the number of images nearer to the share."""
    total = sum(sizes.values())
    wanted = round(share * total)
    if total >= 2 * least:
        wanted = min(max(wanted, least), total - least)
    drawn: set[str] = set()
    count = 0
    for group, size in sizes.items():
        if abs(count + size - wanted) < abs(count - wanted):
            drawn.add(group)
            count += size
    return drawn


def in_fixed_order(examples: Iterable[Example]) -> list[Example]:
    """Examples sorted by pixels: the same order for a drawn and a reused split, whatever the folder's order."""
    return sorted(examples, key=lambda example: (example.pixels, str(example.path)))


def checked(split: Split) -> Split:
    """The split, after a check that every side has a picture and that no picture is on two sides.

    Raises:
        InputError: empty sides; the same decoded pixels on two sides, with the file names.
    """
    faults = Faults()
    total = sum(split.sizes().values())
    empty = [side for side in SIDES if not split.sides[side]]
    if total < len(SIDES):
        faults.add(
            f"{total} image{'s' if total != 1 else ''} cannot fill the four sides {', '.join(SIDES)}; "
            "give at least 4, and several hundred for an audit that can detect a leak"
        )
    elif empty:
        faults.add(
            f"no image is left for {', '.join(empty)} ({total} images in total); use --inclusion fixed, draw "
            "again, or use other shares or more images"
        )
    seen: dict[str, tuple[str, Example]] = {}
    for side in SIDES:
        for example in split.sides[side]:
            other_side, other = seen.setdefault(example.pixels, (side, example))
            if other_side != side:
                faults.add(
                    f"the same picture is on two sides: '{other.path}' ({other_side}) and '{example.path}' "
                    f"({side}); remove one, or give both one group with --group_by",
                    kind="pictures that are on two sides",
                )
    faults.raise_if_any()
    return split


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
    warn_of_readers(Path(path))
    if content["format"] == 1:
        logger.warning(
            "split_file '%s' was written by an earlier version, which drew the sides from its seed: anyone who has the "
            "pictures and a LoRA of an earlier version on this split can find the sides by trying seeds. Draw a new "
            "split for a LoRA that you publish, and do not publish an old one (docs/threat_model.md)",
            path,
        )
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["format"] in (1, FORMAT) and all(
            entry["side"] in SIDES and isinstance(entry["pixels"], str) and "group" in entry and "path" in entry
            for entry in content["images"]
        )
        known = known and isinstance(content["inclusion"], str)
        if content["format"] == FORMAT:
            known = known and len(bytes.fromhex(content["secret"])) >= LEAST_SECRET_BYTES
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"split_file '{path}' is not a split.json of this suite ({type(error).__name__})") from error
    if not known:
        raise InputError(
            f"split_file '{path}' is not a split.json of this suite (format {FORMAT} with a secret of at least "
            f"{8 * LEAST_SECRET_BYTES} bits, and the sides {SIDES})"
        )
    return content
