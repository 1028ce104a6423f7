"""A run before its first step: who is a member, of what model, with which network, for how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from library.assembly.distillation import DistillPlan, plan_distillation, require_swap
from library.assembly.game import GameRules
from library.assembly.opening import Opening
from library.assembly.pictures import CaptionLengthRules, warn_of_cut_captions
from library.assembly.privacy_plan import (
    PrivacyPlan,
    PrivacyRules,
    plan_privacy,
    require_spending,
    steps_of_an_epoch,
    units_of,
)
from library.assembly.validation_plan import ValidationPlan, ValidationRules, plan_validation, step_cost
from library.data import dataset_config
from library.data.duplicates import warn_of_near_duplicates
from library.data.picture_sources import find_parts, picture_count
from library.data.read_pictures import Sources, pick_rules, read_sources
from library.data.split import Split
from library.data.split_file import SplitRules, new_secret, open_split
from library.data.training_set import TrainingSet, build_training_set, undivided_set
from library.diffusion import memory
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.model_files import ModelRules, open_base
from library.diffusion.previews import PreviewRules, prompts_for
from library.diffusion.prompt_files import Prompt
from library.errors import Faults, InputError
from library.options import resolve, write
from library.options.declarations import Config
from library.privacy.distillation import DistillRules, require_groups
from library.privacy.gap import StopRules, course_of, require_visible
from library.privacy.proxy_history import ProxyHistory
from library.rules import pick
from library.seeding import StreamKey, seed_published
from library.tensor_files import state_fingerprint
from library.trainers import PRIVATE
from library.training import earlier_run, messages, output_folder, saved_state, state, trackers
from library.training.device import agreed, open_accelerator, settle_threads
from library.training.optimization.average import Average, begin_average
from library.training.optimization.lr_schedulers import ScheduleRules, build_schedule
from library.training.optimization.optimizer_step import DTYPES
from library.training.optimization.optimizers import OptimizerRules, build_optimizer, check_optimizer, trained_numbers
from library.training.output_folder import OutputFolder
from library.training.output_lock import OutputLock
from library.training.training_plan import BatchSize, TrainingPlan, Undivided, plan_training, steps_for
from networks import protocol
from networks.network_protocol import require_switch

MANY = 2000  # pictures that are not decoded for a run that stops anyway


@dataclass(frozen=True)
class Optimization:
    """What moves the network's weights."""

    optimizer: Any
    schedule: Any
    average: Average | None  # of the trained weights


