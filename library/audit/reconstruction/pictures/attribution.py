"""What of an attack's pictures comes from reading the weights: every row beside its controls, or no row at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from library.audit.reconstruction.pictures.identity_scores import own_above_others
from library.audit.reconstruction.retrieval import Figure, MissingControls, Retrieval, mean_figure, ranks_of, retrieval
from library.seeding import stream

PRIVATE, HELD_OUT = "private pictures", "held-out pictures"  # what outputs are compared with
BASE, CLASS, TRIGGER = "base, class prompt", "class prompt, no encoder", "true prompt (oracle)"
RANDOM, PERMUTED, OTHERS = "random vectors", "permuted weights", "LoRA of other persons"
ON_BASE, MEAN_CODE = "code on the base", "mean code"
OF_PICTURES = (BASE, CLASS, PERMUTED, RANDOM, TRIGGER)  # controls of every row
OF_CODES = (*OF_PICTURES, ON_BASE, MEAN_CODE, OTHERS)  # of a row whose prompt embedding was read from the weights
TO_BEAT = (BASE, CLASS, PERMUTED)  # by a row without a code
FEWEST = 20  # victims for a verdict: with fewer a bootstrap interval is too narrow, and with one it has no width


@dataclass(frozen=True)
class Likeness:
    """How alike the outputs of one row are to N sets of pictures, in one space."""

    scores: Tensor  # [V, N]
    own: Sequence[int]  # [V] true set of each victim
    outputs: int  # pictures for each victim: more of them come nearer by luck

    def above_others(self) -> np.ndarray:
        """[V] cosine to the own set minus the mean to the others'."""
        return own_above_others(self.scores, self.own).double().numpy()

    def retrieval(self) -> Retrieval:
        """Ranks of the true set with intervals."""
        return retrieval(ranks_of(self.scores, self.own), self.scores.shape[1])

    def cosines(self) -> tuple[Figure, Figure]:
        """Mean cosine to the own set, and to the others'."""
        mine = self.scores[torch.arange(len(self.scores)), torch.as_tensor(self.own)].double().numpy()
        return mean_figure(mine), mean_figure(mine - self.above_others())

    def turned(self) -> "Likeness":
        """Every victim's outputs against the next one's set: another person's weights for the same set."""
        return Likeness(self.scores, [self.own[(place + 1) % len(self.own)] for place in range(len(self.own))],
                        self.outputs)  # fmt: skip


@dataclass(frozen=True)
class PictureRow:
    """One attack that makes pictures, with its controls, against one side in one space."""

    title: str
    knows: Sequence[str]  # of: weights, base, public pictures, recipe
    space: str
    side: str  # PRIVATE or HELD_OUT
    reads_code: bool  # a prompt embedding was made from the weights
    found: Likeness
    controls: Mapping[str, Likeness]


@dataclass(frozen=True)
class Attribution:
    """Whether a row shows more than its controls, and by how much."""

    credited: bool
    gains: Mapping[str, Figure]  # paired by victim: own-minus-others of the row less that of the control
    on_base: Figure | None  # own-minus-others of the code on the base; chance is 0
    because: str


def random_outputs(victims: int, outputs: int, pictures: Tensor, seed: int) -> Tensor:
    """[V, S, d] vectors with no picture behind them, for the scorer: they must come out at chance.

    Args:
        pictures: [P, d] projected pictures, whose spread the vectors take.
    """
    shape = (victims, outputs, pictures.shape[1])
    return torch.randn(shape, generator=stream(seed, "random vectors")) * pictures.std(0)


def attribution(row: PictureRow) -> Attribution:
    """The verdict on one row.

    A row with a code is credited where the code does better than the mean code and better than another LoRA's code
    (both paired intervals above 0), or where the code on the base comes nearer to its own person than to others. A row
    without a code is credited where it does better than the base, the class prompt and other persons' weights.

    Raises:
        MissingControls: controls that the row lacks.
    """
    check_controls(row)
    own = row.found.above_others()
    if len(own) < FEWEST:
        return Attribution(False, {}, None, f"no verdict: {len(own)} victims, of which a verdict needs {FEWEST}")
    below = (MEAN_CODE, PERMUTED, CLASS, BASE) if row.reads_code else TO_BEAT
    gains = {name: mean_figure(own - row.controls[name].above_others()) for name in below}
    if not row.reads_code:
        weaker = [name for name in TO_BEAT if gains[name].low <= 0]
        said = f"no better than: {', '.join(weaker)}" if weaker else "better than base, class prompt and other LoRAs"
        return Attribution(not weaker, gains, None, said)
    on_base = mean_figure(row.controls[ON_BASE].above_others())
    differs = gains[MEAN_CODE].low > 0 and gains[PERMUTED].low > 0
    if differs:
        said = "the code does better than the mean code and than other LoRAs' codes"
    elif on_base.low > 0:
        said = "the code shows its person on the base alone"
    else:
        said = "any code does as well: what is seen comes from the tuned model, nothing was read from the weights"
    return Attribution(differs or on_base.low > 0, gains, on_base, said)


def check_controls(row: PictureRow) -> None:
    """Raises: MissingControls, with what is missing; ValueError for controls of another number of victims or sets."""
    missing = [name for name in (OF_CODES if row.reads_code else OF_PICTURES) if name not in row.controls]
    if missing:
        raise MissingControls(f"a row is not shown without its controls: '{row.title}' lacks {', '.join(missing)}")
    shapes = {name: tuple(one.scores.shape) for name, one in row.controls.items()}
    other = {name: shape for name, shape in shapes.items() if shape != tuple(row.found.scores.shape)}
    if other:
        raise ValueError(f"'{row.title}' has {tuple(row.found.scores.shape)} victims x sets, its controls have {other}")


def memorised(private: Likeness, held_out: Likeness) -> Figure:
    """How much nearer outputs come to the private pictures than to other pictures of the same persons, by victim.

    Above what a ceiling row of unrelated outputs has, it is memory and not identity.
    """
    return mean_figure(private.above_others() - held_out.above_others())
