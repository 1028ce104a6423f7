"""One LoRA under audit: does what its weights give away lie nearer to its own pictures than to others'?

Up to ``FEW`` member pictures are one set, ranked among decoy sets of non-members. Of more pictures the mean says
little: then the likeness of each picture to what was read is compared between members and non-members of the test
sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.reconstruction.gallery import gallery_drops, open_gallery
from library.audit.reconstruction.retrieval import (
    CEILING,
    NOTHING,
    OTHERS,
    MissingControls,
    direction_scores,
    rank_p,
    ranks_of,
)
from library.audit.reconstruction.stacked_lora import Factors, StackedModel
from library.audit.reconstruction.weight_attacks import BASE, WEIGHTS, Asked, PublicKnowledge, Reader, asked, emptied
from library.audit.statistics.findings import ScoreSettings, examine_scores
from library.seeding import numpy_stream, stream

FEW = 16  # member pictures
DECOYS = 99
AUC, RANK = "AUC", "rank"
SHUFFLED = "shuffled weights"  # a control beside those of ``retrieval``
GALLERY = "gallery"


@dataclass(frozen=True)
class TestPictures:
    """Private pictures for scoring alone: no attack is fitted on them."""

    latents: Tensor  # [n, 4, h, w] of both test sides; with few members, of all members and non-members
    is_member: Sequence[bool]
    groups: Sequence[str]

    def rows(self, member: bool) -> list[int]:
        """Of one side."""
        return [row for row, is_member in enumerate(self.is_member) if is_member is member]


@dataclass(frozen=True)
class OneRow:
    """What one attack reads from one LoRA, and the same from other weights."""

    attack: str
    title: str
    knows: Sequence[str]
    shadows: int
    kind: str  # AUC or RANK
    value: float  # AUC of members against non-members; or rank of the own set
    low: float  # of the AUC's 95 % interval; of a rank the rank itself
    high: float
    p: float  # permutation of labels by group; of a rank the rank over the number of sets
    members: int  # pictures
    others: int  # pictures of non-members; or sets among which the own one is ranked
    controls: Mapping[str, float]  # the same figure

    def beats_its_controls(self) -> bool:
        """Whether the figure is better than from B = 0, from shuffled weights and from LoRAs of others."""
        below = [value for name, value in self.controls.items() if name != CEILING]
        return all(self.value > value for value in below) if self.kind == AUC else all(self.value < v for v in below)


def shuffled(some: Factors, seed: int) -> Factors:
    """The same numbers in other places of each up factor: what is left is how large a change is, not what it says."""
    up = {}
    for name, value in some.up.items():
        order = torch.randperm(value[0].numel(), generator=stream(seed, "shuffled weights", name))
        up[name] = value.flatten(1)[:, order].reshape(value.shape)
    return Factors(some.down, up, some.scale)


Score = Callable[[Asked], Tensor]  # one LoRA -> [n] scores of pictures or sets, higher = more alike


def one_lora_rows(
    model: StackedModel,
    target: Factors,
    readers: Sequence[Reader],
    known: PublicKnowledge,
    pictures: TestPictures,
    seed: int,
    with_gallery: bool = True,
) -> list[OneRow]:
    """Every reader on one LoRA (K = 1), and the gallery, each beside its controls.

    Raises:
        InputError: fewer than two non-members' groups.
    """
    few = len(pictures.rows(True)) <= FEW
    sets = decoy_sets(pictures, seed) if few else None
    weights = {NOTHING: emptied, SHUFFLED: lambda one: asked(model, shuffled(one.factors, seed), known)}
    own = asked(model, target, known)
    versions = {"": own} | {name: make(own) for name, make in weights.items()}
    if known.shadows is not None:
        versions[OTHERS] = asked(model, known.shadows.rows([0]), known)
    coefficients = known.space.coefficients(pictures.latents.flatten(1))
    shown = coefficients if sets is None else torch.stack([coefficients[rows].mean(0) for rows in sets])
    centred = shown - known.centre
    mean = coefficients[pictures.rows(True)].mean(0) - known.centre

    def row(attack: str, title: str, knows: Sequence[str], shadows: int, score: Score) -> OneRow:
        found = {name: judged(score(one), pictures, sets, seed) for name, one in versions.items()}
        ceiling = judged(direction_scores(mean[None], centred)[0], pictures, sets, seed)
        controls = {name: one[0] for name, one in found.items() if name} | {CEILING: ceiling[0]}
        value, low, high, p = found[""]
        members, count = len(pictures.rows(True)), len(pictures.rows(False)) if sets is None else len(sets)
        kind = AUC if sets is None else RANK
        return OneRow(attack, title, tuple(knows), shadows, kind, value, low, high, p, members, count, controls)

    def likeness(reader: Reader) -> Score:
        return lambda some: direction_scores(reader.direct(some.factors, some.answers).float(), centred)[0]

    rows = [row(one.attack, one.title, one.knows, one.shadows, likeness(one)) for one in readers]
    if with_gallery:
        candidates = pictures.latents[:, None] if sets is None else torch.stack([pictures.latents[s] for s in sets])
        gallery = open_gallery(model, candidates, known.probes.context, seed, images=2)
        knows = (WEIGHTS, BASE, "candidate pictures")
        title = "gallery: fall of the loss"
        rows.append(row(GALLERY, title, knows, 0, lambda some: gallery_drops(model, some.factors, gallery)[0]))
    return rows


def judged(
    scores: Tensor, pictures: TestPictures, sets: Sequence[Sequence[int]] | None, seed: int
) -> tuple[float, float, float, float]:
    """(figure, low, high, p) of scores: the AUC of members against non-members, or the rank of the first set."""
    if sets is not None:
        rank = int(ranks_of(scores[None], [0])[0])
        return float(rank), float(rank), float(rank), rank_p(rank, len(sets))
    inside, outside = pictures.rows(True), pictures.rows(False)
    found = examine_scores(
        scores[inside].double().numpy(),
        scores[outside].double().numpy(),
        ([pictures.groups[row] for row in inside], [pictures.groups[row] for row in outside]),
        settings=ScoreSettings(seed=seed),
    ).finding
    return found.auc, *found.auc_interval, found.p


def decoy_sets(pictures: TestPictures, seed: int, most: int = DECOYS) -> list[list[int]]:
    """The true set first, then sets of as many non-members; a decoy holds as few groups as the pictures allow."""
    members, others = pictures.rows(True), pictures.rows(False)
    order = numpy_stream(seed, "decoys").permutation(len(others))
    by_group = sorted((pictures.groups[others[i]], int(place), others[i]) for place, i in enumerate(order))
    arranged = [row for _, _, row in by_group]
    size = len(members)
    sets = [arranged[first : first + size] for first in range(0, len(arranged) - size + 1, size)]
    chosen = numpy_stream(seed, "which decoys").permutation(len(sets))[:most]
    return [members, *(sets[place] for place in sorted(chosen.tolist()))]


def checked_one(rows: Sequence[OneRow]) -> list[OneRow]:
    """The rows, if every one stands beside its controls. Raises: MissingControls."""
    for row in rows:
        wanted = [NOTHING, SHUFFLED, CEILING, *([OTHERS] if row.shadows else [])]
        missing = [name for name in wanted if name not in row.controls]
        if missing:
            raise MissingControls(f"a row is not shown without its controls: '{row.title}' lacks {', '.join(missing)}")
    return list(rows)
