"""From options to picture sources: the folder of each subset's pictures, their role, and their rules."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from library.data.dataset_config import SubsetEntry, read_dataset_config
from library.data.folders import no_pictures, picture_folders, pictures_in
from library.data.hub_datasets import DatasetSource, fetch_dataset
from library.data.subset_rules import AugmentationRules, BucketRules, CaptionRules, Subset
from library.errors import Faults, InputError
from library.incoming.files import is_folder
from library.rules import pick

CANDIDATE, OUTSIDER, REGULARISATION = "candidate", "outsider", "regularisation"
NOT_READ = ("train_data_dir", "reg_data_dir", "in_json", "conditioning_data_dir")  # ignored with a dataset_config
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceRules:
    """Where pictures come from, and how their captions, groups and masks are found; the fields are options."""

    train_data_dir: str
    nonmember_data_dir: str | None
    reg_data_dir: str | None
    in_json: str | None
    dataset_repeats: int
    dataset_config: str | None
    dataset_name: str | None
    dataset_config_name: str | None
    dataset_split: str
    image_column: str
    caption_column: str
    group_column: str | None
    flat_data_dir: bool
    caption_extension: str | None
    strict_captions: bool
    group_by: str | None
    masked_loss: bool
    alpha_mask: bool
    conditioning_data_dir: str | None
    skip_image_resolution: str | None
    cache_latents: bool
    cache_dir: str
    train_batch_size: int


@dataclass(frozen=True)
class Part:
    """One picture source: a folder, or a metadata file, of pictures that share their rules."""

    role: str  # candidate, outsider or regularisation
    option_name: str  # the option that names it, for messages
    folder: Path  # of the pictures; names in a metadata file are relative to it
    metadata: Path | None  # file with captions; None: a caption file beside each picture
    repeats: int
    class_words: str  # replace a missing caption
    caption_extension: str | None
    group_root: Path  # may hold groups.json
    masks: Path | None  # folder with one mask for each picture
    subset: Subset
    passed_over: str | None  # skip_image_resolution: pictures of at most this area are not used


def pick_rules(values: Any) -> tuple[SourceRules, CaptionRules, AugmentationRules, BucketRules]:
    """The rules for reading pictures, from the options of a door or a mapping of them."""
    return (
        pick(values, SourceRules),
        pick(values, CaptionRules),
        pick(values, AugmentationRules),
        pick(values, BucketRules),
    )


def find_parts(
    where: SourceRules, captions: CaptionRules, augmentation: AugmentationRules, buckets: BucketRules
) -> list[Part]:
    """Every source of a run, before a picture is opened.

    Raises:
        InputError: folders at the wrong level; all faults of a dataset_config.
    """
    base = Subset(0, where.train_batch_size, captions, augmentation, buckets, where.alpha_mask)
    faults = Faults()
    parts: list[Part] = []
    if where.dataset_config:
        parts += faults.attempt(_configured_parts, where, base) or []
    elif where.dataset_name:
        part = faults.attempt(_dataset_part, where, base)
        parts += [] if part is None else [part]
    elif where.train_data_dir:
        parts += faults.attempt(_folder_parts, where, base) or []
    if where.reg_data_dir and not where.dataset_config:
        folder = Path(where.reg_data_dir)
        parts += faults.attempt(_kohya_parts, where, REGULARISATION, "reg_data_dir", folder, None, base) or []
    if where.nonmember_data_dir:
        for dataset in dict.fromkeys(part.subset.dataset for part in parts) or [0]:
            subset = next((part.subset for part in parts if part.subset.dataset == dataset), base)
            folder = Path(where.nonmember_data_dir)
            parts += faults.attempt(_kohya_parts, where, OUTSIDER, "nonmember_data_dir", folder, None, subset) or []
    faults.raise_if_any()
    return parts


def picture_count(parts: Sequence[Part]) -> int:
    """How many picture files the sources hold, none of them opened; those that a metadata file names count as none."""
    return sum(len(pictures_in(part.folder)) for part in parts if part.metadata is None)


def _folder_parts(where: SourceRules, base: Subset) -> list[Part]:
    """Sources in train_data_dir: its kohya folders, or the folder of in_json."""
    folder = Path(where.train_data_dir)
    masks = Path(where.conditioning_data_dir) if where.conditioning_data_dir else None
    if not where.in_json:
        return _kohya_parts(where, CANDIDATE, "train_data_dir", folder, masks, base)
    if not is_folder(folder):
        raise InputError(f"train_data_dir '{folder}' is not a folder")
    return [
        Part(
            CANDIDATE,
            "in_json",
            folder,
            Path(where.in_json),
            where.dataset_repeats,
            "",
            where.caption_extension,
            folder,
            masks,
            base,
            where.skip_image_resolution,
        )
    ]


def _kohya_parts(
    where: SourceRules, role: str, option_name: str, folder: Path, masks: Path | None, subset: Subset
) -> list[Part]:
    """Sources in a kohya parent folder or a flat folder; only candidates have masks."""
    flat = where.flat_data_dir and role != REGULARISATION
    subset = subset if role == CANDIDATE else replace(subset, alpha_mask=False)
    return [
        Part(
            role,
            option_name,
            child.path,
            None,
            child.repeats,
            child.class_words,
            where.caption_extension,
            folder,
            masks,
            subset,
            where.skip_image_resolution,
        )
        for child in picture_folders(folder, flat, option_name)
    ]


def _dataset_part(where: SourceRules, base: Subset) -> Part:
    """The source of a Hugging Face dataset: files and a metadata file in the cache."""
    source = DatasetSource(
        name=str(where.dataset_name),
        config_name=where.dataset_config_name,
        split=where.dataset_split,
        image_column=where.image_column,
        caption_column=where.caption_column,
        group_column=where.group_column,
    )
    metadata = fetch_dataset(source, Path(where.cache_dir), every_line=base.captions.enable_wildcard)
    masks = Path(where.conditioning_data_dir) if where.conditioning_data_dir else None
    return Part(
        CANDIDATE,
        "dataset_name",
        metadata.parent,
        metadata,
        where.dataset_repeats,
        "",
        None,
        metadata.parent,
        masks,
        base,
        where.skip_image_resolution,
    )


def _configured_parts(where: SourceRules, base: Subset) -> list[Part]:
    """Sources of a dataset_config; values that it does not set come from the command line."""
    file = Path(str(where.dataset_config))
    replaced = [name for name in NOT_READ if getattr(where, name)]
    if replaced:
        logger.warning("%s: not used, since dataset_config names the folders of the pictures", ", ".join(replaced))
    fallback = {
        **vars(base.captions),
        **vars(base.looks),
        **vars(base.buckets),
        "alpha_mask": where.alpha_mask,
        "batch_size": where.train_batch_size,
        "num_repeats": where.dataset_repeats,
        "caption_extension": where.caption_extension,
        "skip_image_resolution": where.skip_image_resolution,
    }
    entries = read_dataset_config(file, fallback)
    faults = Faults()
    for entry in entries:
        _check_entry(entry, where, faults)
    if where.masked_loss and not any(
        entry.values["alpha_mask"] or entry.values.get("conditioning_data_dir") for entry in entries
    ):
        faults.add(
            f"masked_loss is on, but no subset of '{file}' has masks; give a subset conditioning_data_dir or alpha_mask"
        )
    faults.raise_if_any()
    return [_configured_part(entry) for entry in _with_pictures(entries)]


def _with_pictures(entries: list[SubsetEntry]) -> list[SubsetEntry]:
    """The subsets whose folder holds pictures; others are passed over, unless no picture to train on would be left."""
    full = [
        entry for entry in entries if entry.values.get("metadata_file") or pictures_in(Path(entry.values["image_dir"]))
    ]
    if all(entry.values.get("is_reg") for entry in full):
        return entries  # the reader says of each folder what it holds
    for entry in entries:
        if entry not in full:
            logger.warning("%s: %s, so it is passed over", entry.where, no_pictures(Path(entry.values["image_dir"])))
    return full


def _check_entry(entry: SubsetEntry, where: SourceRules, faults: Faults) -> None:
    """Check a subset against the options of the run."""
    if entry.values.get("conditioning_data_dir") and not where.masked_loss:
        faults.add(
            f"{entry.where}: conditioning_data_dir holds masks (ControlNet is not trained), but masked_loss is "
            "off; set masked_loss = true"
        )
    for name in ("color_aug", "random_crop", "face_crop_aug_range"):
        if where.cache_latents and entry.values[name]:
            faults.add(
                f"{entry.where}: {name} changes the picture at every use, but cache_latents keeps one encoding of it; "
                f"set cache_latents = false, or leave {name} out"
            )


def _configured_part(entry: SubsetEntry) -> Part:
    values = entry.values
    subset = Subset(
        dataset=entry.dataset,
        batch_size=values["batch_size"],
        captions=CaptionRules(**{name: values[name] for name in CaptionRules.__dataclass_fields__}),
        looks=AugmentationRules(**{name: values[name] for name in AugmentationRules.__dataclass_fields__}),
        buckets=BucketRules(**{name: values[name] for name in BucketRules.__dataclass_fields__}),
        alpha_mask=values["alpha_mask"],
    )
    metadata = values.get("metadata_file")
    folder = values.get("image_dir") or values["metadata_file"].parent
    return Part(
        role=REGULARISATION if values.get("is_reg") else CANDIDATE,
        option_name=entry.where,
        folder=folder,
        metadata=metadata,
        repeats=values["num_repeats"],
        class_words=values.get("class_tokens") or "",
        caption_extension=values["caption_extension"],
        group_root=folder,
        masks=values.get("conditioning_data_dir"),
        subset=subset,
        passed_over=values["skip_image_resolution"],
    )
