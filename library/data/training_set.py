"""The training set: each picture of a run with its size, membership and number of uses."""

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
    """The split's pictures in its order without non-members-test, then the regularisation images.

    Indices of the three other sides are those of the split itself.
    """

    examples: list[Example]
    sizes: list[tuple[int, int]]  # training size (width, height) in pixels
    is_member: list[bool]
    uses: list[int]  # in training batches per epoch: 0 for non-members
    weights: list[float]  # of the adaptation loss
    split_hash: str

    def batch_key(self, index: int) -> BatchKey:
        """The key that all pictures of a training batch share."""
        return (self.examples[index].subset.dataset, *self.sizes[index])

    def steps_per_epoch(self, processes: int, accumulation: int) -> int:
        """Optimizer steps in which every picture has its uses; smaller batches are kept."""
        images: dict[BatchKey, int] = {}
        most: dict[BatchKey, int] = {}
        for index, times in enumerate(self.uses):
            if times:
                images[self.batch_key(index)] = images.get(self.batch_key(index), 0) + times
                most[self.batch_key(index)] = self.examples[index].subset.batch_size
        count = sum(math.ceil(number / most[key]) for key, number in images.items())
        return math.ceil(count / (processes * accumulation))

    def member_uses(self) -> list[int]:
        """Uses per epoch of each member picture, in all datasets, resolutions and copies together."""
        totals: dict[str, int] = {}
        for example, is_member, times in zip(self.examples, self.is_member, self.uses, strict=True):
            if is_member:
                totals[example.pixels] = totals.get(example.pixels, 0) + times
        return list(totals.values())

    def common_size(self, otherwise: tuple[int, int]) -> tuple[int, int]:
        """The training size of all pictures if they share one, else the given one."""
        return self.sizes[0] if len(set(self.sizes)) == 1 else otherwise

    def largest_batch(self) -> int:
        """Images of the largest training batch."""
        return max(example.subset.batch_size for example in self.examples)

    def captions_hash(self) -> str:
        """SHA-256 (hex) over the captions and their pictures; key it before writing, since captions can be guessed."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr((example.pixels, example.caption)).encode())
        return digest.hexdigest()

    def hash(self) -> str:
        """SHA-256 (hex) over sides, pictures, sizes, uses, weights and rules: a resumed run must have the same."""
        digest = hashlib.sha256(self.split_hash.encode())
        for index, example in enumerate(self.examples):
            facts = (example.pixels, self.sizes[index], self.uses[index], self.weights[index], asdict(example.subset))
            digest.update(repr(facts).encode())
        return digest.hexdigest()


def undivided_set(candidates: Sequence[Example], regularisation: Sequence[Example], multiple: int) -> TrainingSet:
    """What kohya would train on: every candidate, with nothing held out; only its counts are of use.

    Args:
        multiple: sides must be multiples of this many pixels.
    """
    public_uses = regularisation_uses(regularisation, candidates)
    examples = [*candidates, *(one for one, times in zip(regularisation, public_uses, strict=True) if times)]
    uses = [*(example.repeats for example in candidates), *(times for times in public_uses if times)]
    members = [place < len(candidates) for place in range(len(examples))]
    return TrainingSet(examples, assign_buckets(examples, multiple), members, uses, [1.0] * len(examples), "")


def build_training_set(
    split: Split, regularisation: Sequence[Example], prior_loss_weight: float, multiple: int
) -> TrainingSet:
    """The training set of a run, after a check that the model takes every picture's size.

    Args:
        prior_loss_weight: weight of a regularisation image in the adaptation loss.
        multiple: sides must be multiples of this many pixels.

    Raises:
        InputError: sizes that the model cannot take; a dataset without members in the split.
    """
    seen, public = split.in_order()[: split.used_in_training()], list(regularisation)
    members = [side.startswith("members") for side in split.sides_in_order()[: len(seen)]]
    uses = [example.repeats if member else 0 for example, member in zip(seen, members, strict=True)]
    public_uses = regularisation_uses(public, [one for one, member in zip(seen, members, strict=True) if member])
    kept = [place for place, times in enumerate(public_uses) if times]
    examples = seen + [public[place] for place in kept]
    uses += [public_uses[place] for place in kept]
    sizes = assign_buckets(examples, multiple)
    assign_buckets(split.sides["non-members-test"], multiple)  # an audit needs sizes that the model takes
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
    """Uses per epoch of each regularisation image, in total as many as those of its dataset's members, as in kohya.

    Images are used in their order with their repeats, then once more each, until the number is reached.

    Raises:
        InputError: regularisation images of a dataset without members.
    """
    faults = Faults()
    uses = [0] * len(regularisation)
    for dataset in dict.fromkeys(example.subset.dataset for example in regularisation):
        indices = [index for index, example in enumerate(regularisation) if example.subset.dataset == dataset]
        wanted = sum(example.repeats for example in members if example.subset.dataset == dataset)
        if not wanted:
            faults.add(
                f"datasets[{dataset}] has regularisation images but no members after the split; give it more pictures "
                "to train on"
            )
        for index in indices:
            uses[index] = min(regularisation[index].repeats, wanted)
            wanted -= uses[index]
        for place in range(wanted):
            uses[indices[place % len(indices)]] += 1
    faults.raise_if_any()
    return uses
