"""A run from its first step on: latents, the game, and one step of what is optimised."""

from dataclasses import dataclass

import torch
from torch import Tensor

from library.assembly.contexts import open_contexts
from library.assembly.game import Game, GameRules, LossRules, NoiseRules
from library.assembly.pictures import EncodingRules, encode_pictures
from library.assembly.run import Run
from library.assembly.validation import Validation
from library.data.batches import AuxCycle, MemberBatches, Pictures
from library.diffusion.compiling import CompileRules, compile_unet
from library.diffusion.denoising import Denoiser
from library.privacy.attackers.build import AttackerRules, build_attacker
from library.privacy.proxy_history import ProxyHistory
from library.rules import pick
from library.seeding import seed_modules
from library.training.interruption import FiniteGuard
from library.training.optimizer_step import take_step
from library.training.state import TrainingState, load_training_state
from networks import protocol


@dataclass(frozen=True)
class Training:
    """What changes while the run goes on, and the steps that change it."""

    run: Run
    game: Game
    validation: Validation
    state: TrainingState
    guard: FiniteGuard  # counts steps that were not finite
    done: int  # optimizer steps of the run that this one goes on from

    def seed_step(self, step: int) -> None:
        """Seed dropout and third-party modules for one step."""
        seed_modules(self.run.key, step, self.run.accelerator.process_index)

    def before_pass(self, step: int, part: int) -> None:
        """Put the network into training mode and call the module's own hooks."""
        starts_epoch = part == 0 and self.run.plan.starts_epoch(step)
        protocol.before_pass(self.run.network, self.run.model, starts_epoch=starts_epoch)

    def no_losses(self) -> Tensor:
        """[3] zeros, to add the objective, L and CE of a step's passes to."""
        return torch.zeros(3, device=self.run.accelerator.device)

    def take_step(self, losses: Tensor) -> dict[str, float]:
        """Step the optimizer unless loss or gradient are not finite; returns the figures of the step.

        Args:
            losses: [3] the objective that was differentiated, L and CE, of this process.
        """
        run = self.run
        return take_step(run.accelerator, self.state, run.config.max_grad_norm, losses, self.guard, self._settle)

    def _settle(self) -> dict[str, float]:
        run = self.run
        return protocol.after_step(run.network, run.config.scale_weight_norms, run.accelerator.device)


def open_training(run: Run) -> Training:
    """Encode the pictures, seat both players, and load the state of the run that this one goes on from."""
    with run.lock.released_on_error():
        return _open_training(run)


def _open_training(run: Run) -> Training:
    config, model, device = run.config, run.model, run.accelerator.device
    model.prepare(device, full_precision_vae=config.no_half_vae, gradient_checkpointing=config.gradient_checkpointing)
    pictures = encode_pictures(
        run.training_set,
        model,
        pick(config, EncodingRules),
        steps_per_epoch=run.plan.steps_per_epoch,
        total_steps=run.plan.total_steps,
        key=run.key,
    )
    game = open_game(run, pictures)
    compile_unet(model, pick(config, CompileRules), run.size)
    parts = run.optimization
    optimizer = run.accelerator.prepare(parts.optimizer)
    state = TrainingState(
        run.network, optimizer, parts.schedule, game.proxy, game.attacker, run.accelerator.scaler, parts.average
    )
    load_training_state(config.resume, state)
    history = ProxyHistory()
    history.remember(run.resumed["checks"])
    return Training(
        run, game, Validation.of(game, state, history, run.validation()), state, FiniteGuard(), run.resumed["done"]
    )


def open_game(run: Run, pictures: Pictures) -> Game:
    """A fresh proxy attacker with its optimizer, facing the model and the pictures of this run."""
    config, model, accelerator, key = run.config, run.model, run.accelerator, run.key
    rules = pick(config, GameRules)
    proxy, attacker = build_attacker(
        model.latent_shape(run.training_set.common_size(run.size)),
        pick(config, AttackerRules),
        pooled=not pictures.one_shape(),
        device=accelerator.device,
    )
    denoiser = Denoiser(
        model.unet,
        model.text_encoder,
        model.scheduler,
        latent_scale=model.vae.config.scaling_factor,
        clip_skip=config.clip_skip,
    )
    members = MemberBatches(
        pictures,
        accumulation=config.gradient_accumulation_steps,
        key=key,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    return Game(
        accelerator=accelerator,
        pictures=pictures,
        members=members,
        aux_members=AuxCycle(run.split.indices("members-aux"), key, "members-aux"),
        aux_non_members=AuxCycle(run.split.indices("non-members-aux"), key, "non-members-aux"),
        denoiser=denoiser,
        contexts=open_contexts(accelerator, denoiser, pictures, insist=config.cache_text_encoder_outputs),
        proxy=proxy,
        attacker=attacker,
        key=key,
        rules=rules,
        noise=pick(config, NoiseRules),
        loss=pick(config, LossRules),
    )
