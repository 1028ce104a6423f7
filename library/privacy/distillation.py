"""Cross-fitted distillation: the folds of the members, and which teachers may answer for whom.

Each of K teachers learns from the members outside its fold; a member's target is what the teachers say that never saw
it (SELENA, arXiv 2110.08324; DistillMD, arXiv 2410.16657).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from library.errors import InputError
from library.seeding import StreamKey


@dataclass(frozen=True)
class DistillRules:
    """How a student is taught; the fields are options."""

    distill_folds: int  # teachers, each trained without one fold of the members; 0 = no distillation
    distill_teacher_epochs: int  # of each teacher, over the members outside its fold
    distill_keep_teachers: bool


@dataclass(frozen=True)
class CrossFit:
    """Which groups of members each teacher was trained without."""

    left_out: Sequence[frozenset[str]]  # groups, by teacher

    def learns_from(self, teacher: int, group: str) -> bool:
        """Whether a teacher, counted from 0, is trained on a group of members."""
        return group not in self.left_out[teacher]

    def teachers_for(self, group: str) -> list[int]:
        """The teachers that never saw a group of members. Raises: ValueError where every teacher saw it."""
        found = [teacher for teacher, groups in enumerate(self.left_out) if group in groups]
        if not found:
            raise ValueError("every teacher was trained on this group of members, so none may answer for it")
        return found


def answering(cross_fit: CrossFit, groups: Sequence[str | None]) -> dict[int, list[int]]:
    """The places of a batch that each teacher answers for; teachers without a place are left out.

    Args:
        groups: of the pictures of the batch; None for one that is no member, for which nobody answers.
    """
    places: dict[int, list[int]] = {}
    for place, group in enumerate(groups):
        for teacher in [] if group is None else cross_fit.teachers_for(group):
            places.setdefault(teacher, []).append(place)
    return dict(sorted(places.items()))


def draw_folds(groups: Iterable[str], folds: int, key: StreamKey) -> CrossFit:
    """Deal the members into folds, whole groups at a time; teacher k is trained without fold k.

    Large groups come first, equal ones in an order that is drawn from the run's key; each goes to the fold with the
    fewest pictures so far.

    Args:
        groups: one for each member picture.

    Raises:
        InputError: more folds than groups.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    require_groups(folds, len(sizes))
    parts: list[set[str]] = [set() for _ in range(folds)]
    pictures = [0] * folds
    for group in sorted(sizes, key=lambda name: (-sizes[name], key.derived("fold", name))):
        smallest = pictures.index(min(pictures))
        parts[smallest].add(group)
        pictures[smallest] += sizes[group]
    return CrossFit([frozenset(part) for part in parts])


def require_groups(folds: int, groups: int) -> None:
    """Raises: InputError for more folds than groups of members."""
    if folds > groups:
        raise InputError(
            f"distill_folds {folds} is above the {groups} groups of members that the split has, and a group is never "
            f"divided between folds; set distill_folds to {groups} or less, or give more pictures"
        )


def uses_of_teacher(cross_fit: CrossFit, teacher: int, groups: Sequence[str | None], uses: Sequence[int]) -> list[int]:
    """The uses per epoch of every picture in the training of one teacher: 0 in its own fold.

    Args:
        groups: of the pictures; None for one that is no member, whose uses stay.
        uses: in the student's training.
    """
    return [
        times if group is None or cross_fit.learns_from(teacher, group) else 0
        for group, times in zip(groups, uses, strict=True)
    ]
