"""Who is a member: the four-sided split, its draw, its checks and split.json."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from library.check import Faults, InputError, shortened
from library.data.captions import plain_caption
from library.data.examples import Example
from library.seeding import permutation, stream
from library.tensor_files import write_whole

SIDES = ("members-aux", "members-test", "non-members-aux", "non-members-test")


@dataclass(frozen=True)
class Split:
    """Examples by side. The LoRA trains on both member sides; whoever fits an attack sees the aux sides alone."""

    sides: dict[str, list[Example]]
    seed: int
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

    def rows(self, side: str) -> list[int]:
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

    def sizes(self) -> dict[str, int]:
        """Different pictures per side: one that two datasets use counts once."""
        return {side: len({example.pixels for example in self.sides[side]}) for side in SIDES}


def sides_hash(entries: Iterable[tuple[str, str]]) -> str:
    """SHA-256 (hex) over (pixels, side) pairs in any order: two files with the same sides have the same hash."""
    return hashlib.sha256("\n".join(sorted(f"{pixels} {side}" for pixels, side in entries)).encode()).hexdigest()


def draw_split(
    candidates: list[Example],
    outsiders: list[Example],
    *,
    nonmember_share: float,
    aux_share: float,
    inclusion: str,
    seed: int,
) -> Split:
    """Draw the sides, whole groups at a time, from named streams of the seed.

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
        non_members, members = _parted(candidates, nonmember_share, inclusion, seed, "inclusion", least=2)
        inclusion_used, share_used = inclusion, nonmember_share
    members_aux, members_test = _parted(members, aux_share, inclusion, seed, "members-aux")
    non_members_aux, non_members_test = _parted(non_members, aux_share, inclusion, seed, "non-members-aux")
    sides = dict(zip(SIDES, (members_aux, members_test, non_members_aux, non_members_test), strict=True))
    return checked(Split(sides, seed, inclusion_used, share_used, aux_share))


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
    examples: list[Example], share: float, inclusion: str, seed: int, purpose: str, least: int = 1
) -> tuple[list[Example], list[Example]]:
    """Draw a share of the examples (whole groups) and the rest; the draw depends on pixels, never on file names.

    Args:
        least: images that a fixed draw leaves on both sides where there are enough.
    """
    groups: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda example: (example.pixels, str(example.path))):
        groups.setdefault(example.group, []).append(example)
    bundles = list(groups.values())
    drawn: list[Example] = []
    rest: list[Example] = []
    if inclusion == "bernoulli":
        coins = torch.rand(len(bundles), generator=stream(seed, "split", purpose)).tolist()
        for bundle, coin in zip(bundles, coins, strict=True):
            (drawn if coin < share else rest).extend(bundle)
        return drawn, rest
    wanted = round(share * len(examples))
    if len(examples) >= 2 * least:
        wanted = min(max(wanted, least), len(examples) - least)
    for index in permutation(len(bundles), seed, "split", purpose):
        fits = abs(len(drawn) + len(bundles[index]) - wanted) < abs(len(drawn) - wanted)
        (drawn if fits else rest).extend(bundles[index])
    return drawn, rest


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
            f"nothing is left for {', '.join(empty)} ({total} images in all); use --inclusion fixed, another "
            "--seed, other shares, or more images"
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
    """Write split.json with mode 0600: it names the private pictures. Captions are kept as a hash only."""
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
    content = {"format": 1, "seed": split.seed, "inclusion": split.inclusion, **shares, "images": images}
    write_whole(path, json.dumps(content, indent=1) + "\n", private=True)


def _caption_hash(example: Example) -> str:
    """SHA-256 (hex) of the whole caption, prefix and suffix included, as an audit reads it."""
    return hashlib.sha256(plain_caption(example.caption, example.subset.captions).encode()).hexdigest()


def reuse_split(path: str | Path, examples: list[Example]) -> Split:
    """Put pictures on the sides that an earlier split.json gives them; they are recognised by their pixels.

    Groups are the split's too: its coins were thrown for those, whatever group_by says now.

    Raises:
        InputError: no split file; pictures of the split that are missing; pictures that the split does not know.
    """
    content = read_split_file(Path(path))
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
    for example in sorted(examples, key=lambda example: (example.pixels, str(example.path))):
        side, group = side_of[example.pixels]
        sides[side].append(replace(example, group=group))
    shares = content.get("nonmember_share"), content.get("aux_share")  # files of earlier versions do not say
    return checked(Split(sides, content["seed"], content["inclusion"], *shares))


def read_split_file(path: Path) -> dict:
    """The content of a split.json, its form checked."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = content["format"] == 1 and all(
            entry["side"] in SIDES and isinstance(entry["pixels"], str) and "group" in entry and "path" in entry
            for entry in content["images"]
        )
        known = known and isinstance(content["seed"], int) and isinstance(content["inclusion"], str)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"split_file '{path}' is no split.json of this suite ({type(error).__name__})") from error
    if not known:
        raise InputError(f"split_file '{path}' is no split.json of this suite (format 1 with the sides {SIDES})")
    return content
