"""The rules that the pictures of one subset share, for captions, augmentation and sizes, and their dataset."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionRules:
    """How a caption changes at each use; the fields are options."""

    shuffle_caption: bool
    caption_separator: str
    keep_tokens: int
    keep_tokens_separator: str | None
    secondary_separator: str | None
    enable_wildcard: bool
    caption_prefix: str | None
    caption_suffix: str | None
    caption_dropout_rate: float
    caption_dropout_every_n_epochs: int
    caption_tag_dropout_rate: float
    token_warmup_min: int
    token_warmup_step: float


@dataclass(frozen=True)
class AugmentationRules:
    """How a picture is scaled and randomly changed; the fields are options."""

    flip_aug: bool
    color_aug: bool
    random_crop: bool
    face_crop_aug_range: str | None
    resize_interpolation: str | None


@dataclass(frozen=True)
class BucketRules:
    """The training size of a picture; the fields are options."""

    resolution: str
    enable_bucket: bool
    bucket_no_upscale: bool
    min_bucket_reso: int
    max_bucket_reso: int
    bucket_reso_steps: int


@dataclass(frozen=True)
class Subset:
    """The rules of a picture; a batch never mixes datasets."""

    dataset: int  # index in dataset_config; 0 without one
    batch_size: int  # images per device and pass
    captions: CaptionRules
    looks: AugmentationRules  # a hash of saved states holds this name
    buckets: BucketRules
    alpha_mask: bool  # the picture's alpha channel is its mask
