"""The game between the LoRA and the proxy attacker: whose turn sees which pictures, under which noise."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from library.assembly.contexts import Contexts, open_contexts
from library.data.batches import AuxCycle, Batch, MemberBatches, Pictures
from library.data.split import Split
from library.diffusion.denoising import Denoiser, fixed_draws
from library.diffusion.flops import CHECKPOINTED_STEP, STEP, forward_flops, peak_flops
from library.diffusion.loss import LossRules, adaptation_loss
from library.diffusion.model_files import LatentDiffusion
from library.diffusion.noise import Draw, NoiseRules, draw_noise
from library.privacy.attackers.build import ProxyAttacker, frozen
from library.privacy.attackers.losses import attacker_losses, member_cross_entropy, membership_margin
from library.privacy.proxy_history import ProxyHistory, check_proxy
from library.seeding import StreamKey, stream
from library.training.optimizer_step import average_gradients
from library.training.state import TrainingState

__all__ = ["Game", "GameRules", "LossRules", "NoiseRules"]


@dataclass(frozen=True)
class GameRules:
    """Who plays how often, on how many pictures, and how the proxy attacker is made and judged."""

    train_batch_size: int  # images per device and pass of the LoRA step
    gradient_accumulation_steps: int
    clip_skip: int
    cache_text_encoder_outputs: bool  # insist on text states made once
    k_steps: int  # attacker steps per LoRA step; 0 = no attacker
    attack_batch_size: int | None  # images per side in an attacker step; None: train_batch_size
    attack_lr: float
    attack_weight_decay: float
    attack_dropout: float
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
    proxy_history: ProxyHistory  # the checks of the proxy so far
    denoiser: Denoiser
    contexts: Contexts
    proxy: ProxyAttacker
    attacker: Any  # the proxy's optimizer
    key: StreamKey
    rules: GameRules
    noise: NoiseRules
    loss: LossRules  # of L alone; the proxy sees the squared error as it is

    @classmethod
    def begin(
        cls, accelerator: Accelerator, model: LatentDiffusion, pictures: Pictures, split: Split, size: tuple[int, int],
        key: StreamKey, rules: GameRules, noise: NoiseRules, loss: LossRules,
    ) -> "Game":  # fmt: skip
        """A fresh proxy attacker with its Adam, facing this model and these pictures.

        Args:
            size: training resolution (width, height) in pixels; the side that maps of mixed shapes are pooled to.
        """
        proxy = ProxyAttacker(model.latent_shape(size), pooled=not pictures.one_shape(), dropout=rules.attack_dropout)
        proxy.to(accelerator.device)
        denoiser = Denoiser(
            model.unet, model.text_encoder, model.scheduler,
            latent_scale=model.vae.config.scaling_factor, clip_skip=rules.clip_skip,
        )  # fmt: skip
        return cls(
            accelerator=accelerator,
            pictures=pictures,
            members=MemberBatches(
                pictures, accumulation=rules.gradient_accumulation_steps, key=key,
                rank=accelerator.process_index, processes=accelerator.num_processes,
            ),
            aux_members=AuxCycle(split.indices("members-aux"), key, "members-aux"),
            aux_non_members=AuxCycle(split.indices("non-members-aux"), key, "non-members-aux"),
            proxy_history=ProxyHistory(),
            denoiser=denoiser,
            contexts=open_contexts(accelerator, denoiser, pictures, insist=rules.cache_text_encoder_outputs),
            proxy=proxy,
            attacker=torch.optim.Adam(proxy.parameters(), lr=rules.attack_lr, weight_decay=rules.attack_weight_decay),
            key=key,
            rules=rules,
            noise=noise,
            loss=loss,
        )  # fmt: skip

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

    @torch.no_grad()
    def check_aux(self, epoch: int, training_state: TrainingState) -> dict[str, Any]:
        """Validate on both aux sides under fixed noise: the proxy's balanced accuracy and the adaptation losses.

        Timesteps and plain noise belong to the picture, so the figures of all passes and runs are comparable. The
        weights are those that a file would hold (the average, where one is kept), without dropout.

        Returns:
            Figures for the log, with the images they rest on; the proxy's check joins ``watch``.
        """
        was_training = self.proxy.training
        self.proxy.eval()
        losses: dict[str, Any] = {"weights": training_state.shown_weights()}
        margins: dict[str, Tensor] = {}
        for name, cycle in (("members_aux", self.aux_members), ("non_members_aux", self.aux_non_members)):
            with training_state.shown():
                means = self._validation_pass(cycle.indices)
            margins[name], loss = (self._by_picture(cycle.indices, values) for values in means)
            losses |= {f"adaptation_loss_{name}": float(loss.mean()), f"images_{name}": len(loss)}
        self.proxy.train(was_training)
        if not self.rules.k_steps:
            return losses
        check = check_proxy(epoch, margins["members_aux"], margins["non_members_aux"])
        self.proxy_history.checks.append(check)
        return {"proxy_balanced_accuracy": check.balanced_accuracy, **losses}

    def _by_picture(self, rows: list[int], values: Tensor) -> Tensor:
        """Means [pictures] of values [rows]: a picture that several datasets show counts once."""
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(self.pictures.examples[row].pixels, []).append(place)
        return torch.stack([values[same].mean() for same in places.values()])

    def _validation_pass(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Mean margin and mean loss of each row over the fixed draws, each [rows]."""
        margin, loss = torch.zeros(len(rows)), torch.zeros(len(rows))
        place = {row: index for index, row in enumerate(rows)}
        steps = self.denoiser.timestep_count()
        draws = self.rules.attack_eval_draws
        for draw in range(draws):
            for batch in self.pictures.plain_batches(rows, max(8, self.rules.images_per_side())):
                names = [self.pictures.examples[row].pixels for row in batch.indices]
                generators = [stream(0, "fixed look", name, draw) for name in names]
                timesteps, noise = fixed_draws(generators, draw, draws, tuple(batch.mean.shape[1:]), steps)
                scaled = self.denoiser.scaled(batch.mean.float())
                with self.accelerator.autocast():
                    difference = self.denoiser.difference(scaled, self.contexts.of(batch), Draw(timesteps, noise, None))
                error_map = difference.square()
                spots = [place[row] for row in batch.indices]
                loss[spots] += error_map.mean(dim=(1, 2, 3)).cpu() / draws
                if self.rules.k_steps:
                    margin[spots] += membership_margin(self.proxy, error_map).cpu() / draws
        return margin, loss

    def mfu_of_one(self, gradient_checkpointing: bool) -> float:
        """Share of all GPUs' peak that one member image a second takes, attacker's passes included; 0 = not known.

        Text encoder, validation and previews are not counted, so the true share is a little higher.
        """
        unet, rules = self.denoiser.unet, self.rules
        peak = peak_flops(self.accelerator.device, unet.dtype)
        if peak is None:
            return 0.0
        latent = self.pictures.shape(0)[1:]
        forward = forward_flops(unet, (latent[0], latent[1]), self.denoiser.text_encoder.config.hidden_size)
        passes = CHECKPOINTED_STEP if gradient_checkpointing else STEP
        if rules.k_steps:
            passes *= 2 if rules.separate_noise else 1
            looked_at = 2 * rules.k_steps * rules.images_per_side()
            passes += looked_at * self.accelerator.num_processes / self.members.images_per_step()
        return forward * passes / (peak * self.accelerator.num_processes)
