"""Checks of a state's moments and plain values before they are loaded: what does not fit would crash a library."""

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from library.errors import InputError, shortened, shown
from library.training.optimizers import trained_parameters

# Moments that have the shape of their parameter, in torch.optim and in the packages of optimizers.KNOWN
SHAPED = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "z", "state1", "state2")


def check_alike(own: Any, saved: Any, where: str) -> None:
    """Compare saved plain values with those of this run: the same keys, lengths and kinds, whatever the numbers are.

    Raises:
        InputError: the first that is of another kind.
    """
    if own is None or saved is None:  # not set yet, or unset
        return
    kinds = [kind for kind in (bool, (int, float, Tensor), str, (list, tuple), dict) if isinstance(own, kind)]
    fits = not kinds or (isinstance(saved, kinds[0]) and isinstance(saved, bool) == isinstance(own, bool))
    if fits and isinstance(own, dict):
        fits = set(saved) <= set(own)
    if fits and isinstance(own, list | tuple):
        fits = len(saved) == len(own)
    if fits and isinstance(own, int | float) and isinstance(saved, int | float):
        fits = math.isfinite(saved) or not math.isfinite(own)
    if not fits:
        raise InputError(f"{where} is {shown(saved)}, which does not fit this run; resume from another state")
    keys = saved if isinstance(own, dict) else range(len(own)) if isinstance(own, list | tuple) else ()
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
    names = moment_names(optimizer)
    for number, parameter in zip(numbers, trained_parameters(optimizer), strict=True):
        if moments[number] and names and set(moments[number]) != names:
            raise InputError(
                f"--resume: in '{file}' parameter {number} has {shortened(sorted(map(str, moments[number])))} and not "
                f"{shortened(sorted(names))}; resume from another state"
            )
        for name, value in moments[number].items():
            _check_moment(name, value, parameter, f"--resume: in '{file}' {name} of parameter {number}")


def moment_names(optimizer: Any) -> set[str]:
    """What one of torch's own optimizers keeps for each parameter, shown by a step of another one of its kind.

    Empty for other packages', which may keep different things for different parameters.
    """
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if not type(inner).__module__.startswith("torch.optim."):
        return set()
    group = {name: value for name, value in inner.param_groups[0].items() if name in inner.defaults}
    trial = nn.Parameter(torch.zeros(2, 2))
    trial.grad = torch.zeros(2, 2)
    known = inspect.signature(type(inner)).parameters
    twin = type(inner)([trial], **{name: value for name, value in group.items() if name in known and name != "fused"})
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
