"""Gap stopping of many LoRAs: each ends before it knows its own pictures better than a stranger's by more than a limit.

The gap is the fall of the denoising loss on a LoRA's own pictures less that on public pictures of other persons of the
same law, both under its own caption. It therefore grows with what is learnt of the person as well as with what is
learnt by heart of the pictures: held-out pictures of the person himself would tell these two apart, and are not used,
since whoever has but a few pictures trains on all of them.
"""

import torch
from torch import Tensor

from library.audit.reconstruction.shadow_corpus import Corpus
from library.audit.reconstruction.stacked_lora import Factors, StackedModel, joined
from library.errors import InputError
from library.seeding import stream

TIMESTEPS = (300, 600)  # of 1000


def stopped_at_gap(
    model: StackedModel, corpus: Corpus, contexts: Tensor, strangers: Tensor, limit: float
) -> tuple[Factors, list[int]]:
    """Of every LoRA the last kept moment before its gap first exceeds a limit; the first one where it always does.

    Args:
        contexts: [P, T, D] text states of each LoRA's own caption.
        strangers: [M, 4, h, w] public pictures of persons who are none of the corpus.
        limit: largest gap, as a share of the base's loss.

    Returns:
        The factors, and [P] the steps that each was trained.

    Raises:
        InputError: a limit of 0 or less, which no LoRA that has learnt anything meets.
    """
    if limit <= 0:
        raise InputError(f"the gap at which a LoRA stops must be above 0, got {limit:g}")
    steps = []
    for number, own in enumerate(corpus.persons.latents):
        moments = {step: factors.rows([number]) for step, factors in sorted(corpus.at.items())}
        chance = stream(corpus.recipe.seed, "gap checks", corpus.persons.names[number])
        steps.append(_last_before(model, moments, own, strangers, contexts[number], limit, chance))
    rows = [corpus.at[step].rows([number]) for number, step in enumerate(steps)]
    return joined(rows), steps


@torch.no_grad()
def _last_before(  # noqa: PLR0913  one LoRA's course and what it is asked
    model: StackedModel,
    moments: dict[int, Factors],
    own: Tensor,
    strangers: Tensor,
    context: Tensor,
    limit: float,
    chance: torch.Generator,
) -> int:
    """Steps of the last moment before the gap exceeds the limit, looked at in the order of the training."""
    clean = torch.cat([own, strangers]).repeat_interleave(len(TIMESTEPS), 0)
    timesteps = _timesteps(model, len(own) + len(strangers))
    noise = torch.randn(clean.shape, generator=chance)
    noised, contexts = model.noised(clean, noise, timesteps), context[None].expand(len(clean), -1, -1)

    def losses(factors: Factors | None) -> list[Tensor]:
        """Mean loss [] on the own pictures and on those of strangers."""
        errors = (model.predict(factors, noised, timesteps, contexts).cpu() - noise) ** 2
        return [part.mean() for part in errors.split([len(TIMESTEPS) * len(own), len(TIMESTEPS) * len(strangers)])]

    base, kept = losses(None), next(iter(moments))
    for step, factors in moments.items():
        falls = [
            1 - on / off
            for on, off in zip(losses(factors.changed(lambda value: value.to(model.device))), base, strict=True)
        ]
        if float(falls[0] - falls[1]) > limit:
            break
        kept = step
    return kept


def _timesteps(model: StackedModel, pictures: int) -> Tensor:
    """[pictures * T] in the base's own count."""
    total = len(model.alphas_cumprod)
    return torch.tensor([round(t * total / 1000) for t in TIMESTEPS]).repeat(pictures)
