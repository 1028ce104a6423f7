"""Learning-rate schedules by kohya's names, or any scheduler class by its dotted path."""

import inspect
import io
import logging
import pickle
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import diffusers.optimization
import torch
import transformers.optimization

from library.errors import InputError, did_you_mean
from library.named_code import Wanted, imported
from library.training.optimization.average import has_two_faces
from library.training.optimization.literals import literal_arguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScheduleRules:
    """Schedule of the learning rate; warm-up and decay in optimizer steps, below 1 as a share of the run."""

    lr_scheduler: str
    lr_warmup_steps: float
    lr_decay_steps: float
    lr_scheduler_num_cycles: int
    lr_scheduler_power: float
    lr_scheduler_timescale: int | None
    lr_scheduler_min_lr_ratio: float | None
    lr_scheduler_type: str
    lr_scheduler_args: list[str]
    dry_run: bool  # imports only modules of torch and transformers


# Options that only these schedules read; with another schedule they would have no effect.
READS = {
    "lr_decay_steps": ("warmup_stable_decay",),
    "lr_scheduler_timescale": ("inverse_sqrt",),
    "lr_scheduler_min_lr_ratio": ("cosine_with_min_lr", "warmup_stable_decay"),
    "lr_scheduler_args": ("piecewise_constant",),
}
# Only these schedules read a number other than 1; kohya's files often set it for others, so that is only a warning.
COUNTS = {
    "lr_scheduler_num_cycles": ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"),
    "lr_scheduler_power": ("polynomial",),
}


def build_schedule(optimizer: torch.optim.Optimizer, rules: ScheduleRules, total_steps: int) -> Any:
    """The schedule of the learning rate over ``total_steps`` optimizer steps.

    Raises:
        InputError: options that the schedule does not read, a warm-up as long as the run, a class that cannot be used.
    """
    if has_two_faces(optimizer):
        return _none(optimizer, rules)
    if isinstance(optimizer, transformers.optimization.Adafactor) and optimizer.defaults["relative_step"]:
        return _adafactor(optimizer, rules)
    if rules.lr_scheduler_type:
        return _by_path(optimizer, rules)
    for option, names in READS.items():
        if getattr(rules, option) and rules.lr_scheduler not in names:
            raise InputError(f"{option} is not used by lr_scheduler {rules.lr_scheduler}; it is for {', '.join(names)}")
    for option, names in COUNTS.items():
        if getattr(rules, option) != 1 and rules.lr_scheduler not in names:
            logger.warning(
                "%s %g has no effect with lr_scheduler %s; it is for %s",
                option,
                getattr(rules, option),
                rules.lr_scheduler,
                ", ".join(names),
            )
    if rules.lr_scheduler == "adafactor":
        raise InputError(
            'lr_scheduler adafactor belongs to optimizer_type AdaFactor with relative_step = True; use "constant"'
        )
    warmup, decay = steps_of(rules.lr_warmup_steps, total_steps), steps_of(rules.lr_decay_steps, total_steps)
    if warmup and warmup + decay >= total_steps:
        raise InputError(
            f"lr_warmup_steps {warmup}{f' and lr_decay_steps {decay}' if decay else ''} leave no steps at the full "
            "rate: the run has "
            f"{total_steps} steps; lower them"
        )
    return _by_name(optimizer, rules, warmup, decay, total_steps)


def steps_of(steps: float, total_steps: int) -> int:
    """Optimizer steps; a number below 1 is a share of the run."""
    return round(steps * total_steps) if steps < 1 else round(steps)


def _by_name(optimizer: torch.optim.Optimizer, rules: ScheduleRules, warmup: int, decay: int, total: int) -> Any:
    """A schedule by name, with kohya's arguments: cosine waves in halves, the lowest rate as a share of the peak."""
    name = rules.lr_scheduler
    waves = rules.lr_scheduler_num_cycles / 2
    if name == "inverse_sqrt":
        return transformers.optimization.get_inverse_sqrt_schedule(optimizer, warmup, rules.lr_scheduler_timescale)
    if name == "cosine_with_min_lr":
        if rules.lr_scheduler_min_lr_ratio is None:
            raise InputError(
                "lr_scheduler cosine_with_min_lr needs its lowest rate: set lr_scheduler_min_lr_ratio, e.g. 0.1"
            )
        return transformers.optimization.get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, warmup, total, num_cycles=waves, min_lr_rate=rules.lr_scheduler_min_lr_ratio
        )
    if name == "warmup_stable_decay":
        return transformers.optimization.get_wsd_schedule(
            optimizer,
            warmup,
            decay,
            num_stable_steps=total - warmup - decay,
            num_cycles=waves,
            min_lr_ratio=rules.lr_scheduler_min_lr_ratio or 0.0,
        )
    if name == "piecewise_constant":
        return _piecewise(optimizer, rules)
    return diffusers.optimization.get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total,
        num_cycles=rules.lr_scheduler_num_cycles,
        power=rules.lr_scheduler_power,
    )


