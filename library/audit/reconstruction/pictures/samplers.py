"""Pictures out of a model: DDIM under a given prompt embedding, along the fine-tuning's direction, from a guess."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from library.audit.queries.audited_model import noised
from library.seeding import stream

# noisy latents [B, C, h, w], timesteps [B], text states [B, T, D] -> noise [B, C, h, w]
NoisePrediction = Callable[[Tensor, Tensor, Tensor], Tensor]
EDIT_FROM = 300  # timestep that a guess is noised to before the model paints it anew (W7)


@dataclass(frozen=True)
class Course:
    """Where deterministic DDIM starts, in how many steps it ends, and how large a clean latent may be."""

    alphas_cumprod: Tensor  # [T] on the CPU
    steps: int
    first: int  # noisiest timestep
    limit: float | None  # bound on the clean latents' size; None on Stable Diffusion

    def __post_init__(self) -> None:
        count = len(self.alphas_cumprod)
        if not 1 <= self.steps <= self.first < count:
            raise ValueError(
                f"a course needs 1 <= steps <= first < {count}, the schedule's length; "
                f"got steps={self.steps}, first={self.first}"
            )

    def timesteps(self) -> list[int]:
        """From the noisiest one down, evenly spread; the step after the last one ends in the clean latent."""
        return [round(self.first * (self.steps - place) / self.steps) for place in range(self.steps)]

    def started_at(self, first: int, steps: int) -> "Course":
        """The same schedule from another timestep on."""
        return Course(self.alphas_cumprod, steps, first, self.limit)


def shared_noise(samples: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """[samples, C, h, w]: the same for every victim and every row, so that rows differ in the model alone."""
    return torch.stack([torch.randn(shape, generator=stream(seed, "sampler noise", one)) for one in range(samples)])


@torch.no_grad()
def ddim(predict: NoisePrediction, start: Tensor, context: Tensor, course: Course) -> Tensor:
    """Clean latents [B, C, h, w] by deterministic DDIM (arXiv 2010.02502 eq. 12, sigma 0).

    Args:
        start: [B, C, h, w] latents as noisy as ``course.first`` says.
        context: [B, T, D] prompt embedding.
    """
    here, timesteps = start, course.timesteps()
    for place, timestep in enumerate(timesteps):
        asked = torch.full((len(here),), timestep, dtype=torch.int64, device=here.device)
        alpha = float(course.alphas_cumprod[timestep])
        alpha_next = float(course.alphas_cumprod[timesteps[place + 1]]) if place + 1 < len(timesteps) else 1.0
        clean = (here - (1 - alpha) ** 0.5 * predict(here, asked, context)) / alpha**0.5
        if course.limit is not None:
            clean = clean.clamp(-course.limit, course.limit)
        noise = (here - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        here = noised(clean, noise, alpha_next)
    return here


def guided(base: NoisePrediction, tuned: NoisePrediction, weight: float) -> NoisePrediction:
    """eps = eps_base + w (eps_tuned - eps_base): from the public model on along the fine-tuning (arXiv 2410.03039).

    w = 0 is the base, w = 1 the tuned model; beyond it what the fine-tuning added is exaggerated.
    """

    def predict(noisy: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        public = base(noisy, timesteps, context)
        return public + weight * (tuned(noisy, timesteps, context) - public)

    return predict


def sampled(predict: NoisePrediction, context: Tensor, noise: Tensor, course: Course) -> Tensor:
    """[V, S, C, h, w] pictures of V victims from the same S starts.

    Args:
        predict: rows come victim by victim: victim v owns rows v * S to v * S + S - 1.
        context: [V, T, D], a prompt embedding for each victim.
        noise: [S, C, h, w], of ``shared_noise``.
    """
    victims, samples = len(context), len(noise)
    start = noise.to(context.device).repeat(victims, 1, 1, 1)  # [V * S, C, h, w]
    found = ddim(predict, start, context.repeat_interleave(samples, dim=0), course)
    return found.unflatten(0, (victims, samples))


def edited(predict: NoisePrediction, guess: Tensor, context: Tensor, noise: Tensor, course: Course) -> Tensor:
    """[V, S, C, h, w] guesses noised to ``course.first`` and painted anew by the victim's model (arXiv 2108.01073).

    Args:
        guess: [V, C, h, w] clean latents, for example those of the nearest public person or a kernel's prediction.
        context, noise: see ``sampled``.
    """
    victims, samples = len(guess), len(noise)
    clean = guess.repeat_interleave(samples, dim=0)
    alpha = float(course.alphas_cumprod[course.first])
    start = noised(clean, noise.to(guess.device).repeat(victims, 1, 1, 1), alpha)
    found = ddim(predict, start, context.repeat_interleave(samples, dim=0), course)
    return found.unflatten(0, (victims, samples))
