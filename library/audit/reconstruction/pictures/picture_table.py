"""From painted pictures to a table: every attack with its controls, in every space, against both sides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from library.audit.reconstruction.pictures.attribution import (
    HELD_OUT,
    OF_CODES,
    OF_PICTURES,
    PERMUTED,
    PRIVATE,
    RANDOM,
    Likeness,
    PictureRow,
    attribution,
    memorised,
    random_outputs,
)
from library.audit.reconstruction.pictures.identity_scores import IdentitySpace, best_output_cosines
from library.audit.reconstruction.pictures.picture_rows import CODE, EDIT, WEIGHTS, guided_name

CEILING = "other pictures of the person (ceiling)"  # what the space can see at best
KNOWS = {
    CODE: ("weights", "base", "public pictures", "recipe"),
    EDIT: ("weights", "base", "public pictures", "recipe"),
} | {guided_name(weight): ("weights", "base") for weight in WEIGHTS}


@dataclass(frozen=True)
class View:
    """One way to look at pictures."""

    space: IdentitySpace
    features: Callable[[Tensor], Tensor]  # latents [B, C, h, w] -> [B, F]


@dataclass(frozen=True)
class Sets:
    """N sets of pictures, one a person; scoring alone sees them."""

    latents: Tensor  # [P, C, h, w]
    owners: Tensor  # [P] 0 .. N - 1


def likenesses(
    outputs: Mapping[str, Tensor], view: View, sets: Sets, own: Sequence[int], seed: int
) -> dict[str, Likeness]:
    """Every painted row against the sets, and vectors of chance beside them.

    Args:
        outputs: [V, S, C, h, w] by row.
        own: [V] true set of each victim.
    """
    count = int(sets.owners.max()) + 1
    pictures = view.space.project(view.features(sets.latents))  # [P, d]
    found = {}
    samples = 1
    for name, painted in outputs.items():
        samples = painted.shape[1]
        shown = view.space.project(view.features(painted.flatten(0, 1))).unflatten(0, painted.shape[:2])
        found[name] = Likeness(best_output_cosines(shown, pictures, sets.owners, count), own, samples)
    drawn = random_outputs(len(own), samples, pictures, seed)
    found[RANDOM] = Likeness(best_output_cosines(drawn, pictures, sets.owners, count), own, samples)
    return found


def rows_of(found: Mapping[str, Likeness], space: str, side: str) -> list[PictureRow]:
    """The attacks among the likenesses, each with its controls; those that were not painted are missing there.

    Without a code of its own, a row's permuted control is its own pictures against other persons' sets.
    """
    rows = []
    for title, knows in KNOWS.items():
        if title not in found:
            continue
        reads_code = title == CODE
        wanted = OF_CODES if reads_code else OF_PICTURES
        controls = {name: found[name] for name in wanted if name in found}
        if not reads_code:
            controls[PERMUTED] = found[title].turned()
        rows.append(PictureRow(title, knows, space, side, reads_code, found[title], controls))
    return rows


def table(by_side: Mapping[str, Mapping[str, Likeness]], space: str) -> list[dict[str, object]]:
    """One line for each attack and control, and the verdict of each attack, as plain values.

    Args:
        by_side: likenesses by PRIVATE and HELD_OUT.

    Raises:
        MissingControls: an attack without its controls.
    """
    lines: list[dict[str, object]] = []
    for side, found in by_side.items():
        verdicts = {row.title: attribution(row) for row in rows_of(found, space, side)}
        for name, one in found.items():
            line = {"row": name, "space": space, "side": side, "outputs": one.outputs} | figures_of(one)
            if name in verdicts:
                line |= {"knows": list(KNOWS[name]), "verdict": asdict(verdicts[name])}
            if side == PRIVATE and HELD_OUT in by_side and name in by_side[HELD_OUT]:
                line["memorised"] = asdict(memorised(one, by_side[HELD_OUT][name]))
            lines.append(line)
    return lines


def figures_of(one: Likeness) -> dict[str, object]:
    """Retrieval and cosines with intervals."""
    own, others = one.cosines()
    return asdict(one.retrieval()) | {"cosine_own": asdict(own), "cosine_others": asdict(others)}


def flat_latents(latents: Tensor) -> Tensor:
    """[B, C * h * w]: the VAE's own space."""
    return latents.flatten(1)


def decoded_features(
    decode: Callable[[Tensor], Tensor], features: Callable[[Tensor], Tensor], batch: int = 32
) -> Callable[[Tensor], Tensor]:
    """A perceptual encoder's view of latents: decoded by the VAE, then encoded."""

    def seen(latents: Tensor) -> Tensor:
        return torch.cat([features(decode(part).cpu()) for part in latents.split(batch)])

    return seen
