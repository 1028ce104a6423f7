"""From the four sides and an open model to encoded pictures in memory."""

from collections.abc import Sequence
from pathlib import Path

import torch

from library.data.batches import Pictures
from library.data.examples import Example
from library.data.latents import Moments, encoded_moments
from library.data.split import Split
from library.diffusion.encoding import posterior_encoder
from library.diffusion.model_files import LatentDiffusion
from library.diffusion.text import tokenize
from library.seeding import stream


def encode_pictures(
    split: Split,
    sizes: Sequence[tuple[int, int]],
    model: LatentDiffusion,
    *,
    max_token_length: int,
    vae_batch_size: int,
    cache_dir: str | None,
    cache_latents_mode: str,
    shuffle_caption: bool,
    keep_tokens: int,
    caption_separator: str,
    seed: int,
) -> Pictures:
    """Encode once what training looks at; rows follow ``split.in_order()``, whose end, non-members-test, is left out.

    Args:
        sizes: training size (width, height) of each picture of the split, in that order.
        cache_dir: folder for latents on disk; None keeps them in memory.
        cache_latents_mode: "moments" draws from the posterior at each use, "sample" once for the run, "mean" never.
    """
    count = split.used_in_training()
    examples: list[Example] = split.in_order()[:count]
    moments = encoded_moments(
        examples,
        sizes[:count],
        posterior_encoder(model.vae),
        vae_fingerprint=f"{model.fingerprint} {model.vae.dtype}",
        batch_size=vae_batch_size,
        cache_dir=Path(cache_dir) if cache_dir else None,
    )
    return Pictures(
        examples,
        [_kept(example, moment, cache_latents_mode, seed) for example, moment in zip(examples, moments, strict=True)],
        [side.startswith("members") for side in split.sides_in_order()[:count]],
        lambda captions: tokenize(model.tokenizer, captions, max_token_length),
        shuffle_caption=shuffle_caption,
        keep_tokens=keep_tokens,
        caption_separator=caption_separator,
        seed=seed,
    )


def _kept(example: Example, moments: Moments, mode: str, seed: int) -> Moments:
    """The moments as the mode wants them: without spread, the later draws change nothing."""
    if mode == "moments":
        return moments
    mean = moments.mean
    if mode == "sample":
        noise = torch.randn(mean.shape, generator=stream(seed, "posterior", example.pixels))
        mean = (mean.float() + moments.std.float() * noise).half()
    return Moments(mean, torch.zeros_like(moments.std))
