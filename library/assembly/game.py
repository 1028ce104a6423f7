"""The game between the LoRA and the proxy attacker: whose turn sees which pictures, under which noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from library.assembly.contexts import Contexts
from library.assembly.distillation import Teachers, member_groups
from library.data.batches import AuxCycle, Batch, MemberBatches, Pictures
from library.diffusion.denoising import Denoiser
from library.diffusion.loss import LossRules, adaptation_loss
from library.diffusion.noise import Draw, NoiseRules, draw_noise
from library.privacy.attackers.build import frozen
from library.privacy.attackers.calibrated import calibrated_evidence, log_errors
from library.privacy.attackers.losses import attacker_losses, member_cross_entropy
from library.privacy.proxy_history import ProxyHistory
from library.seeding import StreamKey, stream
from library.training.optimization.optimizer_step import average_gradients
from networks.network_protocol import switched_off


@dataclass(frozen=True)
class GameRules:
    """Who plays how often, on how many pictures, and how the proxy attacker is judged; the fields are options."""

    train_batch_size: int  # images per device and pass of the LoRA step
    k_steps: int  # attacker steps per LoRA step; 0 = no attacker
    attack_batch_size: int | None  # images per side in an attacker step; None: train_batch_size
    attack_eval_draws: int  # fixed (timestep, noise) pairs per image in a check
    separate_noise: bool
    proxy_mode: str
    proxy_input: str  # error_map, or calibrated: the error with the LoRA on and off, and the timestep
    attack_draws: int  # (timestep, noise) pairs per image that the proxy sees at once
    gain_starts: str  # at_once, or above_chance: once a check of the proxy is above chance
    gain_limit: float | None
    distill_folds: int  # teachers; 0 = none

    def images_per_side(self) -> int:
        """Aux images of each side in an attacker step."""
        return self.attack_batch_size or self.train_batch_size

    def passes(self, images: float) -> tuple[float, float]:
        """UNet passes over one image that an optimizer step makes: with a backward pass, and forward alone.

        Args:
            images: of the LoRA step.
        """
        taught = images * self.attack_draws if self.distill_folds else 0.0  # one teacher answers for each picture
        if not self.k_steps:
            return images, taught
        trained = images * self.attack_draws * (2 if self.separate_noise else 1)
        attacked = 2 * self.k_steps * self.images_per_side() * self.attack_draws
        if self.proxy_input == "error_map":
            return trained, attacked + taught
        return trained, 2 * attacked + images * self.attack_draws + taught  # each once more with the LoRA off


@dataclass(frozen=True)
class Look:
    """One pass of the model over a batch."""

    batch: Batch  # every picture ``attack_draws`` times
    scaled: Tensor  # [B * K, C, h, w] latents
    draw: Draw
    prediction: Tensor  # [B * K, C, h, w] with gradient to the LoRA
    target: Tensor  # [B * K, C, h, w] true noise or velocity
    goal: Tensor  # [B * K, C, h, w] what L compares the prediction with: the target, or what teachers say of a member

    def difference(self) -> Tensor:
        """Prediction - target: its square is the error that every attacker sees, taught or not."""
        return self.prediction - self.target


@dataclass(frozen=True)
class Game:
    """Both players' view of one run. Every draw is a function of the key, the step and a named purpose."""

    accelerator: Accelerator
    pictures: Pictures
    members: MemberBatches
    aux_members: AuxCycle
    aux_non_members: AuxCycle
    denoiser: Denoiser
    contexts: Contexts
    network: Any
    proxy: nn.Module
    attacker: Any  # the proxy's optimizer
    history: ProxyHistory  # the checks of the proxy so far
    key: StreamKey
    rules: GameRules
    noise: NoiseRules
    teachers: Teachers | None  # of a cross-fitted distillation
    loss: LossRules  # of L alone; the proxy sees the squared error as it is, or compared with the LoRA's absence

    def attacker_turn(self, step: int) -> dict[str, float]:
        """``k_steps`` Adam steps of the proxy on aux members + aux non-members, the diffusion model frozen.

        Returns:
            The proxy's mean cross-entropies (nats) before its steps, for the log.
        """
        totals, weights = torch.zeros(2, device=self.accelerator.device), list(self.proxy.parameters())
        for turn in range(self.rules.k_steps):
            seen, is_member = self._attack_maps(step, turn)
            member_loss, non_member_loss = attacker_losses(self.proxy, seen, is_member)
            loss = (member_loss + non_member_loss) / 2
            self.attacker.zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(self.accelerator, weights)
            # Asked of the average, so that all processes decide alike; one that left it out would stall the others
            if torch.stack([one.grad.isfinite().all() for one in weights if one.grad is not None]).all():
                self.attacker.step()
            totals += torch.stack([member_loss.detach(), non_member_loss.detach()]) / self.rules.k_steps
        if not self.rules.k_steps:
            return {}
        members, non_members = self.accelerator.reduce(totals, "mean").tolist()
        return {"proxy_loss": (members + non_members) / 2, "proxy_loss_members": members,
                "proxy_loss_non_members": non_members}  # fmt: skip

    @torch.no_grad()
    def _attack_maps(self, step: int, turn: int) -> tuple[list[Tensor], list[Tensor]]:
        """What the proxy sees of the next aux pictures of both sides, and who of them is a member."""
        accelerator = self.accelerator
        round_number = (step * self.rules.k_steps + turn) * accelerator.num_processes + accelerator.process_index
        count = self.rules.images_per_side()
        rows = [
            row for side in (self.aux_members, self.aux_non_members) for row in side.take(round_number * count, count)
        ]
        seen, is_member = [], []
        use = ("attack", step, turn, accelerator.process_index)
        for part, batch in enumerate(self.pictures.batches_by_shape(rows, len(rows), step, *use)):
            seen.append(self.evidence(self._look(batch, *use, part)))
            is_member.append(batch.is_member)
        return seen, is_member

    def member_losses(self, batch: Batch, step: int, part: int) -> tuple[Tensor, Tensor]:
        """L and CE of a training batch, each []: one UNet pass feeds both unless ``separate_noise`` asks for two.

        CE is the mean over the batch's members; exactly 0 where no attacker plays or counts yet, and where
        no member is in the batch. With teachers, L compares a member's prediction with theirs; CE stays about the true
        error, which is what an auditor computes.
        """
        use = (step, part, self.accelerator.process_index)
        look = self._look(batch, "members", *use, taught=self.teachers is not None)
        shown, scheduler = look.batch, self.denoiser.scheduler
        adaptation = adaptation_loss(
            look.prediction - look.goal, look.draw.timesteps, scheduler, self.loss, shown.weights, shown.mask
        )
        if not self._gain_counts() or not batch.is_member.any():  # regularisation images are public
            return adaptation, torch.zeros_like(adaptation)
        watched = self._look(batch, "gain", *use) if self.rules.separate_noise else look
        with frozen(self.proxy, self.rules.proxy_mode) as adversary:
            seen = self.evidence(watched)  # neither mask nor weight: method R13
            seen = seen[batch.is_member.to(seen.device)]
            return adaptation, member_cross_entropy(adversary, seen, self.rules.gain_limit)

    def _gain_counts(self) -> bool:
        """Whether there is an attacker, and one worth hiding from."""
        if not self.rules.k_steps:
            return False
        return self.rules.gain_starts == "at_once" or self.history.has_an_opponent()

    def evidence(self, look: Look) -> Tensor:
        """What the proxy sees of a look, with gradient to the LoRA: error maps [B, C, h, w], or evidence [B, K, F]."""
        if self.rules.proxy_input == "error_map":
            return look.difference().square()
        with torch.no_grad(), switched_off(self.network):
            without = self._prediction(look.batch, look.scaled, look.draw, off=True)
            off = log_errors((without - look.target).square())
        on = log_errors(look.difference().square())
        seen = calibrated_evidence(on, off, look.draw.timesteps, self.denoiser.timestep_count())
        return seen.unflatten(0, (-1, self.rules.attack_draws))

    def _look(self, batch: Batch, *purpose: str | int, taught: bool = False) -> Look:
        """One pass under fresh noise; every draw comes from this purpose's stream.

        Args:
            taught: teachers are asked first, under the same timestep, noise and caption.
        """
        shown = batch.repeated(self.rules.attack_draws)
        generator = stream(self.key, "noise", *purpose)
        scaled = self.denoiser.scaled(shown.latents(generator))
        draw = draw_noise(self.noise, scaled, self.denoiser.timestep_count(), generator)
        target = self.denoiser.target(scaled, draw)
        goal = self._goal(shown, scaled, draw, target) if taught else target
        return Look(shown, scaled, draw, self._prediction(shown, scaled, draw), target, goal)

    def _goal(self, batch: Batch, scaled: Tensor, draw: Draw, target: Tensor) -> Tensor:
        """What teachers that never saw a member predict of it, and the target of any other picture, [B, C, h, w]."""
        assert self.teachers is not None
        groups = member_groups(self.pictures.training_set)

        def predict(places: Sequence[int]) -> Tensor:
            some = list(places)
            extra = None if draw.perturbation is None else draw.perturbation[some]
            part = Draw(draw.timesteps[some], draw.noise[some], extra)
            return self._prediction(batch.picked(some), scaled[some], part)

        return self.teachers.goal(target, [groups[index] for index in batch.indices], predict)

    def _prediction(self, batch: Batch, scaled: Tensor, draw: Draw, *, off: bool = False) -> Tensor:
        """The model's prediction [B, C, h, w]; ``off``: the network is switched off."""
        with self.accelerator.autocast():
            return self.denoiser.prediction(scaled, self.contexts.of(batch, off=off), draw)
