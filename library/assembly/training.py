"""A run from its first step on: latents, the game, and one step of what is optimised."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from library.assembly.contexts import open_contexts
from library.assembly.distillation import Teachers
from library.assembly.game import Game, GameRules, LossRules, NoiseRules
from library.assembly.pictures import EncodingRules, encode_pictures
from library.assembly.private_steps import PrivateSteps, open_private_steps
from library.assembly.run import Run
from library.assembly.validation import Validation
from library.data.batches import AuxCycle, MemberBatches, Pictures
from library.diffusion.compiling import CompileRules, compile_unet
from library.diffusion.denoising import Denoiser
from library.privacy.attackers.build import AttackerRules, build_attacker
from library.privacy.gap import Course, StopRules, course_of, kept_check
from library.rules import pick
from library.seeding import StreamKey, seed_modules
from library.training.interruption import FiniteGuard
from library.training.optimization.optimizer_step import take_step
from library.training.optimization.optimizers import trained_parameters
from library.training.state import TrainingState, copied_tensors, load_training_state
from networks import protocol


@dataclass(frozen=True)
class Training:
    """What changes while the run goes on, and the steps that change it."""

    run: Run
    game: Game
    validation: Validation | None  # a differentially private run asks nothing of its pictures beside its steps
    state: TrainingState
    guard: FiniteGuard  # counts steps that were not finite
    done: int  # optimizer steps of the run that this one goes on from
    stop_rules: StopRules

    def steps(self) -> Iterator[int]:
        """Every step that is left, counted from 0; how many they are may change while the run goes on."""
        step = self.done
        while step < self.course().end:
            yield step
            step += 1

    def course(self) -> Course:
        """When the rate falls and the run ends, by the checks so far."""
        return course_of(self.stop_rules, self.game.history.gaps, self.run.plan.total_steps)

    def kept_after(self) -> int | None:
        """Steps after which the weights of the final LoRA were kept: the last ones, unless a target chooses.

        None where no check met the target.
        """
        if self.stop_rules.target_auc is None:
            return self.course().end
        check = kept_check(self.stop_rules, self.game.history.gaps)
        return None if check is None else check.done

    def validate(self, done: int, epoch: int, announce: Callable[[str, int, int], object]) -> dict[str, Any]:
        """One validation pass; weights that a target of the AUC lets through, and that learnt most, are kept."""
        assert self.validation is not None
        figures = self.validation.run(done, epoch, announce)
        if self.stop_rules.target_auc is not None and self.kept_after() == done:
            self.state.keep()
        return figures

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

    def take_step(self, step: int, losses: Tensor) -> dict[str, float]:
        """Step the optimizer unless loss or gradient are not finite; returns the figures of the step.

        Args:
            step: counted from 0.
            losses: [3] the objective that was differentiated, L and CE, of this process.
        """
        run = self.run
        factor = self.course().rate_factor(step)
        limit = run.config.max_grad_norm
        return take_step(run.accelerator, self.state, limit, losses, self.guard, self._settle, factor)

    def private(self) -> PrivateSteps:
        """The steps of DP-SGD, in a run that has a privacy plan."""
        run = self.run
        assert run.privacy is not None and run.private_key is not None
        return open_private_steps(run.privacy, self.game, trained_parameters(self.state.optimizer), run.private_key)

    def take_private_step(self, step: int, seen: Sequence[Tensor]) -> dict[str, float]:
        """Step the optimizer with the noisy gradient, whatever the units' losses are; returns the figures of the step.

        Args:
            step: counted from 0.
            seen: of each pass of this process, [U, 2] losses and norms of the gradients of its units.
        """
        run = self.run
        assert run.privacy is not None
        stepped = take_step(run.accelerator, self.state, 0.0, self.no_losses(), self.guard, self._settle)
        losses, norms = torch.cat([torch.zeros(0, 2), *seen]).T
        is_finite = losses.isfinite() & norms.isfinite()
        sums = torch.stack([losses[is_finite].sum(), norms[is_finite].sum(), is_finite.sum(), (~is_finite).sum()])
        loss, norm, count, lost = run.accelerator.reduce(sums.to(run.accelerator.device), "sum").tolist()
        figures = {"gradient_norm": stepped["gradient_norm"], "learning_rate": stepped["learning_rate"]}
        figures |= {"units": count + lost, "epsilon": run.privacy.accountant.epsilon(step + 1)}
        figures |= {"units_not_finite": lost} if lost else {}
        return figures | ({"adaptation_loss": loss / count, "unit_gradient_norm": norm / count} if count else {})

    def images_per_step(self) -> float:
        """UNet passes over an image in a step of all processes, on average."""
        privacy = self.run.privacy
        return self.game.members.images_per_step() if privacy is None else privacy.images_per_step()

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
    looks = run.validation()
    validation = None if looks is None else Validation.of(game, state, looks)
    return Training(run, game, validation, state, FiniteGuard(), run.resumed["done"], pick(config, StopRules))


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
    plan = run.distillation()
    return Game(
        accelerator=accelerator,
        pictures=pictures,
        members=member_batches(run, pictures, key),
        aux_members=AuxCycle(run.split.indices("members-aux"), key, "members-aux"),
        aux_non_members=AuxCycle(run.split.indices("non-members-aux"), key, "non-members-aux"),
        denoiser=denoiser,
        contexts=open_contexts(accelerator, denoiser, pictures, run.network, insist=config.cache_text_encoder_outputs),
        network=run.network,
        proxy=proxy,
        attacker=attacker,
        history=run.history(),
        key=key,
        rules=rules,
        noise=pick(config, NoiseRules),
        teachers=None if plan is None else Teachers(plan, run.network, copied_tensors(run.network)),
        loss=pick(config, LossRules),
    )


def member_batches(run: Run, pictures: Pictures, key: StreamKey) -> MemberBatches:
    """The batches of this process, in an order that the key draws."""
    return MemberBatches(
        pictures,
        accumulation=run.config.gradient_accumulation_steps,
        key=key,
        rank=run.accelerator.process_index,
        processes=run.accelerator.num_processes,
    )
