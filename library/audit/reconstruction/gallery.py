"""The gallery: which candidate set does a LoRA know better than the base does?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.reconstruction.stacked_lora import Factors, StackedModel
from library.progress import counted
from library.seeding import stream

TIMESTEPS = (200, 450, 700)  # of 1000


@dataclass(frozen=True)
class Gallery:
    """N candidate sets, noised once: the same questions for every LoRA."""

    latents: Tensor  # [N, i, 4, h, w] clean
    noise: Tensor  # [N, i, T, 4, h, w]
    timesteps: Tensor  # [T]
    context: Tensor  # [T, D] text states of the class prompt


def open_gallery(model: StackedModel, sets: Tensor, context: Tensor, seed: int, images: int = 2) -> Gallery:
    """The first ``images`` pictures of every candidate set [N, n, 4, h, w], under the class prompt."""
    latents, total = sets[:, :images], len(model.alphas_cumprod)
    timesteps = torch.tensor([round(t * total / 1000) for t in TIMESTEPS])
    noise = torch.randn(*latents.shape[:2], len(timesteps), *latents.shape[2:], generator=stream(seed, "gallery"))
    return Gallery(latents, noise, timesteps, context)


@torch.no_grad()
def gallery_drops(model: StackedModel, factors: Factors, gallery: Gallery, together: int = 10) -> Tensor:
    """[K, N] mean over pictures and timesteps of (L_base - L_LoRA) / L_base; exactly 0 for B = 0."""
    sets, images, times = gallery.noise.shape[:3]
    timesteps = gallery.timesteps.repeat(images)  # [i * T] of one set
    context = gallery.context[None].expand(images * times, -1, -1)
    drops = torch.zeros(factors.count, sets)
    bar = counted(sets * factors.count, "gallery", "answers", silent=sets * factors.count < 100)
    for number in range(sets):
        clean = gallery.latents[number].repeat_interleave(times, 0)  # [i * T, 4, h, w]
        noise = gallery.noise[number].flatten(0, 1)
        noised = model.noised(clean, noise, timesteps)
        base = _losses(model.predict(None, noised, timesteps, context), noise)  # [i * T]
        for first in range(0, factors.count, together):
            end = min(first + together, factors.count)
            some = factors.rows(range(first, end)).changed(lambda value: value.to(model.device))
            rows = end - first
            given = (noised.repeat(rows, 1, 1, 1), timesteps.repeat(rows), context.repeat(rows, 1, 1))
            own = _losses(model.predict(some, *given), noise.repeat(rows, 1, 1, 1)).reshape(rows, -1)
            drops[first:end, number] = ((base - own) / base).mean(1).cpu()
            bar.update(rows)
    bar.close()
    return torch.where(factors.changes_something().cpu()[:, None], drops, 0.0)


def _losses(answer: Tensor, noise: Tensor) -> Tensor:
    """[B] mean squared error."""
    return ((answer - noise.to(answer.device)) ** 2).flatten(1).mean(1)
