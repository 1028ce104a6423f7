"""Batches as pure functions of seed, epoch and step: members for the LoRA, endless aux cycles for the attacker."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.data.captions import training_caption
from library.data.examples import Example
from library.data.latents import Moments
from library.seeding import permutation, stream


@dataclass(frozen=True)
class Batch:
    """Pictures of one training size, ready for the model."""

    mean: Tensor  # [B, C, h, w] posterior mean, unscaled
    std: Tensor  # [B, C, h, w] posterior standard deviation, unscaled
    tokens: Tensor  # [B, pieces, 77]
    token_weights: Tensor | None  # [B, pieces, 77] of the text states; None where all are 1
    is_member: Tensor  # [B] bool; regularisation images are not
    weights: Tensor  # [B] of the adaptation loss: 1, or prior_loss_weight for a regularisation image
    mask: Tensor | None  # [B, 1, h, w] 0 .. 1, weight of the adaptation loss per latent pixel; None = 1 everywhere
    rows: tuple[int, ...]  # which pictures, as rows of the picture list

    def latents(self, generator: torch.Generator) -> Tensor:
        """A draw from the posterior, [B, C, h, w] fp32, unscaled."""
        noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean.float() + self.std.float() * noise


def steps_per_epoch(
    shapes: Sequence[tuple[int, ...]], repeats: Sequence[int], *, batch_size: int, accumulation: int, processes: int
) -> int:
    """Optimizer steps in which every picture is used ``repeats`` times; a batch never mixes shapes."""
    images: dict[tuple[int, ...], int] = {}
    for shape, times in zip(shapes, repeats, strict=True):
        images[shape] = images.get(shape, 0) + times
    count = sum(math.ceil(number / batch_size) for number in images.values())
    return math.ceil(count / (processes * accumulation))


class Pictures:
    """Encoded pictures of all sides in one list; rows point into it, and each row knows whether it is a member."""

    def __init__(
        self,
        examples: Sequence[Example],
        moments: Sequence[Moments],
        is_member: Sequence[bool],
        tokenize: Callable[[list[str]], Tensor],
        *,
        shuffle_caption: bool,
        keep_tokens: int,
        caption_separator: str,
        seed: int,
    ) -> None:
        self.examples = list(examples)
        self.moments = list(moments)
        self.is_member = list(is_member)
        self.tokenize = tokenize
        self.shuffle_caption = shuffle_caption
        self.keep_tokens = keep_tokens
        self.caption_separator = caption_separator
        self.seed = seed
        self._tokens = {} if shuffle_caption else dict(enumerate(tokenize([example.caption for example in examples])))

    def shape(self, row: int) -> tuple[int, ...]:
        """Latent shape [C, h, w] of a picture."""
        return tuple(self.moments[row].mean.shape)

    def one_shape(self) -> bool:
        """Whether all latents share one shape."""
        return len({self.shape(row) for row in range(len(self.moments))}) == 1

    def batch(self, rows: Sequence[int], step: int, *use: str | int) -> Batch:
        """Put rows of one shape together for one optimizer step; ``use`` names the occasion that draws are made for."""
        return Batch(
            mean=torch.stack([self.moments[row].mean for row in rows]),
            std=torch.stack([self.moments[row].std for row in rows]),
            tokens=torch.stack([self._tokens_of(row, step, *use) for row in rows]),
            token_weights=None,
            is_member=torch.tensor([self.is_member[row] for row in rows]),
            weights=torch.ones(len(rows)),
            mask=None,
            rows=tuple(rows),
        )

    def batches_by_shape(self, rows: Sequence[int], most: int, step: int, *use: str | int) -> list[Batch]:
        """Put rows of any shapes into batches of one shape with at most ``most`` pictures."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for row in rows:
            by_shape.setdefault(self.shape(row), []).append(row)
        return [
            self.batch(same[start : start + most], step, *use)
            for same in by_shape.values()
            for start in range(0, len(same), most)
        ]

    def plain_batches(self, rows: Sequence[int], most: int) -> list[Batch]:
        """Rows as they are: whole captions, nothing dropped, shuffled, mirrored or cropped by chance."""
        return self.batches_by_shape(rows, most, 0, "check")

    def _tokens_of(self, row: int, *use: str | int) -> Tensor:
        if not self.shuffle_caption:
            return self._tokens[row]
        caption = training_caption(
            self.examples[row].caption,
            shuffle=True,
            keep_tokens=self.keep_tokens,
            separator=self.caption_separator,
            generator=stream(self.seed, "caption", row, *use),
        )
        return self.tokenize([caption])[0]


class MemberBatches:
    """The LoRA's data: every member ``repeats`` times an epoch, in an order fixed by (seed, epoch)."""

    def __init__(
        self,
        pictures: Pictures,
        *,
        batch_size: int,
        accumulation: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.pictures = pictures
        self.batch_size = batch_size
        self.accumulation = accumulation  # passes per optimizer step
        self.seed = seed
        self.rank = rank
        self.processes = processes
        members = [row for row, is_member in enumerate(pictures.is_member) if is_member]
        self.rows = [row for row in members for _ in range(pictures.examples[row].repeats)]
        self.steps_per_epoch = steps_per_epoch(
            [pictures.shape(row) for row in members],
            [pictures.examples[row].repeats for row in members],
            batch_size=batch_size,
            accumulation=accumulation,
            processes=processes,
        )
        self._order: tuple[int, list[list[int]]] = (-1, [])

    def epoch_rows(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch as lists of rows: shuffled inside each shape, cut, and the batch list shuffled."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for row in self.rows:
            by_shape.setdefault(self.pictures.shape(row), []).append(row)
        batches: list[list[int]] = []
        for shape, same in sorted(by_shape.items()):
            order = permutation(len(same), self.seed, "epoch order", epoch, *shape)
            shuffled = [same[index] for index in order]
            size = self.batch_size
            batches += [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
        return [batches[index] for index in permutation(len(batches), self.seed, "batch order", epoch)]

    def images_per_step(self) -> int:
        """Images of a full optimizer step, all processes together."""
        return self.batch_size * self.accumulation * self.processes

    def of_step(self, step: int) -> list[Batch]:
        """The batches of an optimizer step (counted from 0) on this process; the last of an epoch may hold fewer.

        With several processes the batch list is dealt out in turn; an incomplete round is filled from its front.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self.epoch_rows(epoch))
        order = self._order[1]
        missing = -len(order) % self.processes
        dealt = (order + order[:missing])[self.rank :: self.processes]
        mine = dealt[place * self.accumulation : (place + 1) * self.accumulation]
        return [self.pictures.batch(rows, step, part, self.rank) for part, rows in enumerate(mine)]


class AuxCycle:
    """An endless cycle over one aux side, reshuffled whenever it wraps; two of them are drawn from independently."""

    def __init__(self, rows: Sequence[int], seed: int, side: str) -> None:
        self.rows = list(rows)
        self.seed = seed
        self.side = side
        self._order: tuple[int, list[int]] = (-1, [])  # of the cycle in use

    def take(self, start: int, count: int) -> list[int]:
        """Rows at positions start .. start + count - 1 of the endless sequence."""
        taken: list[int] = []
        for position in range(start, start + count):
            cycle, place = divmod(position, len(self.rows))
            if self._order[0] != cycle:
                self._order = (cycle, permutation(len(self.rows), self.seed, "aux order", self.side, cycle))
            taken.append(self.rows[self._order[1][place]])
        return taken
