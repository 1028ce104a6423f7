"""The training set: what each picture is to the run, its size, and how often it is used."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from library.data.buckets import assign_buckets, report_buckets
from library.data.examples import Example
from library.data.split import Split
from library.errors import Faults

logger = logging.getLogger(__name__)

BatchKey = tuple[int, int, int]  # dataset, width, height: a batch never mixes them


@dataclass(frozen=True)
class TrainingSet:
    """Rows: the split's pictures in its order, non-members-test left out, then the regularisation images.

    Rows of the other three sides are those of the split itself.
    """

    examples: list[Example]
    sizes: list[tuple[int, int]]  # training size (width, height) in pixels
    is_member: list[bool]
    uses: list[int]  # in training batches per epoch: 0 for non-members
    weights: list[float]  # of the adaptation loss
    split_hash: str

    def batch_key(self, row: int) -> BatchKey:
        """What the pictures of a training batch share."""
        return (self.examples[row].subset.dataset, *self.sizes[row])

    def steps_per_epoch(self, processes: int, accumulation: int) -> int:
        """Optimizer steps in which every row gets its uses; short batches are kept."""
        images: dict[BatchKey, int] = {}
        most: dict[BatchKey, int] = {}
        for row, times in enumerate(self.uses):
            if times:
                images[self.batch_key(row)] = images.get(self.batch_key(row), 0) + times
                most[self.batch_key(row)] = self.examples[row].subset.batch_size
        count = sum(math.ceil(number / most[key]) for key, number in images.items())
        return math.ceil(count / (processes * accumulation))

    def member_uses(self) -> list[int]:
        """Uses per epoch of each member picture, all datasets, resolutions and copies of it together."""
        totals: dict[str, int] = {}
        for example, is_member, times in zip(self.examples, self.is_member, self.uses, strict=True):
            if is_member:
                totals[example.pixels] = totals.get(example.pixels, 0) + times
        return list(totals.values())

    def common_size(self, otherwise: tuple[int, int]) -> tuple[int, int]:
        """The training size of all rows where they share one, else the one given."""
        return self.sizes[0] if len(set(self.sizes)) == 1 else otherwise

    def largest_batch(self) -> int:
        """Images of the largest training batch."""
        return max(example.subset.batch_size for example in self.examples)

    def hash(self) -> str:
        """SHA-256 (hex) over sides, pictures, sizes, uses, weights and rules: what a resumed run must find again."""
        digest = hashlib.sha256(self.split_hash.encode())
        for row, example in enumerate(self.examples):
            facts = (example.pixels, self.sizes[row], self.uses[row], self.weights[row], asdict(example.subset))
            digest.update(repr(facts).encode())
        return digest.hexdigest()


def build_training_set(
    split: Split, regularisation: Sequence[Example], prior_loss_weight: float, multiple: int
) -> TrainingSet:
    """Put the pictures of a run into rows, once all have a size that the model takes.

    Args:
        prior_loss_weight: weight of a regularisation image in the adaptation loss.
        multiple: the model's own step in pixels.

    Raises:
        InputError: sizes that the model cannot take; a dataset whose members the split left out altogether.
    """
    seen, public = split.in_order()[: split.used_in_training()], list(regularisation)
    members = [side.startswith("members") for side in split.sides_in_order()[: len(seen)]]
    uses = [example.repeats if member else 0 for example, member in zip(seen, members, strict=True)]
    public_uses = regularisation_uses(public, [one for one, member in zip(seen, members, strict=True) if member])
    kept = [place for place, times in enumerate(public_uses) if times]
    examples = seen + [public[place] for place in kept]
    uses += [public_uses[place] for place in kept]
    sizes = assign_buckets(examples, multiple)
    assign_buckets(split.sides["non-members-test"], multiple)  # an audit needs them at a size of the model
    report_buckets(examples, sizes, uses)
    if kept:
        logger.info(
            "regularisation: %d of %d public images, used %d times an epoch at weight %g",
            len(kept),
            len(public),
            sum(public_uses),
            prior_loss_weight,
        )
    return TrainingSet(
        examples=examples,
        sizes=sizes,
        is_member=members + [False] * len(kept),
        uses=uses,
        weights=[1.0] * len(seen) + [prior_loss_weight] * len(kept),
        split_hash=split.hash(),
    )


def regularisation_uses(regularisation: Sequence[Example], members: Sequence[Example]) -> list[int]:
    """Uses per epoch of each regularisation image: in all as many as its dataset's members have, as in kohya.

    The images are taken in their order with their repeats, then once more each, until the number is met.

    Raises:
        InputError: regularisation images of a dataset without members.
    """
    faults = Faults()
    uses = [0] * len(regularisation)
    for dataset in dict.fromkeys(example.subset.dataset for example in regularisation):
        rows = [row for row, example in enumerate(regularisation) if example.subset.dataset == dataset]
        wanted = sum(example.repeats for example in members if example.subset.dataset == dataset)
        if not wanted:
            faults.add(
                f"datasets[{dataset}] has regularisation images and no members after the split; give it more pictures "
                "to train on"
            )
        for row in rows:
            uses[row] = min(regularisation[row].repeats, wanted)
            wanted -= uses[row]
        for place in range(wanted):
            uses[rows[place % len(rows)]] += 1
    faults.raise_if_any()
    return uses
