"""The teachers of a distillation: trained one after another before the first step, kept in the run's state folder."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from library.assembly.distillation import Teachers
from library.assembly.game import Game
from library.assembly.run import Run
from library.assembly.training import Training, member_batches
from library.assembly.validation import Validation
from library.assembly.validation_plan import ValidationRules, plan_validation, step_cost
from library.errors import InputError, RunStopped
from library.privacy.gap import Course, StopRules, course_of, kept_check
from library.privacy.proxy_history import ProxyHistory
from library.progress import clock
from library.rules import pick
from library.seeding import StreamKey, seed_modules
from library.training.device import agreed
from library.training.interruption import FiniteGuard, StopSignal
from library.training.optimization.lr_schedulers import ScheduleRules, build_schedule
from library.training.optimization.optimizer_step import take_step
from library.training.optimization.optimizers import OptimizerRules, build_optimizer
from library.training.run_log import Recorder
from library.training.state import TrainingState, fill_raw, restored
from library.training.teacher_files import read_teacher, teacher_file, write_teacher
from library.training.training_plan import TrainingPlan
from networks import protocol

WARMUP = 0.05  # of a teacher's steps, in which its learning rate rises


def teach(training: Training, log: Recorder, stop: StopSignal) -> None:
    """Fill in every teacher: read it where it is finished, train it anew where it is not. The network stays as it is.

    A teacher depends on the run's key, the members outside its fold and the options alone, so one that is trained
    again is the same bit for bit.

    Raises:
        RunStopped: the person asked to stop, or a teacher's losses are not finite.
        InputError: a teacher's file that is damaged or of another run; a target of the AUC that a teacher never met.
    """
    run, teachers = training.run, training.game.teachers
    if teachers is None:
        return
    scaler = run.accelerator.scaler
    untouched = None if scaler is None else scaler.state_dict()
    count = len(teachers.plan.plans)
    found = agreed(run.accelerator, [_finished(run, teacher) for teacher in range(count)])
    with restored(run.network):
        for teacher in range(count):
            if (file := found[teacher]) is not None:
                weights, figures = read_teacher(file, run.network, _fingerprint(run))
            else:
                weights, figures = _open_lesson(training, teachers, teacher).run_through(log, stop)
                if run.accelerator.is_main_process:
                    write_teacher(teacher_file(run.folder.teachers(), teacher), weights, _fingerprint(run), figures)
            teachers.weights[teacher] = {name: value.to(run.accelerator.device) for name, value in weights.items()}
            if scaler is not None:
                scaler.load_state_dict(untouched)  # the student begins with the scale that it has without teachers
            if training.done == 0:
                log.teacher(teacher + 1, count, figures)


@dataclass(frozen=True)
class Lesson:
    """The training of one teacher: a plain LoRA on the members outside its fold."""

    run: Run
    name: str  # "teacher 2 of 6"
    key: StreamKey
    game: Game  # without attacker and without teachers
    state: TrainingState
    plan: TrainingPlan
    validation: Validation | None  # where a target of the AUC ends the training
    rules: StopRules
    guard: FiniteGuard

    def run_through(self, log: Recorder, stop: StopSignal) -> tuple[dict[str, Tensor], dict[str, float]]:
        """All steps; returns the weights that were kept, and figures of the training. Raises: see ``teach``."""
        losses: list[float] = []
        began = time.monotonic()
        self._look(0, log)
        for step in self._steps():
            losses.append(self.step(step)["adaptation_loss"])
            if self.guard.is_lost():
                raise RunStopped(f"{self.name}: {self.guard.report(step + 1, {'adaptation_loss': losses[-1]})}")
            end = self._course().end
            left = (time.monotonic() - began) / (step + 1) * (end - step - 1)
            log.announce(f"{self.name}, {clock(left)} left: step", step + 1, end)
            self._look(step + 1, log)
            if stop.asked(self.run.accelerator):
                raise RunStopped(f"stopped in {self.name}, after its step {step + 1} of {end}, as asked")
        if self.validation is None:
            self.state.keep()
        elif not self.state.kept:
            raise InputError(
                f"{self.name}: target_auc {self.rules.target_auc:g} was met by none of its validation passes that had "
                "learnt something; raise target_auc, lower unet_lr, or look earlier (aux_loss_every_n_steps)"
            )
        return self.state.kept, self._figures(losses)

    def _course(self) -> Course:
        return course_of(self.rules, self.game.history.gaps, self.plan.total_steps)

    def _steps(self) -> Iterator[int]:
        step = 0
        while step < self._course().end:
            yield step
            step += 1

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step of a plain LoRA."""
        run, accelerator, config = self.run, self.run.accelerator, self.run.config
        seed_modules(self.key, step, accelerator.process_index)
        losses = torch.zeros(3, device=accelerator.device)
        batches = self.game.members.of_step(step)
        for part, batch in enumerate(batches):
            protocol.before_pass(run.network, run.model, starts_epoch=part == 0 and self.plan.starts_epoch(step))
            loss, attack_loss = self.game.member_losses(batch, step, part)
            accelerator.backward(loss / len(batches))
            losses += torch.stack([loss, loss, attack_loss]).detach() / len(batches)

        def settle() -> dict[str, float]:
            return protocol.after_step(run.network, config.scale_weight_norms, accelerator.device)

        factor = self._course().rate_factor(step)
        return take_step(accelerator, self.state, config.max_grad_norm, losses, self.guard, settle, factor)

    def _look(self, done: int, log: Recorder) -> None:
        """A validation pass where one is due: what this teacher learnt by heart, beside pictures it never saw."""
        if self.validation is None or not (done in (0, self._course().end) or self.validation.plan.is_due(done)):
            return
        self.validation.run(done, self.plan.epoch_of(max(0, done - 1)), _named(log, self.name))
        kept = kept_check(self.rules, self.game.history.gaps)
        if kept is not None and kept.done == done:
            self.state.keep()

    def _figures(self, losses: list[float]) -> dict[str, float]:
        """For the log."""
        last = losses[-self.plan.steps_per_epoch :]
        figures = {"teacher_steps": float(len(losses)), "teacher_loss": sum(last) / len(last)}
        if self.validation is not None:
            kept = kept_check(self.rules, self.game.history.gaps)
            assert kept is not None
            figures |= {"teacher_kept_step": float(kept.done), "teacher_learnt": kept.learnt, "teacher_auc": kept.auc}
        return figures