@dataclass(frozen=True)
class Run:
    """Everything that is settled before anything is written."""

    door: str
    config: Config
    options: Mapping[str, Any]  # those that shape the weights
    accelerator: Accelerator
    folder: OutputFolder
    lock: OutputLock  # held until the outputs are closed
    size: tuple[int, int]  # training resolution (width, height) in pixels
    split: Split
    key: StreamKey  # of every private draw
    model: LatentDiffusion
    prompts: list[Prompt]
    network: Any
    stated: Mapping[str, str]  # what the LoRA file says of the network
    training_set: TrainingSet
    plan: TrainingPlan
    undivided: Undivided  # the same steps in kohya
    resumed: Mapping[str, Any]  # steps done and the proxy's checks; 0 and none for a fresh run
    optimization: Optimization
    privacy: PrivacyPlan | None  # of a differentially private run
    private_key: StreamKey | None  # of its sampling and noise

    def say(self, *lines: str) -> None:
        """Tell the person, once for all processes."""
        self.accelerator.print("\n".join(lines))

    def inputs(self) -> dict[str, str]:
        """What a resumed run must find again, as fingerprints."""
        return _inputs(self.key, self.training_set, self.model)

    def is_finished(self) -> bool:
        """Whether the state that is resumed has all steps behind it."""
        return bool(self.resumed["done"] >= self._end())

    def _end(self) -> int:
        """Steps of the run, by the checks up to the state that is resumed: a target may have ended it early."""
        return course_of(pick(self.config, StopRules), self.history().gaps, self.plan.total_steps).end

    def history(self) -> ProxyHistory:
        """The checks of the run that this one continues; a fresh run has none."""
        history = ProxyHistory()
        history.remember(self.resumed["checks"], self.resumed.get("gaps", []))
        return history

    def how_it_ended(self) -> str:
        """What is said of a run that was finished before; its folder is let go as it was."""
        self.lock.release()
        return messages.finished_before(self.folder, self.resumed["done"], self._end())

    def summary(self) -> str:
        """Sides, steps and exposures."""
        accumulation, processes = self.config.gradient_accumulation_steps, self.accelerator.num_processes
        batch = BatchSize(self.training_set.largest_batch(), accumulation, processes)
        sides = messages.split_summary(self.split.sizes(), self.split.inclusion)
        done, looks = self.resumed["done"], self.validation()
        goes_on = f"\nresumed after step {done} of {self.plan.total_steps}" if done else ""
        if self.privacy is not None:
            numbers = trained_numbers(self.optimization.optimizer)
            return f"{sides}\n{self.privacy.summary(self.plan, done, numbers)}{goes_on}"
        assert looks is not None
        config, uses = self.config, self.training_set.member_uses()
        plan = self.plan.summary(uses, batch, config.max_train_epochs, self.undivided, config.max_train_steps)
        taught = self.distillation()
        if taught is not None:
            plan = f"{plan}\n{taught.summary(pick(config, DistillRules))}"
        return f"{sides}\n{plan}\n{looks.summary()}{goes_on}"

    def validation(self) -> ValidationPlan | None:
        """When validation runs, and on how many pictures; never in a differentially private run."""
        if self.privacy is not None:
            return None
        config, rules = self.config, pick(self.config, GameRules)
        images = sum(self.training_set.uses) / self.plan.steps_per_epoch / self.accelerator.num_processes
        sides = self.split.sizes()
        return plan_validation(
            self.plan,
            pick(config, ValidationRules),
            sides=(sides["members-aux"], sides["non-members-aux"]),
            draws=rules.attack_eval_draws,
            cost=step_cost(images, rules, gradient_checkpointing=config.gradient_checkpointing),
            one_exposure=self.plan.one_exposure(self.training_set.member_uses()),
        )

    def distillation(self) -> DistillPlan | None:
        """The teachers of the run; None without distillation."""
        rules = pick(self.config, DistillRules)
        if not rules.distill_folds:
            return None
        accumulation, processes = self.config.gradient_accumulation_steps, self.accelerator.num_processes
        return plan_distillation(self.training_set, rules, self.key, accumulation=accumulation, processes=processes)

    def forecast(self, arguments: Sequence[str]) -> str:
        """What ``--dry_run`` prints: memory, and every option with its origin.

        Args:
            arguments: the command line that gave the config.
        """
        needed = memory.memory_summary(
            self.model,
            max(self.training_set.sizes),
            trained_numbers(self.optimization.optimizer),
            self.images_of_a_pass(),
            pick(self.config, memory.MemoryRules),
        )
        drawn = self.config.split_file or self.config.split_secret_file or self.config.resume
        note = (
            ""
            if drawn
            else (
                "the sides above are one draw; the run will draw its own, so its sizes may differ "
                "(--split_secret_file FILE draws the same sides every time)\n"
            )
        )
        return f"{note}{needed}\n{write.explained_toml(self.door, self.config, arguments)}"

    def images_of_a_pass(self) -> int:
        """Images that go through the UNet at once."""
        if self.privacy is not None:
            return self.config.train_batch_size * self.config.dp_draws
        return self.training_set.largest_batch() * self.config.attack_draws

    def uses(self) -> list[int]:
        """Uses of each member in an epoch, for what is stated; DP-SGD knows no repeats."""
        uses = self.training_set.member_uses()
        return uses if self.privacy is None else [1] * len(uses)


def open_run(options: resolve.ReadOptions) -> Run:
    """Read the pictures and the model, draw or reuse the split, put the network in, and plan the run.

    Raises:
        InputError: all that is wrong with options, output folder, pictures, model, network and optimizer, in one round,
            and what could not be looked at because of it.
    """
    config, opening = options.config, Opening(options)
    accelerator = opening.attempt(
        "the device", open_accelerator, config.mixed_precision, ddp_timeout=config.ddp_timeout
    )
    if accelerator is None:
        opening.raise_if_any()
    folder = output_folder.choose_folder(config.output_dir, config.output_name, options.door, config.resume)
    lock = OutputLock(folder.path)
    with lock.released_on_error():
        return _open_run(opening, accelerator, folder, lock)


