"""The units of privacy of a training set: whose part in a run is hidden as a whole."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from library.data.training_set import TrainingSet
from library.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrivacyUnits:
    """The groups of the split among the members: all pictures of a person, say, or single pictures without groups."""

    indices: Sequence[Sequence[int]]  # of each unit's pictures in the training set
    kind: str  # "group", or "picture" where each unit is one

    def sizes(self) -> list[int]:
        """Pictures of each unit, in all their datasets and resolutions."""
        return [len(unit) for unit in self.indices]

    def mean_size(self) -> float:
        """Pictures of a unit on average."""
        return sum(self.sizes()) / len(self.indices)

    def require_passes(self, batch_size: int) -> None:
        """Raises: InputError where a unit has more pictures than one pass takes."""
        largest = max(self.sizes())
        if largest > batch_size:
            count = sum(size > batch_size for size in self.sizes())
            raise InputError(
                f"{count} of {len(self.indices)} groups have more pictures than train_batch_size {batch_size}, up to "
                f"{largest}: the gradient of a group is clipped as a whole, so it must fit into one pass; set "
                f"train_batch_size = {largest}, or divide the groups (group_by)"
            )

    def require_rate(self, batch_size: int) -> float:
        """The probability with which a unit enters a step of ``batch_size`` units on average.

        Raises:
            InputError: more units than there are.
        """
        count = len(self.indices)
        if batch_size > count:
            raise InputError(
                f"dp_batch_size {batch_size} is more than the {count} units of privacy of the run; set it to "
                f"{count} or less ({count}: every unit is in every step)"
            )
        return batch_size / count


def privacy_units(training_set: TrainingSet) -> PrivacyUnits:
    """Members by group, in the order of the training set; repeats do not count.

    Raises:
        InputError: regularisation images, which a private step does not use.
    """
    if not all(training_set.is_member[index] for index, times in enumerate(training_set.uses) if times):
        raise InputError(
            "DPLoRA trains on members alone: take the regularisation images (is_reg) out of dataset_config"
        )
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(training_set.examples):
        if training_set.is_member[index]:
            groups.setdefault(example.group, []).append(index)
    if any(times > 1 for times in training_set.uses):
        logger.info("repeats are not used: each unit of privacy enters a step as a whole, or not at all")
    together = list(groups.values())
    alone = all(len({training_set.examples[index].pixels for index in unit}) == 1 for unit in together)
    return PrivacyUnits(together, "picture" if alone else "group")
