"""The training of many LoRAs at once: each has its own batches, its own clipping and, if asked, its own privacy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.reconstruction.stacked_lora import Factors, StackedModel
from library.seeding import stream

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW


@dataclass(frozen=True)
class StepRecipe:
    """One step of every LoRA of the stack."""

    learning_rate: float
    weight_decay: float
    clip: float  # largest norm of one LoRA's gradient; with privacy that of one picture's gradient
    batch: int  # pictures; with privacy the expected number
    noise_multiplier: float = 0.0  # above 0: DP-SGD (arXiv 1607.00133) with Poisson sampling


@dataclass(frozen=True)
class Batch:
    """What one step saw: M = K * b rows, LoRA by LoRA; with privacy their numbers differ."""

    owner: Tensor  # [M] which LoRA a row belongs to
    latents: Tensor  # [M, 4, h, w] clean
    noise: Tensor  # [M, 4, h, w]
    timesteps: Tensor  # [M]


OnStep = Callable[[int, Factors, Batch], None]
Objective = Callable[[int, Factors, Batch], Tensor]  # (step, LoRAs with gradient, batch) -> [K] what each one minimises


def train_stack(  # noqa: PLR0913  all that a training is
    model: StackedModel,
    start: Factors,
    latents: Tensor,
    contexts: Tensor,
    steps: int,
    recipe: StepRecipe,
    keys: Sequence[str],
    *,
    seed: int,
    snapshots: Sequence[int] = (),
    on_step: OnStep | None = None,
    objective: Objective | None = None,
) -> dict[int, Factors]:
    """Train K LoRAs for ``steps`` steps; LoRA k is the same whoever stands beside it.

    Args:
        start: K untrained LoRAs; they are not changed.
        latents: [K, n, 4, h, w] scaled, each LoRA's own pictures.
        contexts: [K, T, D] text states of each LoRA's own caption.
        keys: [K] names; every draw of LoRA k depends on its name, the seed and the step alone.
        snapshots: steps after which the factors are kept; the last step always is.
        on_step: called after every step with (steps done, the factors without a gradient, the batch); nothing that it
            does can reach the LoRAs.
        objective: in place of the mean squared error; DP-SGD, which needs it picture by picture, has none.

    Returns:
        Factors on the CPU by the number of steps done.
    """
    device = model.device
    if objective is not None and recipe.noise_multiplier:
        raise ValueError("DP-SGD clips the gradients of single pictures, and this objective is of a whole batch")
    factors = start.changed(lambda value: value.detach().to(device).clone().requires_grad_())
    optimizer = torch.optim.AdamW(
        factors.tensors(), lr=recipe.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=recipe.weight_decay
    )
    kept: dict[int, Factors] = {}
    for step in range(1, steps + 1):
        batch = drawn_batch(latents, len(model.alphas_cumprod), recipe, keys, seed, step)
        if recipe.noise_multiplier:
            chances = [stream(seed, "shadow noise", key, step) for key in keys]
            gradients = private_gradients(model, factors, batch, contexts, recipe, chances)
        else:
            if objective is None:
                losses = mean_losses(squared_errors(model, factors, batch, contexts), factors.count)
            else:
                losses = objective(step, factors, batch)
            gradients = clipped_gradients(losses, factors, recipe.clip)
        for value, gradient in zip(factors.tensors(), gradients, strict=True):
            value.grad = gradient
        optimizer.step()
        if step in snapshots or step == steps:
            kept[step] = factors.copied()
        if on_step is not None:
            on_step(step, factors.changed(lambda value: value.detach().clone()), batch)
    return kept


def drawn_batch(
    latents: Tensor, timestep_count: int, recipe: StepRecipe, keys: Sequence[str], seed: int, step: int
) -> Batch:
    """The pictures, noise and timesteps of one step, drawn for each LoRA from a stream of its own.

    Without privacy a LoRA goes through its n pictures in a new order each epoch, ``batch`` at a time; with privacy
    every picture enters by a coin of its own with probability batch / n.
    """
    owners, rows, noises, times = [], [], [], []
    for number, key in enumerate(keys):
        chosen = _pictures_of(latents.shape[1], recipe, key, seed, step)
        chance = stream(seed, "shadow batches", key, step)
        noises.append(torch.randn(len(chosen), *latents.shape[2:], generator=chance))
        times.append(torch.randint(0, timestep_count, (len(chosen),), generator=chance))
        rows.append(latents[number, chosen])
        owners += [number] * len(chosen)
    return Batch(torch.tensor(owners, dtype=torch.long), torch.cat(rows), torch.cat(noises), torch.cat(times))


def _pictures_of(count: int, recipe: StepRecipe, key: str, seed: int, step: int) -> list[int]:
    """Indices of one LoRA's pictures in one step (steps count from 1)."""
    if recipe.noise_multiplier:
        coins = torch.rand(count, generator=stream(seed, "shadow coins", key, step)).tolist()
        return [index for index, coin in enumerate(coins) if coin < recipe.batch / count]
    first = (step - 1) * recipe.batch
    chosen = []
    for place in range(first, first + recipe.batch):
        epoch, within = divmod(place, count)
        chosen.append(int(torch.randperm(count, generator=stream(seed, "shadow order", key, epoch))[within]))
    return chosen