def _open_run(opening: Opening, accelerator: Accelerator, folder: OutputFolder, lock: OutputLock) -> Run:
    """The run in its folder, whose lock is taken here."""
    options, config, attempt = opening.options, opening.options.config, opening.attempt
    fresh_secret = agreed(accelerator, new_secret())  # of a new split; an earlier one keeps its own
    messages.show_library_messages(wanted=accelerator.is_main_process, level=config.console_log_level)
    size = dataset_config.main_resolution(config.dataset_config, config.resolution)
    attempt("the output folder", _check_folder, config, folder, lock, accelerator)
    attempt("the trackers", trackers.check_trackers, pick(config, trackers.LogRules))
    attempt("the optimizer", check_optimizer, pick(config, OptimizerRules))
    resumed = attempt("the state", _resumed, options)
    model = attempt("the base model", open_base, pick(config, ModelRules), DTYPES[config.mixed_precision])
    found = attempt("the pictures and captions", _sources, config, opening.faults)
    split = attempt("the split", _split_of, config, found, resumed, fresh_secret)
    key = StreamKey(fresh_secret, config.seed) if split is None else split.key(config.seed)
    prompts = attempt("the prompts", prompts_for, pick(config, PreviewRules), size, config.seed, model=model)
    injected = attempt("the network", _injected, options, key, accelerator.device, model)
    if model is None:
        attempt("network_weights and base_weights", protocol.check_files, pick(config, protocol.NetworkRules))
    training_set = attempt("sizes and steps", _training_set, config, split, found, model)
    lengths = attempt("sizes and steps", _lengths, options, found, model, accelerator, training_set)
    is_private = options.door in PRIVATE
    privacy = attempt("the accounting", _privacy, config, training_set, lengths, resumed) if is_private else None
    inputs = _inputs(key, training_set, model)
    attempt("the state", state.require_inputs, resumed, inputs, place=config.resume)
    optimization = attempt("the learning rates", _open_optimization, config, injected, model, lengths)
    opening.raise_if_any()
    (network, stated), (plan, undivided) = injected, lengths
    settle_threads(accelerator.device, resumed.get("threads"))
    warn_of_near_duplicates(split)
    weights = resolve.weight_options(options.door, config)
    private_key = privacy.key(key, weights, inputs, state_fingerprint(network.state_dict())) if privacy else None
    everybody = [*split.in_order(), *found.regularisation]
    warn_of_cut_captions(everybody, model.tokenizers()[0], pick(config, CaptionLengthRules))
    return Run(
        door=options.door,
        config=config,
        options=weights,
        accelerator=accelerator,
        folder=folder,
        lock=lock,
        size=size,
        split=split,
        key=key,
        model=model,
        prompts=prompts,
        network=network,
        stated=stated,
        training_set=training_set,
        plan=plan,
        undivided=undivided,
        resumed=resumed,
        optimization=optimization,
        privacy=privacy,
        private_key=private_key,
    )


def _check_folder(config: Config, folder: OutputFolder, lock: OutputLock, accelerator: Accelerator) -> None:
    """Take the lock and look into the folder. Raises: InputError where the run could not be written."""
    wanted = lock if accelerator.is_main_process and not config.dry_run else None
    faults, how = Faults(), {"overwrite": config.overwrite, "resume": config.resume is not None}
    faults.attempt(output_folder.check_folder, folder, wanted, **how)
    faults.attempt(earlier_run.check_earlier, folder, **how)
    faults.raise_if_any()


def _resumed(options: resolve.ReadOptions) -> dict[str, Any]:
    """How far the resumed run had come, trained with the same options, as far as these can be used."""
    config, doubtful = options.config, options.faults.about
    resumed = saved_state.read_state(config.resume)
    given, defaults = (resolve.weight_options(options.door, one) for one in (config, Config()))
    saved = resumed.get("options", {})
    comparable = {name: saved.get(name, defaults[name]) if name in doubtful else given[name] for name in given}
    state.require_options(config.resume, resumed, comparable, defaults)
    return resumed


def _sources(config: Config, faults: Faults) -> Sources | None:
    """The pictures; where the run stops anyway and there are many, only their folders are looked at."""
    rules = pick_rules(config)
    if faults.messages and config.dataset_name is None and picture_count(find_parts(*rules)) > MANY:
        raise InputError(
            f"not looked at yet, because of the other faults: more than {MANY} pictures and their captions"
        )
    return read_sources(*rules)


def _injected(
    options: resolve.ReadOptions, key: StreamKey, device: torch.device, model: LatentDiffusion
) -> tuple[Any, dict[str, str]]:
    """The network in the model, and what is stated about it."""
    config = options.config
    seed_published(key, "network")
    rules = pick(config, protocol.NetworkRules)
    injected = protocol.inject(rules, model, device, resolve.weight_options(options.door, config))
    if config.target_auc is not None or config.proxy_input == "calibrated":
        require_switch(injected[0], config.network_module)
    if config.distill_folds:
        require_swap(injected[0], config.network_module)
    return injected


