"""What a prompt embedding can say on the frozen base at best: one is fitted to each person's own pictures (an oracle).

No attack: it sees the private pictures. If even this says nothing of the person, no encoder can, and its trial is void.
"""

import torch
from torch import Tensor

from library.audit.reconstruction.pictures.samplers import NoisePrediction
from library.progress import counted
from library.seeding import stream


def inverted_embeddings(
    predict: NoisePrediction,
    latents: Tensor,
    start: Tensor,
    alphas_cumprod: Tensor,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
) -> Tensor:
    """[V, T, D] embeddings fitted by the denoising loss, one a person, all at once (textual inversion, 2208.01618).

    Args:
        predict: the frozen base; differentiable in the text states.
        latents: [V, n, C, h, w] each person's pictures.
        start: [T, D] where each embedding begins, for example a class prompt's states.
        learning_rate: of Adam, in the first step; it falls to 0 in a line.
    """
    persons, count = latents.shape[:2]
    embeddings = start.detach().float().repeat(persons, 1, 1).requires_grad_(True)
    optimizer = torch.optim.Adam([embeddings], learning_rate)
    length = int(alphas_cumprod.numel())
    with counted(steps, "fitting embeddings", "steps") as bar:
        for step in range(steps):
            generator = stream(seed, "inversion", step)
            picture = torch.randint(count, (persons,), generator=generator)
            timesteps = torch.randint(length, (persons,), generator=generator)
            noise = torch.randn(latents[:, 0].shape, generator=generator).to(latents.device)
            alpha = alphas_cumprod.to(latents.device)[timesteps][:, None, None, None]
            clean = latents[torch.arange(persons), picture]
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
            error = predict(noisy, timesteps.to(latents.device), embeddings) - noise
            (gradient,) = torch.autograd.grad(error.square().mean((1, 2, 3)).sum(), [embeddings])
            embeddings.grad = gradient
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)  # the last steps average the noise
            optimizer.step()
            bar.update()
    return embeddings.detach()
