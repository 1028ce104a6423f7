"""Sets of pictures by person: public ones for shadow LoRAs, and the private ones that only scoring may see."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.errors import InputError


@dataclass(frozen=True)
class PersonSet:
    """P persons with n pictures each."""

    names: Sequence[str]
    latents: Tensor  # [P, n, 4, h, w] posterior means, scaled
    pictures: Sequence[Sequence[str]]  # [P][n] SHA-256 of the pixels

    def __len__(self) -> int:
        return len(self.names)

    def means(self) -> Tensor:
        """[P, 4 * h * w] mean latent of each person, flat."""
        return self.latents.mean(1).flatten(1)

    def some(self, indices: Sequence[int]) -> "PersonSet":
        """Some of the persons, in this order."""
        return PersonSet(
            [self.names[i] for i in indices], self.latents[list(indices)], [self.pictures[i] for i in indices]
        )

    def fingerprint(self) -> str:
        """SHA-256 over names and pictures."""
        text = "\n".join(f"{name} {' '.join(shown)}" for name, shown in zip(self.names, self.pictures, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()


def persons_of(latents: Sequence[Tensor], groups: Sequence[str], pictures: Sequence[str], count: int) -> PersonSet:
    """The persons with at least ``count`` pictures of one size, ``count`` of each, in the order of their names.

    Args:
        latents: [4, h, w] of every picture, scaled.
        groups: whose picture each one is.
        pictures: SHA-256 of the pixels of each one.

    Raises:
        InputError: no person with so many pictures.
    """
    by_person: dict[str, list[int]] = {}
    shape = latents[0].shape if latents else torch.Size()
    for index, (group, latent) in enumerate(zip(groups, latents, strict=True)):
        if latent.shape == shape:
            by_person.setdefault(group, []).append(index)
    found = {name: sorted(rows, key=lambda i: pictures[i])[:count] for name, rows in by_person.items()}
    kept = sorted(name for name, rows in found.items() if len(rows) == count)
    if not kept:
        most = max(map(len, by_person.values()), default=0)
        raise InputError(
            f"no person of the public folder has {count} pictures of one size (the most is {most}); group the pictures "
            "by person (groups.json), or give a folder with more of each"
        )
    return PersonSet(
        kept,
        torch.stack([torch.stack([latents[i].float() for i in found[name]]) for name in kept]),
        [[pictures[i] for i in found[name]] for name in kept],
    )


def check_disjoint(sides: Mapping[str, PersonSet]) -> None:
    """Raises: InputError when two sides share a person's name or a picture."""
    names = list(sides)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            shared = set(sides[first].names) & set(sides[second].names)
            seen = [{one for shown in sides[side].pictures for one in shown} for side in (first, second)]
            if shared or seen[0] & seen[1]:
                raise InputError(
                    f"{first} and {second} share {len(shared)} persons and {len(seen[0] & seen[1])} pictures; an "
                    "attack that was fitted on them proves nothing. Give a public folder of other persons"
                )
