"""Checks of a state's moments and plain values before they are loaded: what does not fit would crash a library."""

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from library.errors import InputError, shortened, shown
from library.training.optimization.optimizers import trained_parameters

# Moments that have the shape of their parameter, in torch.optim and in the packages of optimizers.KNOWN
SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "z", "state1", "state2")


def check_alike(own: Any, saved: Any, where: str) -> None:
    """Compare saved plain values with those of this run: the same lengths and kinds, whatever the numbers are.

    Keys that this run does not know, as another version writes them, are taken if they hold plain values.

    Raises:
        InputError: the first that is of another kind.
    """
    if own is None or saved is None:  # not set yet, or unset
        return
    kinds = [kind for kind in (bool, (int, float, Tensor), str, (list, tuple), dict) if isinstance(own, kind)]
    fits = not kinds or (isinstance(saved, kinds[0]) and isinstance(saved, bool) == isinstance(own, bool))
    if fits and isinstance(own, list | tuple):
        fits = len(saved) == len(own)
    if fits and isinstance(own, int | float) and isinstance(saved, int | float):
        fits = math.isfinite(saved) or not math.isfinite(own)
    if not fits:
        raise InputError(f"{where} is {shown(saved)}, which does not fit this run; resume from another state")
    keys = set(saved) & set(own) if isinstance(own, dict) else range(len(own)) if isinstance(own, list | tuple) else ()
    for key in keys:
        check_alike(own[key], saved[key], f"{where}[{shown(key)}]")


def check_moments(optimizer: Any, saved: Any, file: Path) -> None:
    """Compare an optimizer's saved moments with its parameters before they are loaded: a wrong shape crashes torch.

    Raises:
        InputError: another number of parameters, or a moment of another shape or with NaN or infinity.
    """
    try:
        groups = [len(group["params"]) for group in saved["param_groups"]]
        numbers = [number for group in saved["param_groups"] for number in group["params"]]
        moments = {number: dict(saved["state"].get(number, {})) for number in numbers}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"--resume: '{file}' holds no optimizer; resume from another state") from error
    if groups != [len(group["params"]) for group in optimizer.param_groups]:
        raise InputError(f"--resume: '{file}' is of an optimizer with other parameters; resume from another state")
    for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        here, there = ({name: value for name, value in one.items() if name != "params"} for one in (own, group))
        check_alike(here, there, f"--resume: in '{file}' a group of parameters")
        for name, value in here.items():  # of a version without this setting; torch would miss it in the next step
            group.setdefault(name, value)
    names = {dim: moment_names(optimizer, dim) for dim in {one.dim() for one in trained_parameters(optimizer)}}
    for number, parameter in zip(numbers, trained_parameters(optimizer), strict=True):
        wanted = names[parameter.dim()]
        if moments[number] and wanted and set(moments[number]) != wanted:
            raise InputError(
                f"--resume: in '{file}' parameter {number} has {shortened(sorted(map(str, moments[number])))} and not "
                f"{shortened(sorted(wanted))}; resume from another state"
            )
        for name, value in moments[number].items():
            _check_moment(name, value, parameter, f"--resume: in '{file}' {name} of parameter {number}")


def check_schedule(schedule: Any, saved: Any, where: str) -> None:
    """Compare a schedule's saved values with its own. Raises: InputError for other kinds, and in place of a method."""
    inner = getattr(schedule, "scheduler", schedule)  # accelerate wraps it
    if not isinstance(saved, dict):
        raise InputError(f"{where} is {shown(saved)}, which does not fit this run; resume from another state")
    if strange := [str(name) for name in saved if callable(getattr(type(inner), str(name), None))]:
        raise InputError(f"{where} replaces {shortened(strange)}; resume from another state")
    check_alike(schedule.state_dict(), saved, where)


def moment_names(optimizer: Any, dim: int) -> set[str]:
    """What one of torch's own optimizers keeps for a parameter, shown by a step of another one of its kind.

    Empty for other packages', which may keep different things for different parameters.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not type(inner).__module__.startswith("torch.optim."):
        return set()
    group = {name: value for name, value in inner.param_groups[0].items() if name in inner.defaults}
    trial = nn.Parameter(torch.zeros([2] * dim))
    trial.grad = torch.zeros([2] * dim)
    known = set(inspect.signature(type(inner)).parameters) - {"fused", "foreach", "capturable"}
    twin = type(inner)([trial], **{name: value for name, value in group.items() if name in known})
    twin.step()
    return set(twin.state[trial])


def _check_moment(name: str, value: Any, parameter: nn.Parameter, where: str) -> None:
    if not isinstance(value, Tensor):
        if value is not None and (not isinstance(value, int | float | str | list | tuple) or name in SHAPED):
            raise InputError(f"{where} is a {type(value).__name__}; resume from another state")
        return
    if name in SHAPED and value.shape != parameter.shape:
        raise InputError(
            f"{where} has the shape {tuple(value.shape)}, and the parameter {tuple(parameter.shape)}; resume from "
            "another state"
        )
    if name == "step" and value.numel() != 1:
        raise InputError(f"{where} is {value.numel()} numbers; resume from another state")
    if value.is_floating_point() and not value.isfinite().all():
        raise InputError(f"{where} is not finite; resume from another state")
