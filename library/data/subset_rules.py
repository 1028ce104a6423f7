"""What the pictures of one subset share: rules for captions, looks and sizes, and the dataset that batches keep to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionRules:
    """What happens to a caption each time it is used; the fields are options."""

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
    """How a picture is scaled, and what is changed about it by chance; the fields are options."""

    flip_aug: bool
    color_aug: bool
    random_crop: bool
    face_crop_aug_range: str | None
    resize_interpolation: str | None


@dataclass(frozen=True)
class BucketRules:
    """Which training size a picture gets; the fields are options."""

    resolution: str
    enable_bucket: bool
    bucket_no_upscale: bool
    min_bucket_reso: int
    max_bucket_reso: int
    bucket_reso_steps: int


@dataclass(frozen=True)
class Subset:
    """The rules that a picture carries with it; a batch never mixes datasets."""

    dataset: int  # place in dataset_config; 0 without one
    batch_size: int  # images per device and pass
    captions: CaptionRules
    looks: AugmentationRules
    buckets: BucketRules
    alpha_mask: bool  # the picture's alpha channel is its mask
