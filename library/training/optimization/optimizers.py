"""Optimizers by kohya's names, by torch.optim's, or by a dotted path; optional packages are imported on use."""

import inspect
import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from library.errors import InputError, did_you_mean
from library.named_code import NotImportedError, Wanted, imported
from library.training.optimization.literals import literal_arguments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OptimizerRules:
    """The optimizer and its arguments; the learning rates come with the parameter groups."""

    optimizer_type: str
    optimizer_args: list[str]
    max_grad_norm: float
    dry_run: bool  # imports only the optimizers of KNOWN and torch.optim


class Known(NamedTuple):
    """Where an optimizer of kohya's list is found."""

    path: str
    package: str = ""  # on PyPI; empty: a requirement of the suite
    arguments: dict[str, Any] = {}  # kohya's defaults
    only_cuda: bool = False
    adapts: str = ""  # finds its step size itself; "one": refuses different rates, "first": uses the first group's


_BITSANDBYTES, _DADAPT = "bitsandbytes", "dadaptation"
KNOWN = {
    "AdamW": Known("torch.optim.AdamW", arguments={"fused": True}),
    "AdamW8bit": Known("bitsandbytes.optim.AdamW8bit", _BITSANDBYTES, only_cuda=True),
    "PagedAdamW": Known("bitsandbytes.optim.PagedAdamW", _BITSANDBYTES, only_cuda=True),
    "PagedAdamW8bit": Known("bitsandbytes.optim.PagedAdamW8bit", _BITSANDBYTES, only_cuda=True),
    "PagedAdamW32bit": Known("bitsandbytes.optim.PagedAdamW32bit", _BITSANDBYTES, only_cuda=True),
    "Lion": Known("lion_pytorch.Lion", "lion-pytorch"),
    "Lion8bit": Known("bitsandbytes.optim.Lion8bit", _BITSANDBYTES, only_cuda=True),
    "PagedLion8bit": Known("bitsandbytes.optim.PagedLion8bit", _BITSANDBYTES, only_cuda=True),
    "SGDNesterov": Known("torch.optim.SGD", arguments={"nesterov": True, "momentum": 0.9}),
    "SGDNesterov8bit": Known(
        "bitsandbytes.optim.SGD8bit", _BITSANDBYTES, {"nesterov": True, "momentum": 0.9}, only_cuda=True
    ),
    "DAdaptation": Known("dadaptation.experimental.DAdaptAdamPreprint", _DADAPT, adapts="one"),
    "DAdaptAdamPreprint": Known("dadaptation.experimental.DAdaptAdamPreprint", _DADAPT, adapts="one"),
    "DAdaptAdam": Known("dadaptation.DAdaptAdam", _DADAPT, adapts="one"),
    "DAdaptAdaGrad": Known("dadaptation.DAdaptAdaGrad", _DADAPT, adapts="first"),
    "DAdaptAdan": Known("dadaptation.DAdaptAdan", _DADAPT, adapts="first"),
    "DAdaptAdanIP": Known("dadaptation.experimental.DAdaptAdanIP", _DADAPT, adapts="first"),
    "DAdaptLion": Known("dadaptation.DAdaptLion", _DADAPT, adapts="one"),
    "DAdaptSGD": Known("dadaptation.DAdaptSGD", _DADAPT, adapts="one"),
    "Prodigy": Known("prodigyopt.Prodigy", "prodigyopt", adapts="one"),
    "AdaFactor": Known("transformers.optimization.Adafactor"),
    "RAdamScheduleFree": Known("schedulefree.RAdamScheduleFree", "schedulefree"),
    "AdamWScheduleFree": Known("schedulefree.AdamWScheduleFree", "schedulefree"),
    "SGDScheduleFree": Known("schedulefree.SGDScheduleFree", "schedulefree"),
}
NOT_FOR_LORA = {
    "LBFGS": "it evaluates the loss several times in a step",
    "SparseAdam": "it takes only sparse gradients",
    "Optimizer": "it is the base class",
}


def build_optimizer(network: nn.Module, groups: list[dict[str, Any]], rules: OptimizerRules) -> torch.optim.Optimizer:
    """The optimizer over parameter groups that carry their learning rates; other parameters are frozen.

    Args:
        network: the groups hold its parameters.

    Raises:
        InputError: nothing to train, an unknown name or argument, a missing package, an optimizer that needs CUDA.
    """
    if not groups:
        raise InputError("nothing would be trained, since every learning rate is 0; set unet_lr or text_encoder_lr")
    name, known, kind, arguments = check_optimizer(rules)
    if name == "AdaFactor":
        groups, arguments = _for_adafactor(groups, arguments, rules.max_grad_norm)
    if known.adapts:
        _check_rates(name, known, groups)
    try:
        optimizer = kind(groups, **arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"optimizer_type {name} does not take these weights and optimizer_args: {error}") from error
    kept = {id(parameter) for parameter in trained_parameters(optimizer)}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()  # a schedule-free one evaluates at other weights than it trains
    return optimizer


