"""Validation passes: both aux sides under fixed noise, for what was learnt, what leaks, and the proxy's accuracy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from library.assembly.contexts import Contexts
from library.assembly.game import Game
from library.assembly.validation_plan import ValidationPlan
from library.audit.statistics.gain import auc_without_luck, gain_with_interval
from library.audit.statistics.intervals import auc_interval
from library.audit.statistics.metrics import auc
from library.data.batches import AuxCycle, Batch, Pictures
from library.diffusion.denoising import Denoiser, fixed_draws
from library.diffusion.noise import Draw
from library.privacy.attackers.calibrated import calibrated_evidence, log_errors
from library.privacy.attackers.losses import membership_margin
from library.privacy.gap import GapCheck
from library.privacy.proxy_history import ProxyHistory, check_proxy
from library.seeding import permutation, stream
from library.training.device import agreed
from library.training.state import TrainingState
from networks.network_protocol import can_be_switched_off, switched_off


@dataclass(frozen=True)
class Side:
    """A pass over one aux side; rows are its indices, which may show a picture more than once."""

    pictures: list[str]  # [n] which picture each row shows
    groups: list[str]  # [n]
    margins: Tensor  # [n] of the proxy, mean over the fixed draws
    losses: Tensor  # [n] mean squared error, mean over the fixed draws
    falls: Tensor  # [n] log(off / on) of the mean squared error, mean over the fixed draws

    def by_picture(self, values: Tensor) -> Tensor:
        """Means [pictures] of values [n]: a picture that several datasets show counts once."""
        return torch.stack([values[rows].mean() for rows in self._rows()])

    def groups_by_picture(self) -> list[str]:
        """[pictures], in the order of ``by_picture``."""
        return [self.groups[rows[0]] for rows in self._rows()]

    def _rows(self) -> list[list[int]]:
        places: dict[str, list[int]] = {}
        for place, name in enumerate(self.pictures):
            places.setdefault(name, []).append(place)
        return list(places.values())


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
    network: Any
    proxy: nn.Module
    training_state: TrainingState
    history: ProxyHistory  # the checks so far
    draws: int  # fixed (timestep, noise) pairs per picture
    batch_size: int
    has_attacker: bool
    calibrated_proxy: bool
    plan: ValidationPlan  # when passes come
    log_off: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # (index, draw): [1 + C] without the network

    @classmethod
    def of(cls, game: Game, training_state: TrainingState, plan: ValidationPlan) -> "Validation":
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
            network=game.network,
            proxy=game.proxy,
            training_state=training_state,
            history=game.history,
            draws=game.rules.attack_eval_draws,
            batch_size=max(8, game.rules.images_per_side()),
            has_attacker=game.rules.k_steps > 0,
            calibrated_proxy=game.rules.proxy_input == "calibrated",
            plan=plan,
        )

    @torch.no_grad()
    def run(
        self, done: int, epoch: int, announce: Callable[[str, int, int], object] = lambda *where: None
    ) -> dict[str, Any]:
        """One pass over both aux sides after ``done`` steps; its checks join the history.

        The weights are those that a file would hold (the average, where one is kept), without dropout.

        Args:
            announce: called with what is looked at, how many images were, and how many there are.

        Returns:
            Figures for the log, with the number of images that they rest on.
        """
        was_training = self.proxy.training
        self.proxy.eval()
        figures: dict[str, Any] = {"weights": self.training_state.shown_weights()}
        named = {"members-aux": self.members, "non-members-aux": self.non_members}
        with self.training_state.shown():
            sides = [
                self._fixed_pass(indices, partial(announce, f"validation, {name}: image"))
                for name, indices in named.items()
            ]
        self.proxy.train(was_training)
        for name, side in zip(("members_aux", "non_members_aux"), sides, strict=True):
            loss = side.by_picture(side.losses)
            figures |= {f"adaptation_loss_{name}": float(loss.mean()), f"images_{name}": len(loss)}
        if can_be_switched_off(self.network):
            is_early = 0 < done <= self.plan.one_exposure
            gap = gap_between(done, sides[0], sides[1], self.training_state.first_falls, is_early=is_early)
            gap = agreed(self.accelerator, gap)  # it may end the run, for all processes alike
            self.history.gaps.append(gap)
            if gap.is_first:
                self.training_state.first_falls.update(_falls(sides[0], sides[1]))
            figures |= gap.figures()
        if not self.has_attacker:
            return figures
        check = agreed(self.accelerator, check_proxy(epoch, *(side.by_picture(side.margins) for side in sides)))
        self.history.checks.append(check)
        return {"proxy_balanced_accuracy": check.balanced_accuracy, **figures}

    def _fixed_pass(self, indices: Sequence[int], announce: Callable[[int, int], object]) -> Side:
        """Every index under each of its fixed draws."""
        count, passed = len(indices), 0
        margins, losses, falls = torch.zeros(count), torch.zeros(count), torch.zeros(count)
        place = {index: spot for spot, index in enumerate(indices)}
        for draw in range(self.draws):
            for batch in self.pictures.plain_batches(indices, self.batch_size):
                error_map, timesteps = self._error_map(batch, draw)
                spots = [place[index] for index in batch.indices]
                passed += len(spots)
                announce(passed, count * self.draws)
                losses[spots] += error_map.mean(dim=(1, 2, 3)).cpu() / self.draws
                seen = error_map
                if can_be_switched_off(self.network):
                    log_on, log_off = log_errors(error_map), self._log_off(batch, draw).to(error_map.device)
                    falls[spots] += (log_off - log_on)[:, 0].cpu() / self.draws
                    if self.calibrated_proxy:
                        steps = self.denoiser.timestep_count()
                        seen = calibrated_evidence(log_on, log_off, timesteps, steps)[:, None]
                if self.has_attacker:
                    margins[spots] += membership_margin(self.proxy, seen).cpu() / self.draws
        examples = [self.pictures.examples[index] for index in indices]
        return Side([one.pixels for one in examples], [one.group for one in examples], margins, losses, falls)

    def _log_off(self, batch: Batch, draw: int) -> Tensor:
        """``log_errors`` [B, 1 + C] of the model without the network: asked once, since nothing trains it."""
        names = [(index, draw) for index in batch.indices]
        if not all(name in self.log_off for name in names):
            with switched_off(self.network):
                found = log_errors(self._error_map(batch, draw, off=True)[0]).cpu()
            self.log_off.update(zip(names, found, strict=True))
        return torch.stack([self.log_off[name] for name in names])

    def _error_map(self, batch: Batch, draw: int, *, off: bool = False) -> tuple[Tensor, Tensor]:
        """Squared errors [B, C, h, w] under the pictures' own fixed draw, and its timesteps [B].

        Args:
            off: the network is switched off.
        """
        names = [self.pictures.examples[index].pixels for index in batch.indices]
        generators = [stream(0, "fixed look", name, draw) for name in names]
        steps = self.denoiser.timestep_count()
        timesteps, noise = fixed_draws(generators, draw, self.draws, tuple(batch.mean.shape[1:]), steps)
        scaled = self.denoiser.scaled(batch.mean.float())
        with self.accelerator.autocast():
            difference = self.denoiser.difference(
                scaled, self.contexts.of(batch, off=off), Draw(timesteps, noise, None)
            )
        return difference.square(), timesteps


def _shown(game: Game, side: AuxCycle, count: int) -> list[int]:
    """The indices of so many pictures of a side, the same in every pass of a run."""
    pixels = [game.pictures.examples[index].pixels for index in side.indices]
    pictures = sorted(set(pixels))
    if count >= len(pictures):
        return side.indices
    chosen = {pictures[place] for place in permutation(len(pictures), game.key, "validation", side.side)[:count]}
    return [index for index, picture in zip(side.indices, pixels, strict=True) if picture in chosen]


def _falls(members: Side, non_members: Side) -> dict[str, Tensor]:
    """[pictures] falls of both sides."""
    return {"members": members.by_picture(members.falls), "non_members": non_members.by_picture(non_members.falls)}


def gap_between(
    done: int, members: Side, non_members: Side, first: Mapping[str, Tensor], *, is_early: bool
) -> GapCheck:
    """What held-out pictures gained, what members gained beyond it, and how well the gain tells them apart.

    Args:
        first: ``_falls`` of the first early pass; empty where there was none, so that the AUC includes luck.
        is_early: of a trained LoRA, before much can be learnt by heart: later passes are compared with the first such.
    """
    now = _falls(members, non_members)
    inside, outside = (now[side].double().numpy() for side in ("members", "non_members"))
    groups = members.groups_by_picture(), non_members.groups_by_picture()
    (of_members, *_), (learnt, learnt_low, learnt_high) = (
        gain_with_interval(falls, names) for falls, names in zip((inside, outside), groups, strict=True)
    )
    if first:
        before = first["members"].double().numpy(), first["non_members"].double().numpy()
        area, low, high = auc_without_luck(before, (inside, outside), groups)
    else:
        area, (low, high) = auc(inside, outside), auc_interval(inside, outside, *groups)
    return GapCheck(
        done=done,
        learnt=learnt,
        learnt_low=max(-1.0, learnt_low),  # minus infinity where all are of one group
        learnt_high=learnt_high,
        by_heart=of_members - learnt,
        auc=area,
        low=low,
        high=high,
        members=len(inside),
        non_members=len(outside),
        is_first=is_early and not first,
    )
