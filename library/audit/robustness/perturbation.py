"""The strongest change of a given size: projected gradient ascent in a ball, the best point kept for each picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

REACH = 2.5  # a start's steps together, in radii: from any start every point of the ball can be reached and left

Values = Callable[[Tensor], Tensor]  # points [B, ...] -> what is to grow [B]
Ascent = Callable[[Tensor], tuple[Tensor, Tensor]]  # the same and its gradient [B, ...]


class Ball(Protocol):
    """All points that a change of one size may reach."""

    @property
    def radius(self) -> float:
        """The size."""

    def drawn(self, generators: Sequence[torch.Generator]) -> Tensor:
        """A point of chance for each picture, from its own stream."""

    def at_the_rim(self, generators: Sequence[torch.Generator]) -> Tensor:
        """The same, as far from the centre as the size allows: noise without an aim."""

    def stepped(self, points: Tensor, gradients: Tensor, share: float) -> Tensor:
        """Steepest ascent by a share of the radius, back in the ball."""


@dataclass(frozen=True)
class PixelBall:
    """Pictures in 0..1 none of whose values moves by more than the radius (L-infinity), and that stay in 0..1."""

    centre: Tensor  # [B, 3, H, W]
    radius: float

    def drawn(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Uniform in the ball."""
        return self.projected(self.centre + self.radius * (2 * self._uniform(generators) - 1))

    def at_the_rim(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Every value moves by the whole radius, up or down by a coin; less where 0 or 1 is nearer."""
        return self.projected(self.centre + self.radius * (self._uniform(generators) - 0.5).sign())

    def stepped(self, points: Tensor, gradients: Tensor, share: float) -> Tensor:
        """x + share * radius * sign(gradient), projected: arXiv 1706.06083."""
        return self.projected(points + share * self.radius * gradients.sign())

    def projected(self, points: Tensor) -> Tensor:
        """The nearest points of the ball."""
        nearest = torch.minimum(torch.maximum(points, self.centre - self.radius), self.centre + self.radius)
        return nearest.clamp(0, 1)

    def _uniform(self, generators: Sequence[torch.Generator]) -> Tensor:
        shape = self.centre.shape[1:]
        return torch.stack([torch.rand(shape, generator=one) for one in generators]).to(self.centre)


@dataclass(frozen=True)
class TextBall:
    """Text states that move by at most a share of their own length (L2 over all words and widths)."""

    centre: Tensor  # [B, T, D]
    radius: float  # share of the length

    @property
    def lengths(self) -> Tensor:
        """[B, 1, 1] in the states' own unit."""
        return self.radius * self.centre.flatten(1).norm(dim=1)[:, None, None]

    def drawn(self, generators: Sequence[torch.Generator]) -> Tensor:
        """A direction of chance, and a length uniform up to the radius."""
        shares = torch.stack([torch.rand((), generator=one) for one in generators])[:, None, None].to(self.centre)
        return self.centre + shares * self.lengths * self._directions(generators)

    def at_the_rim(self, generators: Sequence[torch.Generator]) -> Tensor:
        """A direction of chance at the whole radius."""
        return self.centre + self.lengths * self._directions(generators)

    def stepped(self, points: Tensor, gradients: Tensor, share: float) -> Tensor:
        """x + share * radius * gradient / |gradient|, projected."""
        moved = points + share * self.lengths * _of_length_one(gradients)
        away = moved - self.centre
        length = away.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-30)
        return self.centre + away * (self.lengths / length).clamp_max(1)

    def _directions(self, generators: Sequence[torch.Generator]) -> Tensor:
        shape = self.centre.shape[1:]
        return _of_length_one(torch.stack([torch.randn(shape, generator=one) for one in generators]).to(self.centre))


def _of_length_one(values: Tensor) -> Tensor:
    """[B, T, D] each of length 1; zeros stay."""
    return values / values.flatten(1).norm(dim=1)[:, None, None].clamp_min(1e-30)


@dataclass(frozen=True)
class Strongest:
    """What an ascent found in a batch."""

    points: Tensor  # [B, ...] the best of all steps and starts
    values: Tensor  # [B] there
    one_step: Tensor  # [B] value after a single step across the whole ball, from the first start


def strongest(ascent: Ascent, values: Values, ball: Ball, starts: Sequence[Tensor], steps: int) -> Strongest:
    """Projected gradient ascent from every start (arXiv 1706.06083), the best point kept picture by picture.

    The centre is no candidate: an ascent that finds nothing must be seen to find nothing.

    Args:
        starts: points of the ball, at least one.
        steps: of each start, each ``REACH / steps`` of the radius long.
    """
    if steps < 1 or not starts:
        raise ValueError(f"at least one step and one start are needed, got {steps} steps and {len(starts)} starts")
    best_points = starts[0]
    best = torch.full((len(best_points),), -torch.inf, device=best_points.device)
    one_step = best
    for number, start in enumerate(starts):
        points = start
        for step in range(steps):
            here, gradients = ascent(points)
            best_points, best = _better(best_points, best, points, here)
            if number == 0 and step == 0:
                one_step = values(ball.stepped(points, gradients, 2.0))
            points = ball.stepped(points, gradients, REACH / steps)
        best_points, best = _better(best_points, best, points, values(points))
    return Strongest(best_points, best, one_step)


def _better(best_points: Tensor, best: Tensor, points: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
    """The better of two points for each picture."""
    wins = here > best
    return torch.where(wins.view(-1, *[1] * (points.dim() - 1)), points, best_points), torch.where(wins, here, best)
