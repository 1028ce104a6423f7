"""A run before its first step: who is a member, of what model, with which network, for how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from library.assembly.game import GameRules
from library.assembly.pictures import CaptionLengthRules, warn_of_cut_captions
from library.assembly.validation_plan import ValidationPlan, ValidationRules, plan_validation, step_cost
from library.data import dataset_config
from library.data.duplicates import warn_of_near_duplicates
from library.data.read_pictures import Sources, pick_rules, read_sources
from library.data.split import Split
from library.data.split_file import SplitRules, new_secret, open_split
from library.data.training_set import TrainingSet, build_training_set, undivided_set
from library.diffusion import memory
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.model_files import ModelRules, open_base
from library.diffusion.previews import PreviewRules, prompts_for
from library.diffusion.prompt_files import Prompt
from library.errors import Faults
from library.options import resolve, write
from library.options.declarations import Config
from library.rules import pick
from library.seeding import StreamKey, seed_published
from library.training import earlier_run, messages, output_folder, state, trackers
from library.training.average import Average, begin_average
from library.training.device import agreed, open_accelerator
from library.training.lr_schedulers import ScheduleRules, build_schedule
from library.training.optimizer_step import DTYPES
from library.training.optimizers import OptimizerRules, build_optimizer, check_optimizer, trained_numbers
from library.training.output_folder import OutputFolder
from library.training.output_lock import OutputLock
from library.training.training_plan import BatchSize, TrainingPlan, Undivided, plan_training, steps_for
from networks import protocol


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

    def say(self, *lines: str) -> None:
        """Tell the person, once for all processes."""
        self.accelerator.print("\n".join(lines))

    def inputs(self) -> dict[str, str]:
        """What a resumed run must find again, as fingerprints."""
        return _inputs(self.key, self.training_set, self.model)

    def summary(self) -> str:
        """Sides, steps and exposures."""
        accumulation, processes = self.config.gradient_accumulation_steps, self.accelerator.num_processes
        batch = BatchSize(self.training_set.largest_batch(), accumulation, processes)
        sides = messages.split_summary(self.split.sizes(), self.split.inclusion)
        config, uses = self.config, self.training_set.member_uses()
        plan = self.plan.summary(uses, batch, config.max_train_epochs, self.undivided, config.max_train_steps)
        return f"{sides}\n{plan}\n{self.validation().summary()}"

    def validation(self) -> ValidationPlan:
        """When validation runs, and on how many pictures."""
        config, rules = self.config, pick(self.config, GameRules)
        images = sum(self.training_set.uses) / self.plan.steps_per_epoch / self.accelerator.num_processes
        sides = self.split.sizes()
        return plan_validation(
            self.plan,
            pick(config, ValidationRules),
            sides=(sides["members-aux"], sides["non-members-aux"]),
            draws=rules.attack_eval_draws,
            cost=step_cost(images, rules, gradient_checkpointing=config.gradient_checkpointing),
        )

    def forecast(self, arguments: Sequence[str]) -> str:
        """What ``--dry_run`` prints: memory, and every option with its origin.

        Args:
            arguments: the command line that gave the config.
        """
        needed = memory.memory_summary(
            self.model,
            max(self.training_set.sizes),
            trained_numbers(self.optimization.optimizer),
            self.training_set.largest_batch(),
            pick(self.config, memory.MemoryRules),
        )
        return f"{needed}\n{write.explained_toml(self.door, self.config, arguments)}"


def open_run(door: str, config: Config) -> Run:
    """Read the pictures and the model, draw or reuse the split, put the network in, and plan the run.

    Raises:
        InputError: everything that is wrong with output folder, pictures, model, network and optimizer, at once.
    """
    accelerator = open_accelerator(config.mixed_precision, config.ddp_timeout)
    folder = output_folder.choose_folder(config.output_dir, config.output_name, door, config.resume)
    lock = OutputLock(folder.path)
    with lock.released_on_error():
        return _open_run(door, config, accelerator, folder, lock)


def _open_run(door: str, config: Config, accelerator: Accelerator, folder: OutputFolder, lock: OutputLock) -> Run:
    """The run in its folder, whose lock is taken here."""
    fresh_secret = agreed(accelerator, new_secret())  # of a new split; an earlier one keeps its own
    messages.show_library_messages(wanted=accelerator.is_main_process, level=config.console_log_level)
    options = resolve.weight_options(door, config)
    size = dataset_config.main_resolution(config.dataset_config, config.resolution)
    faults = Faults()
    faults.attempt(_check_outputs, config, folder, lock if accelerator.is_main_process else None)
    faults.attempt(check_optimizer, pick(config, OptimizerRules))
    resumed = faults.attempt(_resumed, config, options)
    found = faults.attempt(read_sources, *pick_rules(config))
    split = None
    if found is not None and resumed is not None:
        split = faults.attempt(_split_of, config, found, fresh_secret)
    key = StreamKey(fresh_secret, config.seed) if split is None else split.key(config.seed)
    model = faults.attempt(open_base, pick(config, ModelRules), DTYPES[config.mixed_precision])
    prompts, injected = None, None
    if model is not None:
        prompts = faults.attempt(prompts_for, model, pick(config, PreviewRules), size, config.seed)
        seed_published(key, "network")
        rules = pick(config, protocol.NetworkRules)
        injected = faults.attempt(protocol.inject, rules, model, accelerator.device, options)
    faults.raise_if_any()
    assert found is not None and split is not None and model is not None and prompts is not None
    assert resumed is not None and injected is not None  # whatever is missing has been a fault
    network, stated = injected
    warn_of_near_duplicates(split)
    training_set = build_training_set(split, found.regularisation, config.prior_loss_weight, model.side_multiple())
    everybody = [*split.in_order(), *found.regularisation]
    warn_of_cut_captions(everybody, model.tokenizer, pick(config, CaptionLengthRules))
    undivided = _undivided(config, found, model.side_multiple(), accelerator.num_processes)
    plan = _planned(config, training_set, undivided, accelerator.num_processes)
    state.require_inputs(config.resume, resumed, _inputs(key, training_set, model))
    return Run(
        door=door,
        config=config,
        options=options,
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
        optimization=_open_optimization(config, network, model, plan),
    )


def _check_outputs(config: Config, folder: OutputFolder, lock: OutputLock | None) -> None:
    """Raises: InputError where the run could not be written or tracked."""
    wanted, how = None if config.dry_run else lock, {"overwrite": config.overwrite, "resume": config.resume is not None}
    faults = Faults()
    faults.attempt(output_folder.check_folder, folder, wanted, **how)
    faults.attempt(earlier_run.check_earlier, folder, **how)
    faults.attempt(trackers.check_trackers, pick(config, trackers.LogRules))
    faults.raise_if_any()


def _resumed(config: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """How far the resumed run had come, trained with the same options."""
    resumed = state.read_state(config.resume)
    state.require_options(config.resume, resumed, options)
    return resumed


def _split_of(config: Config, found: Sources, fresh_secret: bytes) -> Split:
    """The sides, with enough aux pictures for the attacker."""
    split = open_split(pick(config, SplitRules), found.candidates, found.outsiders, fresh_secret)
    split.require_aux((config.attack_batch_size or config.train_batch_size) if config.k_steps else 1)
    return split


def _inputs(key: StreamKey, training_set: TrainingSet, model: LatentDiffusion) -> dict[str, str]:
    """Fingerprints by the names of ``state.INPUTS``."""
    return {
        "split": key.fingerprint(training_set.hash()),
        "captions": key.fingerprint(training_set.captions_hash()),
        "model": model.fingerprint,
    }


def _undivided(config: Config, found: Sources, multiple: int, processes: int) -> Undivided:
    """What kohya would make of the same pictures."""
    everybody = undivided_set(found.candidates, found.regularisation, multiple)
    uses = everybody.member_uses()
    steps = everybody.steps_per_epoch(processes, config.gradient_accumulation_steps)
    return Undivided(len(uses), steps, sum(uses) / len(uses))


def _planned(config: Config, training_set: TrainingSet, undivided: Undivided, processes: int) -> TrainingPlan:
    """The length of the run; with ``keep_exposures`` the steps that give kohya's exposures, and no more than asked."""
    per_epoch, steps = (
        training_set.steps_per_epoch(processes, config.gradient_accumulation_steps),
        config.max_train_steps,
    )
    if config.keep_exposures:
        steps = min(steps, steps_for(undivided.exposures(steps), per_epoch, training_set.member_uses()))
    return plan_training(per_epoch, steps, config.max_train_epochs)


def _open_optimization(config: Config, network: Any, model: LatentDiffusion, plan: TrainingPlan) -> Optimization:
    """Optimizer, learning-rate schedule and moving average of the network's parameters."""
    groups = protocol.parameter_groups(network, model, config.text_encoder_lr, config.unet_lr, config.learning_rate)
    optimizer = build_optimizer(network, groups, pick(config, OptimizerRules))
    schedule = build_schedule(optimizer, pick(config, ScheduleRules), plan.total_steps)
    return Optimization(optimizer, schedule, begin_average(config.ema_decay, optimizer))
