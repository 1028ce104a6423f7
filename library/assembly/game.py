"""The game between the LoRA and the proxy attacker: whose turn sees which pictures, under which noise."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from library.data.batches import AuxCycle, Batch, MemberBatches, Pictures
from library.data.split import Split
from library.diffusion.denoising import Denoiser, fixed_draws
from library.diffusion.loss_weights import loss_weights
from library.diffusion.model_files import LatentDiffusion
from library.privacy.proxy import ProxyAttacker, attacker_losses, frozen, member_cross_entropy, membership_margin
from library.privacy.vigilance import Vigilance, check_proxy
from library.seeding import stream
from library.training.stepping import average_gradients


@dataclass(frozen=True)
class Game:
    """Both players' view of one run. Every draw is a function of the seed, the step and a named purpose."""

    accelerator: Accelerator
    pictures: Pictures
    members: MemberBatches
    aux_members: AuxCycle
    aux_non_members: AuxCycle
    watch: Vigilance  # the checks of the proxy so far
    denoiser: Denoiser
    proxy: ProxyAttacker
    attacker: Any  # the proxy's optimizer
    seed: int
    k_steps: int  # attacker steps per LoRA step; 0 = no attacker
    batch_size: int  # images per side in an attacker step
    separate_noise: bool
    proxy_mode: str
    gain_limit: float | None
    min_snr_gamma: float | None  # weights of L alone; the proxy sees the map as it is
    debiased: bool
    eval_draws: int  # fixed (timestep, noise) pairs per image in a check

    @classmethod
    def begin(
        cls, accelerator: Accelerator, model: LatentDiffusion, pictures: Pictures, split: Split, size: tuple[int, int],
        *, seed: int, clip_skip: int, accumulation: int, k_steps: int, attack_batch_size: int,
        attack_lr: float, attack_weight_decay: float, attack_dropout: float, separate_noise: bool, proxy_mode: str,
        gain_limit: float | None, min_snr_gamma: float | None, debiased: bool, eval_draws: int,
    ) -> "Game":  # fmt: skip
        """A fresh proxy attacker with its Adam, facing this model and these pictures.

        Args:
            accumulation: passes of the LoRA step.
            size: training resolution (width, height) in pixels; the side that maps of mixed shapes are pooled to.
        """
        proxy = ProxyAttacker(model.latent_shape(size), pooled=not pictures.one_shape(), dropout=attack_dropout)
        proxy.to(accelerator.device)
        return cls(
            accelerator=accelerator,
            pictures=pictures,
            members=MemberBatches(
                pictures, accumulation=accumulation, seed=seed,
                rank=accelerator.process_index, processes=accelerator.num_processes,
            ),
            aux_members=AuxCycle(split.rows("members-aux"), seed, "members-aux"),
            aux_non_members=AuxCycle(split.rows("non-members-aux"), seed, "non-members-aux"),
            watch=Vigilance(),
            denoiser=Denoiser(
                model.unet, model.text_encoder, model.scheduler,
                latent_scale=model.vae.config.scaling_factor, clip_skip=clip_skip,
            ),
            proxy=proxy,
            attacker=torch.optim.Adam(proxy.parameters(), lr=attack_lr, weight_decay=attack_weight_decay),
            seed=seed,
            k_steps=k_steps,
            batch_size=attack_batch_size,
            separate_noise=separate_noise,
            proxy_mode=proxy_mode,
            gain_limit=gain_limit,
            min_snr_gamma=min_snr_gamma,
            debiased=debiased,
            eval_draws=eval_draws,
        )  # fmt: skip

    def attacker_turn(self, step: int) -> dict[str, float]:
        """``k_steps`` Adam steps of the proxy on aux members + aux non-members, the diffusion model frozen.

        Returns:
            The proxy's mean cross-entropies (nats) before its steps, for the log.
        """
        totals = torch.zeros(2, device=self.accelerator.device)
        for turn in range(self.k_steps):
            maps, is_member = self._attack_maps(step, turn)
            member_loss, non_member_loss = attacker_losses(self.proxy, maps, is_member)
            loss = (member_loss + non_member_loss) / 2
            if torch.isfinite(loss):
                self.attacker.zero_grad(set_to_none=True)
                loss.backward()
                average_gradients(self.accelerator, list(self.proxy.parameters()))
                self.attacker.step()
            totals += torch.stack([member_loss.detach(), non_member_loss.detach()]) / self.k_steps
        if not self.k_steps:
            return {}
        members, non_members = self.accelerator.reduce(totals, "mean").tolist()
        return {"proxy_loss": (members + non_members) / 2, "proxy_loss_members": members,
                "proxy_loss_non_members": non_members}  # fmt: skip

    @torch.no_grad()
    def _attack_maps(self, step: int, turn: int) -> tuple[list[Tensor], list[Tensor]]:
        """Error maps of the next aux pictures of both sides, and who of them is a member."""
        accelerator = self.accelerator
        round_number = (step * self.k_steps + turn) * accelerator.num_processes + accelerator.process_index
        start = round_number * self.batch_size
        rows = self.aux_members.take(start, self.batch_size) + self.aux_non_members.take(start, self.batch_size)
        maps, is_member = [], []
        use = ("attack", step, turn, accelerator.process_index)
        for part, batch in enumerate(self.pictures.batches_by_shape(rows, len(rows), step, *use)):
            maps.append(self._error_map(batch, *use, part)[0])
            is_member.append(batch.is_member)
        return maps, is_member

    def member_losses(self, batch: Batch, step: int, part: int) -> tuple[Tensor, Tensor]:
        """L and CE of a training batch, each []: one UNet pass feeds both unless ``separate_noise`` asks for two.

        CE is the mean over the batch's members; exactly 0 where no attacker plays or no member is in the batch.
        """
        use = (step, part, self.accelerator.process_index)
        error_map, timesteps = self._error_map(batch, "members", *use)
        weights = batch.weights * loss_weights(
            self.denoiser.scheduler, timesteps, min_snr_gamma=self.min_snr_gamma, debiased=self.debiased
        )
        masked = error_map if batch.mask is None else error_map * batch.mask.to(error_map.device)
        adaptation = (masked.mean(dim=(1, 2, 3)) * weights.to(error_map.device)).mean()
        if not self.k_steps or not batch.is_member.any():  # regularisation images are public: nobody to protect
            return adaptation, torch.zeros_like(adaptation)
        watched = self._error_map(batch, "gain", *use)[0] if self.separate_noise else error_map
        with frozen(self.proxy, self.proxy_mode) as adversary:
            members = batch.is_member.to(watched.device)
            return adaptation, member_cross_entropy(adversary, watched[members], self.gain_limit)

    def _error_map(self, batch: Batch, *purpose: str | int) -> tuple[Tensor, Tensor]:
        """Map [B, C, h, w] and timesteps [B]; posterior draw, timesteps and noise come from this purpose's stream."""
        generator = stream(self.seed, "noise", *purpose)
        with self.accelerator.autocast():
            return self.denoiser.error_map(batch.latents(generator), batch.tokens, generator, batch.token_weights)

    @torch.no_grad()
    def check_aux(self, epoch: int) -> dict[str, float]:
        """Look at both aux sides under fixed noise: the proxy's balanced accuracy and the adaptation losses.

        Timesteps and noise belong to the picture, so the figures of all epochs and all runs are comparable.

        Returns:
            Figures for the log, with the images they rest on; the proxy's check joins ``watch``.
        """
        was_training = self.proxy.training
        self.proxy.eval()
        losses: dict[str, float] = {}
        margins: dict[str, Tensor] = {}
        for name, cycle in (("members_aux", self.aux_members), ("non_members_aux", self.aux_non_members)):
            margin, loss = self._fixed_look(cycle.rows)
            margins[name], losses[f"adaptation_loss_{name}"] = margin, float(loss.mean())
            losses[f"images_{name}"] = len(cycle.rows)
        self.proxy.train(was_training)
        if not self.k_steps:
            return losses
        check = check_proxy(epoch, margins["members_aux"], margins["non_members_aux"])
        self.watch.checks.append(check)
        return {"proxy_balanced_accuracy": check.balanced_accuracy, **losses}

    def _fixed_look(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Mean margin and mean loss of each row over the fixed draws, each [rows]."""
        margin, loss = torch.zeros(len(rows)), torch.zeros(len(rows))
        place = {row: index for index, row in enumerate(rows)}
        steps = self.denoiser.timestep_count()
        for draw in range(self.eval_draws):
            for batch in self.pictures.plain_batches(rows, max(8, self.batch_size)):
                names = [self.pictures.examples[row].pixels for row in batch.rows]
                generators = [stream(0, "fixed look", name, draw) for name in names]
                timesteps, noise = fixed_draws(generators, draw, self.eval_draws, tuple(batch.mean.shape[1:]), steps)
                with self.accelerator.autocast():
                    error_map = self.denoiser.error_map_at(
                        batch.mean.float(), batch.tokens, timesteps, noise, batch.token_weights
                    )
                spots = [place[row] for row in batch.rows]
                loss[spots] += error_map.mean(dim=(1, 2, 3)).cpu() / self.eval_draws
                if self.k_steps:
                    margin[spots] += membership_margin(self.proxy, error_map).cpu() / self.eval_draws
        return margin, loss
