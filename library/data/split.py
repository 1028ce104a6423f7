"""Who is a member: the four-sided split, its draw, its checks and split.json."""

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
FORMAT = 2  # 1: no secret, the sides were drawn from a seed of 31 bits
SECRET_BYTES = 32  # of a fresh secret
LEAST_SECRET_BYTES = 16  # 128 bits: no one tries them all


@dataclass(frozen=True)
class SplitRules:
    """How sides are drawn, or which earlier file gives them; the fields are options."""

    nonmember_share: float
    aux_share: float
    inclusion: str
    split_file: str | None
    split_secret_file: str | None
    resume: str | None  # a state: its run's own split.json is read


@dataclass(frozen=True)
class Split:
    """Examples by side. The LoRA trains on both member sides; whoever fits an attack sees the aux sides alone."""

    sides: dict[str, list[Example]]
    secret: bytes = field(repr=False)  # draws the sides and, with the seed, every stream of the run
    inclusion: str  # bernoulli, fixed, or folders (non-members came from a folder of their own)
    nonmember_share: float | None = None  # as drawn; None: a folder of their own, or an old file that does not say
    aux_share: float | None = None

    def members(self) -> list[Example]:
        """Everything that is trained on."""
        return self.sides["members-aux"] + self.sides["members-test"]

    def in_order(self) -> list[Example]:
        """All examples, side after side."""
        return [example for side in SIDES for example in self.sides[side]]

    def sides_in_order(self) -> list[str]:
        """The side of each example of ``in_order()``."""
        return [side for side in SIDES for _ in self.sides[side]]

    def used_in_training(self) -> int:
        """How many examples at the front of ``in_order()`` training looks at: all but the non-members-test."""
        return len(self.in_order()) - len(self.sides["non-members-test"])

    def indices(self, side: str) -> list[int]:
        """Places of a side's examples in ``in_order()``."""
        return [row for row, name in enumerate(self.sides_in_order()) if name == side]

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
        """SHA-256 (hex) over who is where: names the split without naming a picture."""
        return sides_hash((example.pixels, side) for side in SIDES for example in self.sides[side])

    def key(self, seed: int) -> StreamKey:
        """What the streams of a run with this seed are made from."""
        return StreamKey(self.secret, seed)

    def sizes(self) -> dict[str, int]:
        """Different pictures per side: one that two datasets use counts once."""
        return {side: len({example.pixels for example in self.sides[side]}) for side in SIDES}


def sides_hash(entries: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) over (pixels, side) pairs in any order: two files with the same sides have the same hash."""
    return hashlib.sha256("\n".join(sorted(f"{pixels} {side}" for pixels, side in entries)).encode()).hexdigest()


def open_split(rules: SplitRules, candidates: list[Example], outsiders: list[Example], fresh_secret: bytes) -> Split:
    """The sides of a run: those of an earlier split file, or newly drawn ones.

    Args:
        fresh_secret: 32 random bytes that all processes of the run agree on; taken where no file gives a secret.

    Raises:
        InputError: a split file or a secret file that cannot be used; sides that stay empty.
    """
    pool = candidates + outsiders
    given = None if rules.split_secret_file is None else read_secret(Path(rules.split_secret_file))
    if rules.resume is not None:
        file = split_of_state(Path(rules.resume), rules.split_file)
        split = reuse_split(file, pool, fresh_secret)
        if given not in (None, split.secret):
            raise InputError(
                f"split_secret_file '{rules.split_secret_file}' is the secret of another split than '{file}', which "
                "the resumed run goes on with; leave split_secret_file out"
            )
        return split
    if rules.split_file is not None:
        if given is not None:
            raise InputError(
                "split_file and split_secret_file together: a split file has its own secret; give one of them"
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
        InputError: no readable file, no hexadecimal digits, or fewer than 128 bits.
    """
    way_out = f"write one with: openssl rand -hex {SECRET_BYTES}"
    try:
        text = path.read_text(encoding="ascii").strip()
        secret = bytes.fromhex(text)
    except OSError as error:
        raise InputError(f"split_secret_file '{path}' cannot be read: {error.strerror or error}; {way_out}") from error
    except ValueError as error:
        raise InputError(f"split_secret_file '{path}' must hold nothing but hexadecimal digits; {way_out}") from error
    if len(secret) < LEAST_SECRET_BYTES:
        raise InputError(
            f"split_secret_file '{path}' must hold at least {2 * LEAST_SECRET_BYTES} hexadecimal digits "
            f"({8 * LEAST_SECRET_BYTES} bits), got {len(text)}: a shorter secret can be found by trying; {way_out}"
        )
    warn_of_readers(path)
    return secret


def warn_of_readers(path: Path) -> None:
    """Say so where others than the owner may read a file that tells who was a member."""
    try:
        shared = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except OSError:
        return
    if shared:
        logger.warning("'%s' tells who was a member and may be read by others; mend it with chmod 600", path)