def check_optimizer(rules: OptimizerRules) -> tuple[str, Known, Any, dict[str, Any]]:
    """Name, location, class and arguments of the optimizer, as far as they can be checked without a network.

    Raises:
        InputError: an unknown name or argument, a missing package, an optimizer that needs CUDA.
    """
    name, known = find_optimizer(rules.optimizer_type)
    kind = _import(name, known, rules.dry_run)
    if kind is None:  # --dry_run does not import it; a stand-in, so that the rest of the plan can be checked
        literal_arguments(rules.optimizer_args, "optimizer_args")
        return name, known, torch.optim.AdamW, {}
    arguments = {**known.arguments, **literal_arguments(rules.optimizer_args, "optimizer_args")}
    _check_arguments(name, kind, arguments)
    return name, known, kind, arguments


def find_optimizer(optimizer_type: str) -> tuple[str, Known]:
    """The name in its usual spelling, and the class's location; kohya's names in upper or lower case.

    Raises:
        InputError: an unknown name, with a similar one; a torch optimizer that cannot train a LoRA.
    """
    wanted = optimizer_type or "AdamW"
    names = {name.lower(): name for name in KNOWN}
    if wanted.lower() in names:
        return names[wanted.lower()], KNOWN[names[wanted.lower()]]
    if wanted in NOT_FOR_LORA:
        raise InputError(f'optimizer_type {wanted} cannot train a LoRA: {NOT_FOR_LORA[wanted]}; use "AdamW"')
    if "." in wanted:
        return wanted, Known(wanted)
    if inspect.isclass(kind := getattr(torch.optim, wanted, None)) and issubclass(kind, torch.optim.Optimizer):
        return wanted, Known(f"torch.optim.{wanted}")
    hint = did_you_mean(wanted, [*KNOWN, *(name for name in dir(torch.optim) if name[0].isupper())])
    raise InputError(
        f"optimizer_type '{wanted}' is neither in kohya's list nor a class of torch.optim{hint}; give a class of "
        "another package by its dotted path, e.g. came_pytorch.CAME"
    )


def _import(name: str, known: Known, dry_run: bool) -> Any:
    """The class; None if --dry_run does not import its module."""
    if known.only_cuda and not torch.cuda.is_available():
        raise InputError(
            f'optimizer_type {name} needs a CUDA GPU, which this machine does not have; use "AdamW" or "Lion"'
        )
    path, _, kind = known.path.rpartition(".")
    try:
        module = imported(Wanted("optimizer_type", name, path, dry_run))
    except (ImportError, RuntimeError, OSError, ValueError, NotImportedError) as error:
        if known.package:
            raise InputError(
                f"optimizer_type {name} needs the package {known.package} ({error}): pip install {known.package}, or "
                'use "AdamW"'
            ) from error
        if isinstance(error, NotImportedError):
            raise
        raise InputError(f'optimizer_type {name}: {path} cannot be imported ({error}); use "AdamW"') from error
    if module is None:
        return None
    found = getattr(module, kind, None)
    if found is None:
        raise InputError(f"optimizer_type '{name}': {path} has no class {kind}")
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        raise InputError(f"optimizer_type '{name}' is not a subclass of torch.optim.Optimizer")
    return found


def _check_arguments(name: str, kind: Any, arguments: dict[str, Any]) -> None:
    """Refuse arguments that the class does not have; parameters and rates come with the groups."""
    known = inspect.signature(kind).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for argument in arguments:
        if argument not in known or argument == "params":
            raise InputError(f"optimizer_args: {name} has no '{argument}'{did_you_mean(argument, known)}")


def _for_adafactor(
    groups: list[dict[str, Any]], arguments: dict[str, Any], max_grad_norm: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """kohya's rule: relative_step is on unless it is switched off, and finds the rate; warmup_init needs it."""
    relative = arguments.get("relative_step", True)
    if arguments.get("warmup_init", False) and not relative:
        logger.warning("AdaFactor: warmup_init = True turns relative_step on")
        relative = True
    if not relative:
        if max_grad_norm > 0:
            logger.warning(
                "AdaFactor clips gradients itself; max_grad_norm = 0 is usual with it, got %g", max_grad_norm
            )
        return groups, {**arguments, "relative_step": False}
    logger.warning(
        "AdaFactor with relative_step finds its own rate; learning_rate, unet_lr and text_encoder_lr have no effect"
    )
    plain = [{name: value for name, value in group.items() if name != "lr"} for group in groups]
    return plain, {**arguments, "relative_step": True, "lr": None}


def _check_rates(name: str, known: Known, groups: list[dict[str, Any]]) -> None:
    """kohya's two checks of optimizers that find their step size: the rate is near 1 and the same for all groups."""
    rates = sorted({group["lr"] for group in groups if "lr" in group})
    if len(rates) > 1 and known.adapts == "one":
        raise InputError(
            f"optimizer_type {name} takes one learning rate for everything, got {rates}; "
            "set unet_lr and text_encoder_lr to the same value (without loraplus ratios), or one of them to 0"
        )
    if len(rates) > 1:
        logger.warning(
            "%s uses only one of the learning rates %s, that of the first group: %g", name, rates, groups[0]["lr"]
        )
    if rates and rates[0] <= 0.1:
        logger.warning(
            "%s finds its own step size and multiplies it by the learning rate, usually 1.0; %g is low", name, rates[0]
        )


def trained_parameters(optimizer: Any) -> list[nn.Parameter]:
    """The parameters of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def trained_numbers(optimizer: Any) -> int:
    """How many numbers an optimizer trains."""
    return sum(parameter.numel() for parameter in trained_parameters(optimizer))


def gradient_norm(parameters: list[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale the gradients down to ``max_norm`` (0 = never); returns their norm [] before."""
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))
