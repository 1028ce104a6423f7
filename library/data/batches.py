"""Batches as pure functions of key, epoch and step: members for the LoRA, aux cycles for the attacker."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.data.captions import Moment, is_static, plain_caption, training_caption
from library.data.latent_source import EncodedPicture, LatentSource
from library.data.training_set import BatchKey, TrainingSet
from library.seeding import StreamKey, permutation, stream

# captions -> tokens [B, pieces, 77] (of two text encoders [B, 2, pieces, 77]) and their weights, or None
Tokenize = Callable[[list[str]], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Batch:
    """Pictures of one training size, ready for the model."""

    mean: Tensor  # [B, C, h, w] posterior mean, unscaled
    std: Tensor  # [B, C, h, w] posterior standard deviation, unscaled
    tokens: Tensor  # [B, pieces, 77]; of two text encoders [B, 2, pieces, 77]
    token_weights: Tensor | None  # [B, pieces, 77] of the text states; None where all are 1
    is_member: Tensor  # [B] bool; regularisation images are not
    weights: Tensor  # [B] of the adaptation loss: 1, or prior_loss_weight for a regularisation image
    mask: Tensor | None  # [B, 1, h, w] 0 .. 1, weight of the adaptation loss per latent pixel; None = 1 everywhere
    framing: Tensor  # [B, 6] original height and width, top and left of the crop, its height and width, in pixels
    indices: tuple[int, ...]  # of the pictures in the training set

    def latents(self, generator: torch.Generator) -> Tensor:
        """A draw from the posterior, [B, C, h, w] fp32, unscaled."""
        noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean.float() + self.std.float() * noise

    def repeated(self, times: int) -> "Batch":
        """Every picture so many times in a row: for several draws of timestep and noise."""
        if times == 1:
            return self

        def each(values: Tensor) -> Tensor:
            return values.repeat_interleave(times, dim=0)

        return Batch(
            mean=each(self.mean),
            std=each(self.std),
            tokens=each(self.tokens),
            token_weights=None if self.token_weights is None else each(self.token_weights),
            is_member=each(self.is_member),
            weights=each(self.weights),
            mask=None if self.mask is None else each(self.mask),
            framing=each(self.framing),
            indices=tuple(index for index in self.indices for _ in range(times)),
        )

    def picked(self, places: Sequence[int]) -> "Batch":
        """The pictures at some places of the batch, in this order."""
        some = list(places)
        return Batch(
            mean=self.mean[some],
            std=self.std[some],
            tokens=self.tokens[some],
            token_weights=None if self.token_weights is None else self.token_weights[some],
            is_member=self.is_member[some],
            weights=self.weights[some],
            mask=None if self.mask is None else self.mask[some],
            framing=self.framing[some],
            indices=tuple(self.indices[place] for place in some),
        )


class Pictures:
    """The pictures of a run as the model sees them; methods take their indices in the training set."""

    def __init__(
        self,
        training_set: TrainingSet,
        latent_source: LatentSource,
        tokenize: Tokenize,
        *,
        steps_per_epoch: int,
        total_steps: int,
        key: StreamKey,
    ) -> None:
        self.training_set = training_set
        self.examples = training_set.examples
        self.is_member = training_set.is_member
        self.latent_source = latent_source
        self.tokenize = tokenize
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps
        self.key = key
        self.static_captions = all(is_static(one.caption, one.subset.captions) for one in self.examples)
        plain = [plain_caption(one.caption, one.subset.captions) for one in self.examples]
        self._plain, self._plain_weights = tokenize(plain)

    def in_training(
        self, training_set: TrainingSet, *, steps_per_epoch: int, total_steps: int, key: StreamKey
    ) -> "Pictures":
        """The same encoded pictures in another training, with other uses, length and random draws."""
        other = copy.copy(self)
        other.training_set, other.steps_per_epoch, other.total_steps = training_set, steps_per_epoch, total_steps
        other.key = key
        return other

    def shape(self, index: int) -> tuple[int, ...]:
        """Latent shape [C, h, w] of a picture."""
        return self.latent_source.shape(index)

    def one_shape(self) -> bool:
        """Whether all latents share one shape."""
        return len({self.shape(index) for index in range(len(self.examples))}) == 1

    def batch(self, indices: Sequence[int], step: int, *use: str | int) -> Batch:
        """One batch of pictures with one shape, for one step; ``use`` names the purpose of the random draws."""
        generators = [stream(self.key, "look", index, step, *use) for index in indices]
        tokens = [self._used_tokens(index, step, *use) for index in indices]
        return self._together(indices, self.latent_source.of(indices, generators), tokens)

    def batches_by_shape(self, indices: Sequence[int], most: int, step: int, *use: str | int) -> list[Batch]:
        """Batches of one shape each, with at most ``most`` pictures, from pictures of any shape."""
        return [self.batch(some, step, *use) for some in self._by_shape(indices, most)]

    def plain_batches(self, indices: Sequence[int], most: int) -> list[Batch]:
        """Batches without augmentation: complete captions and centre crops, without any random draw."""
        return [
            self._together(some, self.latent_source.of(some, None), [self._plain_tokens(index) for index in some])
            for some in self._by_shape(indices, most)
        ]

    def plain_tokens(self, indices: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, pieces, 77] of complete captions, and their weights unless all are 1; no picture is read."""
        return _stacked([self._plain_tokens(index) for index in indices])

    def _by_shape(self, indices: Sequence[int], most: int) -> list[list[int]]:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index in indices:
            by_shape.setdefault(self.shape(index), []).append(index)
        return [same[start : start + most] for same in by_shape.values() for start in range(0, len(same), most)]

    def _together(
        self, indices: Sequence[int], encoded: Sequence[EncodedPicture], tokens: Sequence[tuple[Tensor, Tensor | None]]
    ) -> Batch:
        """One batch from latents and tokens with weights."""
        mean = torch.stack([one_encoded.moments.mean for one_encoded in encoded])
        masks = [one_encoded.mask for one_encoded in encoded]
        ids, weights = _stacked(tokens)
        full = torch.ones(1, *mean.shape[-2:])
        return Batch(
            mean=mean,
            std=torch.stack([one_encoded.moments.std for one_encoded in encoded]),
            tokens=ids,
            token_weights=weights,
            is_member=torch.tensor([self.is_member[index] for index in indices]),
            weights=torch.tensor([self.training_set.weights[index] for index in indices]),
            mask=None
            if all(mask is None for mask in masks)
            else torch.stack([full if mask is None else mask for mask in masks]),
            framing=torch.stack([one_encoded.framing for one_encoded in encoded]),
            indices=tuple(indices),
        )

    def _plain_tokens(self, index: int) -> tuple[Tensor, Tensor | None]:
        """Tokens of the complete caption."""
        return self._plain[index], None if self._plain_weights is None else self._plain_weights[index]

    def _used_tokens(self, index: int, step: int, *use: str | int) -> tuple[Tensor, Tensor | None]:
        """Tokens of one use of the caption."""
        example = self.examples[index]
        rules = example.subset.captions
        if is_static(example.caption, rules):
            return self._plain_tokens(index)
        moment = Moment(step, step // self.steps_per_epoch + 1, self.total_steps)
        text = training_caption(example.caption, rules, moment, stream(self.key, "caption", index, step, *use))
        tokens, weights = self.tokenize([text])
        return tokens[0], None if weights is None else weights[0]


def _stacked(tokens: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Tokens of several captions in one tensor; weights are None if all are 1."""
    ids = torch.stack([one for one, _ in tokens])
    if all(weights is None for _, weights in tokens):
        return ids, None
    return ids, torch.stack([torch.ones(one.shape[-2:]) if weights is None else weights for one, weights in tokens])


class MemberBatches:
    """The LoRA's batches: members and regularisation images, each with its uses per epoch, ordered by (key, epoch)."""

    def __init__(
        self,
        pictures: Pictures,
        *,
        accumulation: int,
        key: StreamKey,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.pictures = pictures
        self.accumulation = accumulation  # passes per optimizer step
        self.key = key
        self.rank = rank
        self.processes = processes
        self.indices = [index for index, times in enumerate(pictures.training_set.uses) for _ in range(times)]
        self.steps_per_epoch = pictures.training_set.steps_per_epoch(processes, accumulation)
        self._order: tuple[int, list[list[int]]] = (-1, [])

    def epoch_indices(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch as indices: shuffled within each dataset and size, divided, shuffled again."""
        by_key: dict[BatchKey, list[int]] = {}
        for index in self.indices:
            by_key.setdefault(self.pictures.training_set.batch_key(index), []).append(index)
        batches: list[list[int]] = []
        for key, same in sorted(by_key.items()):
            order = permutation(len(same), self.key, "epoch order", epoch, *key)
            shuffled = [same[index] for index in order]
            size = self.pictures.examples[same[0]].subset.batch_size
            batches += [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        return [batches[index] for index in permutation(len(batches), self.key, "batch order", epoch)]

    def images_per_step(self) -> float:
        """Images per optimizer step of all processes together, averaged over an epoch."""
        return len(self.indices) / self.steps_per_epoch

    def of_step(self, step: int) -> list[Batch]:
        """The batches of an optimizer step (counted from 0) on this process; the last of an epoch may be smaller.

        Several processes take the batches in turn; an incomplete round is filled from the front of the list, so that
        every process has the same number.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self.epoch_indices(epoch))
        order = self._order[1]
        rounds = math.ceil(len(order) / self.processes)
        dealt = [order[turn % len(order)] for turn in range(self.rank, rounds * self.processes, self.processes)]
        mine = dealt[place * self.accumulation : (place + 1) * self.accumulation]
        return [self.pictures.batch(indices, step, part, self.rank) for part, indices in enumerate(mine)]


class AuxCycle:
    """An endless cycle over one aux side, with a new order in each round; two cycles are independent."""

    def __init__(self, indices: Sequence[int], key: StreamKey, side: str) -> None:
        self.indices = list(indices)
        self.key = key
        self.side = side
        self._order: tuple[int, list[int]] = (-1, [])  # of the cycle in use

    def take(self, start: int, count: int) -> list[int]:
        """Indices at positions start .. start + count - 1 of the endless sequence."""
        taken: list[int] = []
        for position in range(start, start + count):
            cycle, place = divmod(position, len(self.indices))
            if self._order[0] != cycle:
                self._order = (cycle, permutation(len(self.indices), self.key, "aux order", self.side, cycle))
            taken.append(self.indices[self._order[1][place]])
        return taken