def squared_errors(model: StackedModel, factors: Factors | None, batch: Batch, contexts: Tensor) -> Tensor:
    """[M, 4, h, w] of the noise prediction; ``factors`` are one LoRA a row, or K stacks of b; None is the base."""
    noisy = model.noised(batch.latents, batch.noise, batch.timesteps)
    answer = model.predict(factors, noisy, batch.timesteps, contexts[batch.owner])
    return (answer - batch.noise.to(answer.device)) ** 2


def losses_of(model: StackedModel, factors: Factors, batch: Batch, contexts: Tensor) -> Tensor:
    """[M] mean squared error of every row."""
    return squared_errors(model, factors, batch, contexts).flatten(1).mean(1)


def mean_losses(errors: Tensor, count: int) -> Tensor:
    """[K] mean of squared errors [M, 4, h, w] over the pictures of each of ``count`` LoRAs, equally many each."""
    return errors.flatten(1).mean(1).reshape(count, -1).mean(1)


def clipped_gradients(losses: Tensor, factors: Factors, clip: float) -> list[Tensor]:
    """Gradients of losses [K] of one LoRA each, clipped for every LoRA on its own."""
    gradients = torch.autograd.grad(losses.sum(), factors.tensors())
    norms = _norms(gradients)  # [K]
    shrink = (clip / norms.clamp(min=1e-12)).clamp(max=1.0)
    return [gradient * _beside(shrink, gradient) for gradient in gradients]


def private_gradients(
    model: StackedModel,
    factors: Factors,
    batch: Batch,
    contexts: Tensor,
    recipe: StepRecipe,
    chances: Sequence[torch.Generator],
) -> list[Tensor]:
    """DP-SGD: every picture's own gradient is clipped, their sum gets noise, and is divided by the expected batch.

    Each row of the batch has a copy of its LoRA, so one backward pass gives exact gradients of single pictures.

    Args:
        chances: each LoRA's stream of noise.
    """
    device = model.device
    sums = [torch.zeros_like(value) for value in factors.tensors()]
    if len(batch.owner):
        copies = factors.rows(batch.owner).changed(lambda value: value.detach().requires_grad_())
        loss = losses_of(model, copies, batch, contexts).sum()
        gradients = torch.autograd.grad(loss, copies.tensors())
        norms = _norms(gradients)  # [M]
        shrink = torch.where(norms.isfinite(), (recipe.clip / norms.clamp(min=1e-12)).clamp(max=1.0), 0.0)
        owner = batch.owner.to(device)
        for place, gradient in enumerate(gradients):
            sums[place].index_add_(0, owner, torch.nan_to_num(gradient) * _beside(shrink, gradient))
    deviation = recipe.noise_multiplier * recipe.clip
    noisy = []
    for total in sums:
        noise = torch.stack([torch.randn(total.shape[1:], generator=chance) for chance in chances])
        noisy.append((total + deviation * noise.to(device)) / recipe.batch)
    return noisy


def _norms(gradients: Sequence[Tensor]) -> Tensor:
    """[K] norm over all factors of each LoRA."""
    return torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()


def _beside(shares: Tensor, gradient: Tensor) -> Tensor:
    """[K] as [K, 1, 1]."""
    return shares.reshape(-1, *[1] * (gradient.dim() - 1))
