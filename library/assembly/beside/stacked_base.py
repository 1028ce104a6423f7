"""The base model as the attack on weights asks it: many LoRAs at once, its text states, and pictures by person."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from library.audit.queries.audited_model import TEXT_STATES
from library.audit.reconstruction.persons import PersonSet, persons_of
from library.audit.reconstruction.prompt_states import packed
from library.audit.reconstruction.stacked_lora import StackedModel, attention_layers
from library.audit.targets.candidates import training_sizes
from library.data.examples import Example
from library.data.latents import encoded_moments
from library.data.read_pictures import pick_rules, read_split_pictures
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.text import read_captions
from library.diffusion.vae import posterior_encoder
from library.errors import InputError


@dataclass(frozen=True)
class StackedBase:
    """A frozen base: asked with stacks of LoRAs, and the way from pictures and captions to its inputs."""

    model: LatentDiffusion
    stack: StackedModel
    encode_text: Callable[[Sequence[str]], Tensor]  # captions -> states [B, T, D], packed
    settings: Mapping[str, Any]  # options of the training: sizes, text states, folders


def stacked_base(
    model: LatentDiffusion, settings: Mapping[str, Any], layers: Mapping[str, nn.Module] | None = None
) -> StackedBase:
    """Wrap an open base.

    Args:
        settings: every option by name, with the training's own values.
        layers: those that a stack may change; None: the query and value projections of every attention.
    """
    clip_skip, length, weighted = (settings[name] for name in TEXT_STATES)

    @torch.no_grad()
    def states_of(captions: Sequence[str]) -> Tensor:
        tokens, weights = read_captions(model.tokenizer, list(captions), length, weighted=weighted)
        return packed(model.family.encode(model.text_encoder, tokens.to(model.unet.device), clip_skip, weights))

    stack = StackedModel(
        model.unet,
        attention_layers(model.unet) if layers is None else layers,
        model.scheduler.alphas_cumprod.float().cpu(),
        model.fingerprint,
        model.predicts_velocity(),
        model.latent_factor(),
    )
    return StackedBase(model, stack, states_of, settings)


def latents_of(base: StackedBase, examples: Sequence[Example], cache_dir: Path) -> list[Tensor]:
    """[4, h, w] posterior mean of every picture, scaled, at its training size."""
    sizes = training_sizes(examples, base.model.side_multiple())
    moments = encoded_moments(
        examples,
        sizes,
        posterior_encoder(base.model.vae),
        vae_fingerprint=f"{base.model.fingerprint} {base.model.vae.dtype}",
        batch_size=8,
        cache_dir=cache_dir,
    )
    scale = float(base.model.vae.config.scaling_factor)
    return [one.mean.float() * scale for one in moments]


def read_persons(base: StackedBase, folder: Path, pictures: int, cache_dir: Path) -> PersonSet:
    """The persons of a kohya folder with groups.json (or a folder a person), ``pictures`` of each.

    Raises:
        InputError: a folder without pictures, or one whose pictures are not grouped.
    """
    own = {"train_data_dir": str(folder), "dataset_config": None, "dataset_name": None, "in_json": None,
           "nonmember_data_dir": None, "conditioning_data_dir": None, "reg_data_dir": None, "strict_captions": False,
           "group_by": None}  # fmt: skip
    examples = read_split_pictures(*pick_rules({**base.settings, **own}))
    if len({example.group for example in examples}) == len(examples):
        raise InputError(
            f"public_data_dir '{folder}' does not say whose its {len(examples)} pictures are; put a groups.json "
            '({"file stem": "person"}) beside the folders of pictures'
        )
    return persons_of(
        latents_of(base, examples, cache_dir),
        [example.group for example in examples],
        [example.pixels for example in examples],
        pictures,
    )
