"""The game between the LoRA and the proxy attacker: whose turn sees which pictures, under which noise."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from library.assembly.contexts import Contexts
from library.data.batches import AuxCycle, Batch, MemberBatches, Pictures
from library.diffusion.denoising import Denoiser
from library.diffusion.loss import LossRules, adaptation_loss
from library.diffusion.noise import NoiseRules, draw_noise
from library.privacy.attackers.build import ProxyAttacker, frozen
from library.privacy.attackers.losses import attacker_losses, member_cross_entropy
from library.seeding import StreamKey, stream
from library.training.optimizer_step import average_gradients


@dataclass(frozen=True)
class GameRules:
    """Who plays how often, on how many pictures, and how the proxy attacker is judged; the fields are options."""

    train_batch_size: int  # images per device and pass of the LoRA step
    k_steps: int  # attacker steps per LoRA step; 0 = no attacker
    attack_batch_size: int | None  # images per side in an attacker step; None: train_batch_size
    attack_eval_draws: int  # fixed (timestep, noise) pairs per image in a check
    separate_noise: bool
    proxy_mode: str
    gain_limit: float | None

    def images_per_side(self) -> int:
        """Aux images of each side in an attacker step."""
        return self.attack_batch_size or self.train_batch_size


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
    proxy: ProxyAttacker
    attacker: Any  # the proxy's optimizer
    key: StreamKey
    rules: GameRules
    noise: NoiseRules
    loss: LossRules  # of L alone; the proxy sees the squared error as it is

    def attacker_turn(self, step: int) -> dict[str, float]:
        """``k_steps`` Adam steps of the proxy on aux members + aux non-members, the diffusion model frozen.

        Returns:
            The proxy's mean cross-entropies (nats) before its steps, for the log.
        """
        totals, weights = torch.zeros(2, device=self.accelerator.device), list(self.proxy.parameters())
        for turn in range(self.rules.k_steps):
            maps, is_member = self._attack_maps(step, turn)
            member_loss, non_member_loss = attacker_losses(self.proxy, maps, is_member)
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
        """Error maps of the next aux pictures of both sides, and who of them is a member."""
        accelerator = self.accelerator
        round_number = (step * self.rules.k_steps + turn) * accelerator.num_processes + accelerator.process_index
        count = self.rules.images_per_side()
        rows = [
            row for side in (self.aux_members, self.aux_non_members) for row in side.take(round_number * count, count)
        ]
        maps, is_member = [], []
        use = ("attack", step, turn, accelerator.process_index)
        for part, batch in enumerate(self.pictures.batches_by_shape(rows, len(rows), step, *use)):
            maps.append(self._difference(batch, *use, part)[0].square())
            is_member.append(batch.is_member)
        return maps, is_member

    def member_losses(self, batch: Batch, step: int, part: int) -> tuple[Tensor, Tensor]:
        """L and CE of a training batch, each []: one UNet pass feeds both unless ``separate_noise`` asks for two.

        CE is the mean over the batch's members; exactly 0 where no attacker plays or no member is in the batch.
        """
        use = (step, part, self.accelerator.process_index)
        difference, timesteps = self._difference(batch, "members", *use)
        scheduler = self.denoiser.scheduler
        adaptation = adaptation_loss(difference, timesteps, scheduler, self.loss, batch.weights, batch.mask)
        if not self.rules.k_steps or not batch.is_member.any():  # regularisation images are public
            return adaptation, torch.zeros_like(adaptation)
        watched = self._difference(batch, "gain", *use)[0] if self.rules.separate_noise else difference
        with frozen(self.proxy, self.rules.proxy_mode) as adversary:
            error_map = watched[batch.is_member.to(watched.device)].square()  # neither mask nor weight: method R13
            return adaptation, member_cross_entropy(adversary, error_map, self.rules.gain_limit)

    def _difference(self, batch: Batch, *purpose: str | int) -> tuple[Tensor, Tensor]:
        """Prediction - target [B, C, h, w] and timesteps [B]; every draw comes from this purpose's stream."""
        generator = stream(self.key, "noise", *purpose)
        scaled = self.denoiser.scaled(batch.latents(generator))
        draw = draw_noise(self.noise, scaled, self.denoiser.timestep_count(), generator)
        with self.accelerator.autocast():
            return self.denoiser.difference(scaled, self.contexts.of(batch), draw), draw.timesteps
