"""One step of DP-SGD over a run's units of privacy: their sampling, their clipped gradients, the noise on the sum."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from library.assembly.game import Game
from library.assembly.privacy_plan import PrivacyPlan
from library.data.batches import Batch
from library.diffusion.loss import adaptation_losses
from library.diffusion.noise import Draw, draw_noise
from library.errors import InputError
from library.privacy.dp.mechanism import clipped_sum, noise, packed, sampled
from library.seeding import StreamKey, stream
from networks.per_sample_gradients import AdapterLayer, GradientReader


@dataclass(frozen=True)
class UnitGradients:
    """What one pass finds about whole units."""

    gradients: Tensor  # [U, P] fp32, of the mean loss of each unit's pictures and draws
    losses: Tensor  # [U]

    def figures(self) -> Tensor:
        """[U, 2] losses, and norms of the gradients before clipping."""
        return torch.stack([self.losses, self.gradients.norm(dim=1).cpu()], dim=1)


@dataclass(frozen=True)
class PrivateSteps:
    """The private part of a step. Every draw is a function of the run's key, the step and a named purpose.

    Timesteps and noise belong to the picture and the step, so a step does not depend on how its units are packed into
    passes and dealt out to processes.
    """

    plan: PrivacyPlan
    game: Game  # without an attacker: the model, the pictures and the rules of the loss
    layers: Sequence[AdapterLayer]
    parameters: Sequence[nn.Parameter]  # trained, P numbers in all
    places: Sequence[int]  # of each parameter among the factors of the layers
    key: StreamKey  # of this run alone

    def units_of(self, step: int) -> list[int]:
        """The units that enter a step, in all processes together."""
        return sampled(len(self.plan.units.indices), self.plan.spending().sampling_rate, self.key, step)

    def passes_of(self, step: int) -> Iterator[list[int]]:
        """This process's share of the units, in passes that fit into memory."""
        accelerator = self.game.accelerator
        mine = self.units_of(step)[accelerator.process_index :: accelerator.num_processes]
        yield from packed(mine, self.plan.units.sizes(), self.plan.rules.train_batch_size)

    def zeros(self) -> Tensor:
        """[P] to add the clipped gradients of a step to."""
        return torch.zeros(sum(one.numel() for one in self.parameters), device=self.game.accelerator.device)

    def gradients(self, units: Sequence[int], step: int) -> UnitGradients:
        """Each unit's gradient of its own mean loss, from one batched pass for each shape among its pictures."""
        indices = self.plan.units.indices
        unit_of = {index: place for place, unit in enumerate(units) for index in indices[unit]}
        sizes = torch.tensor([len(indices[unit]) for unit in units])
        found, losses = self.zeros().expand(len(units), -1).clone(), torch.zeros(len(units))
        for batch in self.game.pictures.batches_by_shape(list(unit_of), len(unit_of), step, "private"):
            owners = torch.tensor([unit_of[index] for index in batch.indices])
            share = 1 / sizes[owners]  # of a picture in its unit's mean
            with GradientReader(self.layers) as reader:
                each = self._losses(batch, step)  # [B], mean over the draws
                taken = reader.taken((each * share.to(each.device)).sum(), len(batch.indices))
            rows = torch.cat([taken[place].flatten(1) for place in self.places], dim=1)  # [B, P]
            found.index_add_(0, owners.to(found.device), rows)
            losses.index_add_(0, owners, each.detach().cpu() * share)
        return UnitGradients(found, losses)

    def _losses(self, batch: Batch, step: int) -> Tensor:
        """[B] mean adaptation loss of each picture over its draws, with gradient to the LoRA."""
        game, draws = self.game, self.plan.rules.dp_draws
        scaled, draw = self.draws_of(batch, step)
        with game.accelerator.autocast():
            context = game.contexts.of(batch).repeated(draws)
            difference = game.denoiser.difference(scaled, context, draw)
        shown = batch.repeated(draws)
        scheduler, mask = game.denoiser.scheduler, shown.mask
        rows = adaptation_losses(difference, draw.timesteps, scheduler, game.loss, shown.weights, mask)
        return rows.unflatten(0, (-1, draws)).mean(dim=1)

    def draws_of(self, batch: Batch, step: int) -> tuple[Tensor, Draw]:
        """Scaled latents [B * K, C, h, w], and K timesteps and noises of each picture from a stream of its own."""
        game, count = self.game, self.plan.rules.dp_draws
        scaled: list[Tensor] = []
        found: list[Draw] = []
        for place, index in enumerate(batch.indices):
            generator = stream(self.key, "draws", index, step)
            mean, std = batch.mean[place].float(), batch.std[place].float()
            latents = mean + std * torch.randn((count, *mean.shape), generator=generator)
            scaled.append(game.denoiser.scaled(latents))
            found.append(draw_noise(game.noise, scaled[-1], game.denoiser.timestep_count(), generator))
        extra = [one.perturbation for one in found if one.perturbation is not None]
        draw = Draw(
            torch.cat([one.timesteps for one in found]),
            torch.cat([one.noise for one in found]),
            torch.cat(extra) if extra else None,
        )
        return torch.cat(scaled), draw

    def clipped(self, found: UnitGradients) -> Tensor:
        """[P] sum of the units' gradients, each clipped to ``dp_max_grad_norm``."""
        return clipped_sum(found.gradients, self.plan.rules.dp_max_grad_norm)[0]

    def noisy_mean(self, total: Tensor, step: int) -> Tensor:
        """[P] (sum over all processes + noise) / expected units: the noise is drawn once for the step.

        Args:
            total: [P] of this process.
        """
        accelerator = self.game.accelerator
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, "sum")
        added = noise(total.numel(), self.plan.noise_deviation(), self.key, step)  # the same numbers in every process
        return (total + added.to(total.device)) / self.plan.rules.dp_batch_size

    def hand_over(self, gradient: Tensor) -> None:
        """Give the optimizer a gradient [P] as if a backward pass had left it."""
        parts = gradient.split([one.numel() for one in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)


def open_private_steps(
    plan: PrivacyPlan, game: Game, optimizer_parameters: Sequence[nn.Parameter], key: StreamKey
) -> PrivateSteps:
    """Find every trained parameter among the factors of the network's layers.

    Args:
        key: of this run alone, see ``PrivacyPlan.key``.

    Raises:
        InputError: a parameter whose gradient cannot be read picture by picture.
    """
    layers = adapter_layers(game.network)
    places = {
        id(one): place for place, one in enumerate(part.weight for layer in layers for part in (layer.down, layer.up))
    }
    if not all(id(one) in places for one in optimizer_parameters):
        raise InputError("DPLoRA reads gradients of low-rank factors alone; use network_module = networks.lora")
    return PrivateSteps(
        plan, game, layers, optimizer_parameters, [places[id(one)] for one in optimizer_parameters], key
    )


def adapter_layers(network: Any) -> list[AdapterLayer]:
    """The layers of a network of ``networks.lora``."""
    return [AdapterLayer(one.lora_name, one.lora_down, one.lora_up) for one in network.modules_of_both()]
