"""How long a run will take: a few passes are timed on this machine, before anything is trained."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from library.assembly.game import GameRules
from library.assembly.run import Run
from library.diffusion.conditioning import blank_conditioning
from library.progress import spoken
from library.rules import pick

TIMED = 2  # passes of each kind, after one that makes the buffers
PATIENCE = 3.0  # seconds; a first pass that takes longer is the measure


@dataclass(frozen=True)
class PassTimes:
    """Seconds of one pass of the UNet in this run's size and precision."""

    training: float  # forward and backward, of a whole batch
    asking: float  # forward alone, of one image


def time_forecast(run: Run) -> str:
    """One line: the time of the steps that are left, with validation and previews, and what it rests on."""
    try:
        times = measured(run)
    except torch.OutOfMemoryError:
        return "time: not measured, because one batch does not fit into the GPU's memory now"
    steps, looks, taught = seconds_of_steps(run, times), seconds_of_looks(run, times), seconds_of_teachers(run, times)
    teachers = f"{spoken(taught)} for the teachers, " if taught else ""
    return (
        f"time, from timed passes on this machine: {spoken(steps + looks + taught)} ({teachers}{spoken(steps)} for "
        f"{run.plan.total_steps - run.resumed['done']} steps, {spoken(looks)} for validation and previews; "
        "encoding is not counted)"
    )


def measured(run: Run) -> PassTimes:
    """Time passes on random latents; nothing of the model or the network changes. Raises: torch.OutOfMemoryError."""
    config, model, device = run.config, run.model, run.accelerator.device
    model.prepare(device, full_precision_vae=config.no_half_vae, gradient_checkpointing=config.gradient_checkpointing)
    size, batch = run.training_set.common_size(run.size), run.training_set.largest_batch()
    count = batch if device.type == "cuda" else 1  # a CPU gains nothing from more images at once
    latents = torch.randn(count, *model.latent_shape(size), device=device, dtype=model.unet.dtype)
    context = blank_conditioning(model.unet.config, device=device, dtype=model.unet.dtype).repeated(count)
    timesteps = torch.full((count,), 500, device=device)

    def asked() -> torch.Tensor:
        with run.accelerator.autocast():
            return context.predicted(model.unet, latents, timesteps).float().square().mean()

    def trained() -> None:
        asked().backward()
        run.optimization.optimizer.zero_grad(set_to_none=True)

    training = seconds_of(trained)
    with torch.no_grad():
        asking = seconds_of(asked)
    return PassTimes(training * batch / count, asking / count)


def seconds_of(one_pass: Callable[[], object]) -> float:
    """Seconds of one pass, on average, the GPU's work included."""

    def timed(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            one_pass()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count

    first = timed(1)
    return first if first > PATIENCE else timed(TIMED)


def seconds_of_steps(run: Run, times: PassTimes) -> float:
    """Of all optimizer steps that are left: the LoRA's passes and the attacker's."""
    config, rules, left = run.config, pick(run.config, GameRules), run.plan.total_steps - run.resumed["done"]
    if run.privacy is not None:
        return left * run.privacy.images_per_step() / run.training_set.largest_batch() * times.training
    trained, asked = rules.passes(config.gradient_accumulation_steps * rules.train_batch_size)
    seconds = trained / rules.train_batch_size * times.training + asked * times.asking
    return left * seconds


def seconds_of_teachers(run: Run, times: PassTimes) -> float:
    """Of all teachers of a distillation, as if none were finished and none stopped early; 0 without distillation."""
    plan = run.distillation()
    return 0.0 if plan is None else plan.total_steps() * run.config.gradient_accumulation_steps * times.training


def seconds_of_looks(run: Run, times: PassTimes) -> float:
    """Of validation passes over both aux sides and of previews that are left, those before the first step included."""
    config, plan, done, looks = run.config, run.plan, run.resumed["done"], run.validation()
    left = range(done + 1, plan.total_steps + 1)
    validations = 0 if looks is None else sum(map(looks.is_due, left))
    previews = 1 + sum(plan.is_due(step, config.sample_every_n_epochs, config.sample_every_n_steps) for step in left)
    if not done:
        validations, previews = validations + 1, previews + config.sample_at_first
    asked = 0 if looks is None else validations * (looks.members + looks.non_members) * looks.draws
    asked += previews * sum(2 * prompt.steps for prompt in run.prompts)  # with the prompt and without
    return asked * times.asking
