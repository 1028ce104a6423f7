"""From the rows of a run and an open model to pictures that batches are drawn from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from library.data.batches import Pictures, Tokenize
from library.data.captions import plain_caption
from library.data.examples import Example
from library.data.latent_source import CachedLatents, FreshLatents, LatentSource
from library.data.latents import Moments, View, encoded_views
from library.data.training_set import TrainingSet
from library.diffusion.model_files import LatentDiffusion
from library.diffusion.text import read_captions, token_counts
from library.diffusion.vae import posterior_encoder
from library.seeding import StreamKey, stream

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodingRules:
    """How pictures and captions become latents and tokens; the fields are options."""

    cache_latents: bool
    cache_latents_mode: str
    cache_latents_to_disk: bool
    rebuild_cache: bool
    cache_dir: str
    vae_batch_size: int
    max_token_length: int
    weighted_captions: bool


@dataclass(frozen=True)
class CaptionLengthRules:
    """How captions become tokens; the fields are options."""

    max_token_length: int
    weighted_captions: bool


def encode_pictures(
    training_set: TrainingSet,
    model: LatentDiffusion,
    rules: EncodingRules,
    *,
    steps_per_epoch: int,
    total_steps: int,
    key: StreamKey,
) -> Pictures:
    """Make the rows of a run ready for batches: latents once and for all, or the VAE at hand for every use.

    Args:
        steps_per_epoch, total_steps: of the run, for captions that change with its course.
    """
    return Pictures(
        training_set,
        _latent_source(training_set, model, rules, key),
        _tokenizer(model, rules),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        key=key,
    )


def _latent_source(
    training_set: TrainingSet, model: LatentDiffusion, rules: EncodingRules, key: StreamKey
) -> LatentSource:
    """Latents in memory, or fresh ones at each use."""
    encode, rows = posterior_encoder(model.vae), list(zip(training_set.examples, training_set.sizes, strict=True))

    def keep(example: Example, moments: Moments, mirrored: bool) -> Moments:
        return kept_moments(example, moments, mirrored, rules.cache_latents_mode, key)

    if not rules.cache_latents:
        shapes = [model.latent_shape(size) for size in training_set.sizes]
        return FreshLatents(training_set.examples, training_set.sizes, shapes, encode, keep, rules.vae_batch_size)
    mirrored = [row for row, example in enumerate(training_set.examples) if example.subset.looks.flip_aug]
    views = [View(example, size, False) for example, size in rows] + [View(*rows[row], True) for row in mirrored]
    moments = encoded_views(
        views,
        encode,
        vae_fingerprint=f"{model.fingerprint} {model.vae.dtype}",
        batch_size=rules.vae_batch_size,
        cache_dir=Path(rules.cache_dir) if rules.cache_latents_to_disk else None,
        rebuild=rules.rebuild_cache,
    )
    kept = [keep(view.example, one, view.mirrored) for view, one in zip(views, moments, strict=True)]
    turned = dict(zip(mirrored, kept[len(rows) :], strict=True))
    return CachedLatents(
        training_set.examples, training_set.sizes, kept[: len(rows)], [turned.get(row) for row in range(len(rows))]
    )


def warn_of_cut_captions(examples: Sequence[Example], tokenizer: Any, rules: CaptionLengthRules) -> None:
    """Log how many captions are longer than the model will read, once; a picture of several datasets counts once."""
    captions = {one.pixels: plain_caption(one.caption, one.subset.captions) for one in examples}
    counts = token_counts(tokenizer, list(captions.values()), weighted=rules.weighted_captions)
    cut = sum(count > rules.max_token_length for count in counts)
    if cut:
        way_out = "" if rules.max_token_length == 225 else "; max_token_length reads more (75, 150 or 225)"
        logger.warning(
            "%d of %d captions are longer than %d tokens and are cut%s",
            cut,
            len(counts),
            rules.max_token_length,
            way_out,
        )


def kept_moments(example: Example, moments: Moments, mirrored: bool, mode: str, key: StreamKey) -> Moments:
    """The moments as the mode wants them: without spread, the later draws change nothing.

    Args:
        mode: "moments" draws from the posterior at each use, "sample" keeps one draw, "mean" draws nothing.
    """
    if mode == "moments":
        return moments
    mean = moments.mean
    if mode == "sample":
        words = ("mirrored",) if mirrored else ()
        noise = torch.randn(mean.shape, generator=stream(key, "posterior", example.pixels, *words))
        mean = (mean.float() + moments.std.float() * noise).half()
    return Moments(mean, torch.zeros_like(moments.std))


def _tokenizer(model: LatentDiffusion, rules: EncodingRules) -> Tokenize:
    """Captions to tokens, with weights where captions are written with them."""
    weighted = rules.weighted_captions
    return lambda captions: read_captions(model.tokenizer, captions, rules.max_token_length, weighted=weighted)
