"""Validation passes: both aux sides under fixed noise, for the proxy's accuracy and the adaptation losses."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from library.assembly.contexts import Contexts
from library.assembly.game import Game
from library.assembly.validation_plan import ValidationPlan
from library.data.batches import AuxCycle, Batch, Pictures
from library.diffusion.denoising import Denoiser, fixed_draws
from library.diffusion.noise import Draw
from library.privacy.attackers.build import ProxyAttacker
from library.privacy.attackers.losses import membership_margin
from library.privacy.proxy_history import ProxyHistory, check_proxy
from library.seeding import permutation, stream
from library.training.state import TrainingState


@dataclass(frozen=True)
class Validation:
    """Looks at both aux sides; the test sides stay untouched.

    Timesteps and plain noise belong to the picture, so the figures of all passes and all runs are comparable.
    """

    accelerator: Accelerator
    pictures: Pictures
    members: list[int]  # indices of members-aux
    non_members: list[int]  # indices of non-members-aux
    denoiser: Denoiser
    contexts: Contexts
    proxy: ProxyAttacker
    training_state: TrainingState
    history: ProxyHistory  # the checks of the proxy so far
    draws: int  # fixed (timestep, noise) pairs per picture
    batch_size: int
    has_attacker: bool
    plan: ValidationPlan  # when passes come

    @classmethod
    def of(cls, game: Game, training_state: TrainingState, history: ProxyHistory, plan: ValidationPlan) -> "Validation":
        """Validation of a game's pictures and proxy."""
        shown = {side.side: _shown(game, side, count) for side, count in zip(
            (game.aux_members, game.aux_non_members), (plan.members, plan.non_members), strict=True)}  # fmt: skip
        return cls(
            accelerator=game.accelerator,
            pictures=game.pictures,
            members=shown["members-aux"],
            non_members=shown["non-members-aux"],
            denoiser=game.denoiser,
            contexts=game.contexts,
            proxy=game.proxy,
            training_state=training_state,
            history=history,
            draws=game.rules.attack_eval_draws,
            batch_size=max(8, game.rules.images_per_side()),
            has_attacker=game.rules.k_steps > 0,
            plan=plan,
        )

    @torch.no_grad()
    def run(self, epoch: int) -> dict[str, Any]:
        """One pass over both aux sides; the proxy's check joins the history.

        The weights are those that a file would hold (the average, where one is kept), without dropout.

        Returns:
            Figures for the log, with the number of images that they rest on.
        """
        was_training = self.proxy.training
        self.proxy.eval()
        figures: dict[str, Any] = {"weights": self.training_state.shown_weights()}
        margins: dict[str, Tensor] = {}
        for side, indices in (("members_aux", self.members), ("non_members_aux", self.non_members)):
            with self.training_state.shown():
                means = self._fixed_pass(indices)
            margins[side], loss = (self._by_picture(indices, values) for values in means)
            figures |= {f"adaptation_loss_{side}": float(loss.mean()), f"images_{side}": len(loss)}
        self.proxy.train(was_training)
        if not self.has_attacker:
            return figures
        check = check_proxy(epoch, margins["members_aux"], margins["non_members_aux"])
        self.history.checks.append(check)
        return {"proxy_balanced_accuracy": check.balanced_accuracy, **figures}

    def _by_picture(self, indices: list[int], values: Tensor) -> Tensor:
        """Means [pictures] of values [indices]: a picture that several datasets show counts once."""
        places: dict[str, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(self.pictures.examples[index].pixels, []).append(place)
        return torch.stack([values[same].mean() for same in places.values()])

    def _fixed_pass(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Mean margin and mean loss of each index over the fixed draws, each [indices]."""
        margin, loss = torch.zeros(len(indices)), torch.zeros(len(indices))
        place = {index: spot for spot, index in enumerate(indices)}
        for draw in range(self.draws):
            for batch in self.pictures.plain_batches(indices, self.batch_size):
                error_map = self._error_map(batch, draw)
                spots = [place[index] for index in batch.indices]
                loss[spots] += error_map.mean(dim=(1, 2, 3)).cpu() / self.draws
                if self.has_attacker:
                    margin[spots] += membership_margin(self.proxy, error_map).cpu() / self.draws
        return margin, loss

    def _error_map(self, batch: Batch, draw: int) -> Tensor:
        """Squared errors [B, C, h, w] under the pictures' own fixed draw."""
        names = [self.pictures.examples[index].pixels for index in batch.indices]
        generators = [stream(0, "fixed look", name, draw) for name in names]
        steps = self.denoiser.timestep_count()
        timesteps, noise = fixed_draws(generators, draw, self.draws, tuple(batch.mean.shape[1:]), steps)
        scaled = self.denoiser.scaled(batch.mean.float())
        with self.accelerator.autocast():
            difference = self.denoiser.difference(scaled, self.contexts.of(batch), Draw(timesteps, noise, None))
        return difference.square()


def _shown(game: Game, side: AuxCycle, count: int) -> list[int]:
    """The indices of so many pictures of a side, the same in every pass of a run."""
    pixels = [game.pictures.examples[index].pixels for index in side.indices]
    pictures = sorted(set(pixels))
    if count >= len(pictures):
        return side.indices
    chosen = {pictures[place] for place in permutation(len(pictures), game.key, "validation", side.side)[:count]}
    return [index for index, picture in zip(side.indices, pixels, strict=True) if picture in chosen]
