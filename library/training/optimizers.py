"""Optimizers and learning-rate courses by kohya's names."""

import ast
import inspect
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn

from library.check import InputError, did_you_mean


def optimizer_arguments(pairs: list[str]) -> dict[str, Any]:
    """``["weight_decay=0.01", "betas=0.9,0.99"]`` -> keyword arguments; values are Python literals.

    Raises:
        InputError: a pair that is no key=value, or a value that is no literal.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        try:
            if not equals:
                raise ValueError
            arguments[name.strip()] = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise InputError(
                f"optimizer_args: '{pair}' is no key=value with a number, e.g. weight_decay=0.01"
            ) from error
    return arguments


def build_optimizer(groups: list[dict[str, Any]], optimizer_type: str, pairs: list[str]) -> torch.optim.Optimizer:
    """AdamW (fused) or bitsandbytes' AdamW8bit over parameter groups that carry their learning rates.

    Raises:
        InputError: nothing to train, unknown arguments, or 8 bit without bitsandbytes and CUDA.
    """
    if not groups:
        raise InputError("nothing would be trained: every learning rate is 0; set unet_lr or text_encoder_lr")
    arguments = optimizer_arguments(pairs)
    kind: Any = torch.optim.AdamW if optimizer_type == "AdamW" else _adamw_8bit()
    known = inspect.signature(kind).parameters
    unknown = [name for name in arguments if name not in known]
    if unknown:
        raise InputError(f"optimizer_args: {optimizer_type} has no '{unknown[0]}'{did_you_mean(unknown[0], known)}")
    if optimizer_type == "AdamW":
        arguments.setdefault("fused", True)
    return kind(groups, **arguments)


def _adamw_8bit() -> Any:
    if not torch.cuda.is_available():
        raise InputError('optimizer_type AdamW8bit needs a CUDA GPU; use optimizer_type = "AdamW"')
    try:
        from bitsandbytes.optim import AdamW8bit
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            f"optimizer_type AdamW8bit needs bitsandbytes ({error}); pip install bitsandbytes, or use "
            'optimizer_type = "AdamW"'
        ) from error
    return AdamW8bit


def build_schedule(
    optimizer: torch.optim.Optimizer, name: str, *, warmup: float, total_steps: int, cycles: int, power: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """The course of the learning rate.

    Args:
        warmup: optimizer steps; below 1 a share of the run.
        total_steps: optimizer steps of the whole run.
    """
    steps = round(warmup * total_steps) if warmup < 1 else round(warmup)
    if steps >= total_steps and steps > 0:
        raise InputError(f"lr_warmup_steps {steps} leaves nothing of the run's {total_steps} steps")
    return get_scheduler(
        name, optimizer, num_warmup_steps=steps, num_training_steps=total_steps, num_cycles=cycles, power=power
    )


def trained_parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """What an optimizer moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def gradient_norm(parameters: list[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Norm [] of the gradients before they are scaled down to ``max_norm`` (0 = never scaled down)."""
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf"))
