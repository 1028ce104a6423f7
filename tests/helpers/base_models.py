"""Rules of a base model and its weights against those that were written."""

import dataclasses
from pathlib import Path

import torch

from library.diffusion.model_files import ModelRules
from library.options.declarations import Config
from library.rules import pick


def assert_same_weights(model, parts) -> None:
    """Bit for bit."""
    for opened, made in zip((model.unet, model.vae, model.text_encoder), parts, strict=True):
        ours, theirs = opened.state_dict(), made.state_dict()
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rules(path: Path | str, **changed: object) -> ModelRules:
    """kohya's defaults, but for the path and what is given."""
    options = {"pretrained_model_name_or_path": str(path), **changed}
    return pick(dataclasses.replace(Config(), **options), ModelRules)
