"""Subsets, examples and pictures for the tests of data: rules from the options' defaults, with changes by name."""

import dataclasses
import io
from pathlib import Path

import torch
from PIL import Image

from library.data.batches import Pictures
from library.data.examples import Example
from library.data.latent_source import CachedLatents
from library.data.latents import Moments
from library.data.picture_sources import pick_rules
from library.data.read_pictures import Sources, read_sources
from library.data.subset_rules import AugmentationRules, BucketRules, CaptionRules, Subset
from library.data.training_set import TrainingSet
from library.options.declarations import Config
from library.rules import pick
from tests.helpers.keys import key_of


def config(**changed: object) -> Config:
    """The options' defaults with some changed."""
    return dataclasses.replace(Config(), **changed)  # type: ignore[arg-type]


def read(folder: Path, **changed: object) -> Sources:
    """Read a training folder with some options changed."""
    return read_sources(*pick_rules(config(train_data_dir=str(folder), **changed)))


def caption_rules(**changed: object) -> CaptionRules:
    """Caption rules with some changed."""
    return pick(config(**changed), CaptionRules)


def subset(dataset: int = 0, batch_size: int = 1, alpha_mask: bool = False, **changed: object) -> Subset:
    """The rules of a subset, options by name."""
    values = config(**changed)
    return Subset(
        dataset,
        batch_size,
        pick(values, CaptionRules),
        pick(values, AugmentationRules),
        pick(values, BucketRules),
        alpha_mask,
    )


def example(index: int, group: str = "", pixels: str = "", repeats: int = 1, **rules: object) -> Example:
    """A picture that exists on paper only."""
    identity = pixels or f"{index:064x}"
    return Example(
        path=Path(f"/p/{index}.png"), caption=f"caption {index}", repeats=repeats, group=group or identity, width=16,
        height=16, pixels=identity, brightness_signs=index, subset=subset(**rules), mask=None,  # type: ignore[arg-type]
    )  # fmt: skip


def pictures(
    examples: list[Example],
    uses: list[int],
    members: list[bool],
    *,
    sizes: list[tuple[int, int]] | None = None,
    weights: list[float] | None = None,
    mirrored: bool = False,
    steps_per_epoch: int = 10,
    total_steps: int = 100,
) -> Pictures:
    """Rows without pixels; the latents of row r are r everywhere (-r mirrored), the tokens are the caption's bytes."""
    shapes = [(16, 16)] * len(examples) if sizes is None else sizes
    training_set = TrainingSet(examples, shapes, members, uses, weights or [1.0] * len(examples), "split")
    moments = [
        Moments(
            torch.full((4, size[1] // 2, size[0] // 2), float(row)).half(), torch.zeros(4, size[1] // 2, size[0] // 2)
        )
        for row, size in enumerate(shapes)
    ]
    turned = [Moments(-one.mean, one.std) if mirrored else None for one in moments]
    return Pictures(
        training_set,
        CachedLatents(examples, shapes, moments, turned),
        lambda captions: (byte_tokens(captions), None),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        key=key_of(0),
    )


def byte_tokens(captions: list[str]) -> torch.Tensor:
    """[B, 1, 77] bytes of the captions, cut or padded with 0."""
    rows = [list(caption.encode()[:77]) + [0] * (77 - len(caption.encode())) for caption in captions]
    return torch.tensor(rows)[:, None]


def picture_bytes(index: int, kind: str = "PNG") -> bytes:
    """An encoded picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (index * 20, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(file: Path, count: int = 4, **more: list) -> Path:
    """A parquet file as the hub has them: pictures as bytes, captions, a person."""
    import datasets

    rows = {
        "image": [{"bytes": picture_bytes(index, ["PNG", "JPEG"][index % 2]), "path": None} for index in range(count)],
        "text": [f"walrus {index}" for index in range(count)],
        "person": [index // 2 for index in range(count)],
        **more,
    }
    features = datasets.Features(
        {"image": datasets.Image(), **{name: datasets.Value("string") for name in rows if name != "image"}}
    )
    rows["person"] = [str(value) for value in rows["person"]]
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file))
    return file


def from_dataset(name: object, cache: Path, **changed: object) -> list[Example]:
    """Candidates of a dataset."""
    return read_sources(*pick_rules(config(dataset_name=str(name), cache_dir=str(cache), **changed))).candidates