def _split_of(config: Config, found: Sources, resumed: Mapping[str, Any], fresh_secret: bytes) -> Split:
    """The sides, with enough aux pictures for the attacker."""
    split = open_split(pick(config, SplitRules), found.candidates, found.outsiders, fresh_secret)
    split.require_aux((config.attack_batch_size or config.train_batch_size) if config.k_steps else 1)
    if config.distill_folds:
        require_groups(config.distill_folds, len({one.group for one in split.members()}))
    if config.target_auc is not None:
        groups = [len({one.group for one in split.sides[side]}) for side in ("members-aux", "non-members-aux")]
        require_visible(config.target_auc, *groups)
    return split


def _training_set(config: Config, split: Split, found: Sources, model: LatentDiffusion) -> TrainingSet:
    """The pictures of the run in the sizes that the model takes."""
    return build_training_set(split, found.regularisation, config.prior_loss_weight, model.side_multiple())


def _inputs(key: StreamKey, training_set: TrainingSet | None, model: LatentDiffusion | None) -> dict[str, str]:
    """Fingerprints by the names of ``state.INPUTS``, of what there is."""
    found = {} if model is None else {"model": model.fingerprint}
    if training_set is not None:
        found["split"] = key.fingerprint(training_set.hash())
        found["captions"] = key.fingerprint(training_set.captions_hash())
    return found


def _undivided(config: Config, found: Sources, multiple: int, processes: int) -> Undivided:
    """What kohya would make of the same pictures."""
    everybody = undivided_set(found.candidates, found.regularisation, multiple)
    uses = everybody.member_uses()
    steps = everybody.steps_per_epoch(processes, config.gradient_accumulation_steps)
    return Undivided(len(uses), steps, sum(uses) / len(uses))


def _lengths(
    options: resolve.ReadOptions,
    found: Sources,
    model: LatentDiffusion,
    accelerator: Accelerator,
    training_set: TrainingSet,
) -> tuple[TrainingPlan, Undivided]:
    """The length of the run, and what kohya would make of the same steps."""
    config, processes = options.config, accelerator.num_processes
    undivided = _undivided(config, found, model.side_multiple(), processes)
    if options.door in PRIVATE:
        per_epoch = steps_of_an_epoch(units_of(training_set, pick(config, PrivacyRules)), config.dp_batch_size)
        return plan_training(per_epoch, config.max_train_steps, config.max_train_epochs), undivided
    return _planned(config, training_set, undivided, processes), undivided


def _privacy(
    config: Config,
    training_set: TrainingSet,
    lengths: tuple[TrainingPlan, Undivided],
    resumed: Mapping[str, Any],
) -> PrivacyPlan:
    """Noise and accountant; those of the state where a run goes on."""
    rules = pick(config, PrivacyRules)
    planned = plan_privacy(rules, units_of(training_set, rules), lengths[0])
    require_spending(config.resume, resumed, planned)
    return planned


def _planned(config: Config, training_set: TrainingSet, undivided: Undivided, processes: int) -> TrainingPlan:
    """The length of the run; with ``keep_exposures`` the steps that give kohya's exposures, and no more than asked."""
    per_epoch, steps = (
        training_set.steps_per_epoch(processes, config.gradient_accumulation_steps),
        config.max_train_steps,
    )
    if config.keep_exposures:
        steps = min(steps, steps_for(undivided.exposures(steps), per_epoch, training_set.member_uses()))
    return plan_training(per_epoch, steps, config.max_train_epochs)


def _open_optimization(
    config: Config,
    injected: tuple[Any, Mapping[str, str]],
    model: LatentDiffusion,
    lengths: tuple[TrainingPlan, Undivided],
) -> Optimization:
    """Optimizer, learning-rate schedule and moving average of the network's parameters."""
    network, plan = injected[0], lengths[0]
    groups = protocol.parameter_groups(network, model, config.text_encoder_lr, config.unet_lr, config.learning_rate)
    optimizer = build_optimizer(network, groups, pick(config, OptimizerRules))
    schedule = build_schedule(optimizer, pick(config, ScheduleRules), plan.total_steps)
    return Optimization(optimizer, schedule, begin_average(config.ema_decay, optimizer))
