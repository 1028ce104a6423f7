"""torch.compile for the UNet's repeated blocks, with a trial pass before the first step."""

import logging
import warnings
from dataclasses import dataclass

import torch

from library.diffusion.conditioning import blank_conditioning
from library.diffusion.model_files import LatentDiffusion

logger = logging.getLogger(__name__)
MOST_VARIANTS = 64  # of one block: a UNet level, with and without gradient, LoRA in training or not, by picture shape


@dataclass(frozen=True)
class CompileRules:
    """Whether the UNet is compiled, and with which backend; the fields are options."""

    torch_compile: bool
    dynamo_backend: str


def compile_unet(model: LatentDiffusion, rules: CompileRules, size: tuple[int, int]) -> bool:
    """Compile each transformer block with the network in it; if that fails, the run continues without compilation.

    Args:
        model: prepared, with its network injected.
        size: training size (width, height) in pixels of the trial pass.

    Returns:
        Whether the blocks are compiled.
    """
    if not rules.torch_compile:
        return False
    unet = model.unet
    # Dynamo reads .grad of a block's inputs, and torch warns about that for a tensor that is not a leaf
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    try:
        unet.compile_repeated_blocks(backend=rules.dynamo_backend)
        _trial(model, size)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError, OSError, ValueError, TypeError, AttributeError) as error:  # by backend
        for module in unet.modules():
            module._compiled_call_impl = None
        torch._dynamo.reset()
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        logger.warning(
            "torch_compile: backend %s failed, the run continues without compilation: %s", rules.dynamo_backend, reason
        )
        return False
    torch._dynamo.config.suppress_errors = True  # a later shape that fails runs uncompiled, and dynamo logs it
    return True


def _trial(model: LatentDiffusion, size: tuple[int, int]) -> None:
    """One forward and backward pass that changes neither gradients nor random streams."""
    unet = model.unet
    with torch.random.fork_rng(devices=[unet.device] if unet.device.type == "cuda" else []):
        latents = torch.zeros(1, *model.latent_shape(size), device=unet.device, dtype=unet.dtype, requires_grad=True)
        context = blank_conditioning(unet.config, device=unet.device, dtype=unet.dtype)
        with torch.autocast(unet.device.type, unet.dtype, enabled=unet.dtype != torch.float32):
            timesteps = torch.zeros(1, dtype=torch.long, device=unet.device)
            prediction = context.predicted(unet, latents, timesteps)
        torch.autograd.grad(prediction.float().sum(), latents)