def _named(log: Recorder, name: str) -> Any:
    return lambda what, place, count: log.announce(f"{name}, {what}", place, count)


def _open_lesson(training: Training, teachers: Teachers, teacher: int) -> Lesson:
    """A teacher before its first step, in the network."""
    run, config = training.run, training.run.config
    plan, training_set = teachers.plan.plans[teacher], teachers.plan.training_sets[teacher]
    key = StreamKey(run.key.derived("teacher", teacher), run.key.seed)
    fill_raw(run.network, teachers.start)
    pictures = training.game.pictures.in_training(
        training_set, steps_per_epoch=plan.steps_per_epoch, total_steps=plan.total_steps, key=key
    )
    members = member_batches(run, pictures, key)
    alone = replace(training.game.rules, k_steps=0, attack_draws=1, separate_noise=False, proxy_input="error_map",
                    distill_folds=0)  # fmt: skip
    game = replace(
        training.game, pictures=pictures, members=members, key=key, rules=alone, history=ProxyHistory(), teachers=None
    )
    state = _open_state(training, plan)
    rules = pick(config, StopRules)
    validation = None if rules.target_auc is None else lesson_validation(training, teachers, teacher, game, state)
    name = f"teacher {teacher + 1} of {len(teachers.plan.plans)}"
    return Lesson(run, name, key, game, state, plan, validation, rules, FiniteGuard())


def _open_state(training: Training, plan: TrainingPlan) -> TrainingState:
    """A fresh optimizer at the run's learning rates, with a schedule that ends where the teacher ends.

    The rate rises and falls to zero along a cosine; where a target of the AUC ends the training, it falls then.
    """
    run, config, accelerator = training.run, training.run.config, training.run.accelerator
    groups = protocol.parameter_groups(
        run.network, run.model, config.text_encoder_lr, config.unet_lr, config.learning_rate
    )
    optimizer = build_optimizer(run.network, groups, pick(config, OptimizerRules))
    shape = "cosine" if config.target_auc is None else "constant_with_warmup"
    schedule_rules = replace(
        pick(config, ScheduleRules), lr_scheduler=shape, lr_warmup_steps=WARMUP, lr_decay_steps=0.0,
        lr_scheduler_num_cycles=1, lr_scheduler_power=1.0, lr_scheduler_timescale=None, lr_scheduler_min_lr_ratio=None,
        lr_scheduler_type="", lr_scheduler_args=[],
    )  # fmt: skip
    schedule = build_schedule(optimizer, schedule_rules, plan.total_steps)
    prepared = AcceleratedOptimizer(optimizer, scaler=accelerator.scaler)  # as prepare() does, which would keep it
    game = training.game
    return TrainingState(run.network, prepared, schedule, game.proxy, game.attacker, accelerator.scaler, None)


def lesson_validation(
    training: Training, teachers: Teachers, teacher: int, game: Game, state: TrainingState
) -> Validation:
    """Passes over the aux sides as this teacher sees them: its own fold of the members is held out, too."""
    config, split = training.run.config, training.run.split.sizes()
    images = game.members.images_per_step() / training.run.accelerator.num_processes
    plan, taught = teachers.plan.plans[teacher], teachers.plan.training_sets[teacher].member_uses()
    passes = plan_validation(
        plan,
        pick(config, ValidationRules),
        sides=(split["members-aux"], split["non-members-aux"]),
        draws=game.rules.attack_eval_draws,
        cost=step_cost(images, game.rules, gradient_checkpointing=config.gradient_checkpointing),
        one_exposure=plan.one_exposure([uses for uses in taught if uses]),
    )
    validation = Validation.of(game, state, passes)
    groups = {index: game.pictures.examples[index].group for index in validation.members}
    inside = {index for index, group in groups.items() if teachers.plan.cross_fit.learns_from(teacher, group)}
    held_out = [index for index in validation.members if index not in inside]
    return replace(
        validation,
        members=[index for index in validation.members if index in inside],
        non_members=[*validation.non_members, *held_out],
    )


def _finished(run: Run, teacher: int) -> Path | None:
    """The file of a teacher that is trained, in the run's folder or beside the state that is resumed."""
    own = run.folder.teachers()
    places = [own, *([Path(run.config.resume).resolve().parent / own.name] if run.config.resume else [])]
    return next((file for place in places if (file := teacher_file(place, teacher)).exists()), None)


def _fingerprint(run: Run) -> str:
    """What the teachers of a run depend on, under its key."""
    return run.key.fingerprint(repr((sorted(run.options.items()), sorted(run.inputs().items()))))