def split_of_state(state: Path, split_file: str | None) -> str:
    """The split file that a resumed run goes on with: its own, else the one that is named.

    Raises:
        InputError: neither is there.
    """
    own = state.resolve().parent.parent / "split.json"
    if own.is_file():
        return str(own)
    if split_file is not None:
        return split_file
    raise InputError(
        f"--resume '{state}': there is no split.json beside the state's run ('{own}'), and without it nobody knows who "
        "was a member; put it back, or name a copy with --split_file"
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

    A group's draw depends on the secret and on its own name alone: it stays where it is when other pictures come or go,
    in whatever order they are found. (With "fixed" inclusion the counts must fit, so a few groups move.)

    Args:
        candidates: pictures of the training folder.
        outsiders: non-members from a folder of their own; then every candidate is a member.
        inclusion: "bernoulli" throws an independent coin per group (an audit of the run is then a valid one-run
            audit, arXiv 2305.08846); "fixed" meets the shares as closely as whole groups allow.

    Raises:
        InputError: when a side stays empty; a picture that was given two groups.
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
    """Raises: InputError where copies of one picture have different groups: they must land on one side."""
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
    """Draw a share of the examples (whole groups) and the rest; the draw depends on groups, never on file names.

    Args:
        least: images that a fixed draw leaves on both sides where there are enough.
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
    """Groups, taken in their order while they bring the number of images nearer to the share."""
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
    """Examples by pixels: the same order for a drawn split and a reused one, whatever the folder's order."""
    return sorted(examples, key=lambda example: (example.pixels, str(example.path)))


def checked(split: Split) -> Split:
    """The split itself, once every side has a picture and no picture lies on two sides.

    Raises:
        InputError: empty sides; the same decoded pixels on two sides, with the file names.
    """
    faults = Faults()
    total = sum(split.sizes().values())
    empty = [side for side in SIDES if not split.sides[side]]
    if total < len(SIDES):
        faults.add(
            f"{total} image{'s' if total != 1 else ''} cannot fill the four sides {', '.join(SIDES)}; "
            "give at least 4, and some hundred for an audit that can see anything"
        )
    elif empty:
        faults.add(
            f"nothing is left for {', '.join(empty)} ({total} images in all); use --inclusion fixed, draw again, "
            "or take other shares or more images"
        )
    seen: dict[str, tuple[str, Example]] = {}
    for side in SIDES:
        for example in split.sides[side]:
            other_side, other = seen.setdefault(example.pixels, (side, example))
            if other_side != side:
                faults.add(
                    f"the same picture lies on two sides: '{other.path}' ({other_side}) and '{example.path}' "
                    f"({side}); remove one, or give both one group with --group_by",
                    kind="pictures that lie on two sides",
                )
    faults.raise_if_any()
    return split


def write_split(split: Split, path: Path) -> None:
    """Write split.json with mode 0600: it names the private pictures and holds the secret.

    Captions are kept as a hash only.
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
    """SHA-256 (hex) of the whole caption, prefix and suffix included, as an audit reads it."""
    return hashlib.sha256(plain_caption(example.caption, example.subset.captions).encode()).hexdigest()


def reuse_split(path: str | Path, examples: list[Example], fresh_secret: bytes) -> Split:
    """Put pictures on the sides that an earlier split.json gives them; they are recognised by their pixels.

    Groups are the split's too: its coins were thrown for those, whatever group_by says now.

    Args:
        fresh_secret: for the streams of a run on a split file of an earlier version, which has no secret.

    Raises:
        InputError: no split file; pictures of the split that are missing; pictures that the split does not know.
    """
    content = read_split_file(Path(path))
    warn_of_readers(Path(path))
    if content["format"] == 1:
        logger.warning(
            "split_file '%s' was written by an earlier version, which drew the sides from its seed: whoever has the "
            "pictures and a LoRA of an earlier version on this split can redraw the sides by trying seeds. Draw a new "
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
            f"split_file '{path}' does not know {len(unknown)} images of the folders: {shortened(unknown)}; "
            "draw a new split or move them away"
        )
    faults.raise_if_any()
    sides: dict[str, list[Example]] = {side: [] for side in SIDES}
    for example in in_fixed_order(examples):
        side, group = side_of[example.pixels]
        sides[side].append(replace(example, group=group))
    shares = content.get("nonmember_share"), content.get("aux_share")  # files of earlier versions do not say
    secret = bytes.fromhex(content["secret"]) if content["format"] == FORMAT else fresh_secret
    return checked(Split(sides, secret, content["inclusion"], *shares))


def read_split_file(path: Path) -> dict:
    """The content of a split.json, its form checked."""
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
        raise InputError(f"split_file '{path}' is no split.json of this suite ({type(error).__name__})") from error
    if not known:
        raise InputError(
            f"split_file '{path}' is no split.json of this suite (format {FORMAT} with a secret of at least "
            f"{8 * LEAST_SECRET_BYTES} bits, and the sides {SIDES})"
        )
    return content