def _piecewise(optimizer: torch.optim.Optimizer, rules: ScheduleRules) -> Any:
    """``step_rules="1:10,0.1:20,0.01"``: the factor 1 up to step 10, 0.1 up to step 20, 0.01 from there on."""
    arguments = literal_arguments(rules.lr_scheduler_args, "lr_scheduler_args")
    try:
        if set(arguments) != {"step_rules"}:
            raise ValueError(f"got {sorted(arguments)}")
        return diffusers.optimization.get_piecewise_constant_schedule(optimizer, arguments["step_rules"])
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"lr_scheduler piecewise_constant needs lr_scheduler_args 'step_rules=\"1:10,0.1:20,0.01\"', that "
            f"is factor:last step, and at the end the factor of the rest ({error})"
        ) from error


def _none(optimizer: torch.optim.Optimizer, rules: ScheduleRules) -> Any:
    """A schedule-free optimizer keeps its rate, whatever the schedule, as in kohya."""
    if rules.lr_scheduler != "constant" or rules.lr_scheduler_type or rules.lr_warmup_steps:
        logger.warning(
            "the optimizer is schedule-free: lr_scheduler %s and lr_warmup_steps %g are not used (for a warm-up set "
            "optimizer_args warmup_steps=100)",
            rules.lr_scheduler_type or rules.lr_scheduler,
            rules.lr_warmup_steps,
        )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def _adafactor(optimizer: torch.optim.Optimizer, rules: ScheduleRules) -> Any:
    """A schedule that only reports the rate that Adafactor found, whatever lr_scheduler says, as in kohya."""
    if rules.lr_scheduler not in ("constant", "adafactor") or rules.lr_scheduler_type or rules.lr_warmup_steps:
        logger.warning(
            "AdaFactor with relative_step finds its own rate: lr_scheduler %s and lr_warmup_steps %g are not used; "
            "set optimizer_args relative_step=False to use them",
            rules.lr_scheduler_type or rules.lr_scheduler,
            rules.lr_warmup_steps,
        )
    return transformers.optimization.AdafactorSchedule(optimizer)


def _by_path(optimizer: torch.optim.Optimizer, rules: ScheduleRules) -> Any:
    """A class by dotted path, or of torch.optim.lr_scheduler; it steps once in each optimizer step."""
    given = rules.lr_scheduler_type
    path = given if "." in given else f"torch.optim.lr_scheduler.{given}"
    place, _, name = path.rpartition(".")
    arguments = literal_arguments(rules.lr_scheduler_args, "lr_scheduler_args")
    try:
        module = imported(Wanted("lr_scheduler_type", given, place, rules.dry_run))
    except (ImportError, RuntimeError, OSError, ValueError) as error:
        raise InputError(f"lr_scheduler_type '{given}': {place} cannot be imported ({error})") from error
    if module is None:  # --dry_run does not import it
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    kind = _class_of(module, name, given)
    known = inspect.signature(kind).parameters
    for argument in arguments:
        if argument not in known:
            raise InputError(f"lr_scheduler_args: {name} has no '{argument}'{did_you_mean(argument, known)}")
    try:
        schedule = kind(optimizer, **arguments)
        needed = [each for each in inspect.signature(schedule.step).parameters.values() if each.default is each.empty]
    except (TypeError, ValueError) as error:
        raise InputError(f"lr_scheduler_type {name} does not take these lr_scheduler_args: {error}") from error
    if needed:
        raise InputError(
            f"lr_scheduler_type {name} needs {needed[0].name} at each step, which the trainer does not provide; use "
            "another"
        )
    _check_can_resume(schedule, name)
    return schedule


def _class_of(module: ModuleType, name: str, given: str) -> Any:
    """The class, after a check that it is a scheduler: nothing else is called."""
    kind = getattr(module, name, None)
    if kind is None:
        near = did_you_mean(name, dir(torch.optim.lr_scheduler))
        raise InputError(f"lr_scheduler_type '{given}' cannot be found ({module.__name__} has no {name}){near}")
    if not (inspect.isclass(kind) and issubclass(kind, torch.optim.lr_scheduler.LRScheduler)):
        raise InputError(f"lr_scheduler_type '{given}' is not a subclass of torch.optim.lr_scheduler.LRScheduler")
    return kind


def _check_can_resume(schedule: Any, name: str) -> None:
    """A state is read without unpickling code, so a scheduler must hold plain values."""
    buffer = io.BytesIO()
    try:
        torch.save(schedule.state_dict(), buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except (RuntimeError, TypeError, AttributeError, pickle.PickleError) as error:
        raise InputError(
            f"lr_scheduler_type {name} cannot be saved in a state that can be read safely: {error}"
        ) from error
