"""Who is a member: the four-sided split, its draw and its checks."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from library.data.examples import Example
from library.errors import Faults
from library.seeding import StreamKey, keyed_digest

SIDES = ("members-aux", "members-test", "non-members-aux", "non-members-test")


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

    def sealed_hash(self) -> str:
        """``hash`` under the split's secret: recognises the split, and tells nothing to who has the pictures."""
        return sealed(self.secret, self.hash())

    def key(self, seed: int) -> StreamKey:
        """The key of all random streams of a run with this seed."""
        return StreamKey(self.secret, seed)

    def sizes(self) -> dict[str, int]:
        """Different pictures per side: a picture of two datasets counts once."""
        return {side: len({example.pixels for example in self.sides[side]}) for side in SIDES}


def sealed(secret: bytes, sides: str) -> str:
    """HMAC-SHA256 (hex) of a ``sides_hash`` under a split's secret."""
    return keyed_digest(secret, "sides of the split", sides).hex()


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
