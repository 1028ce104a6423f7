"""Options that give way to others: defaults that another option rules out, and values that nothing here reads."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from library.errors import Faults, InputError
from library.incoming.files import exists, read_text
from library.options.declarations import TRAINERS, Config
from library.options.front_ends import is_taken_for_sdxl, shows_sdxl
from library.options.notices import Notices
from library.options.sources import Given
from library.options.values import leaves_unset
from library.trainers import PRIVATE

METADATA = tuple(name for name in Config.__dataclass_fields__ if name.startswith("metadata_"))
FRESH_PICTURES = ("color_aug", "random_crop", "face_crop_aug_range")  # change the picture at every use
WITHOUT_THE_GAME: dict[str, Any] = {"param_alpha": 0.0, "k_steps": 0}  # of a door without an attacker
FOR_WANDB = ("log_tracker_name", "log_tracker_config", "wandb_run_name")


def settled(door: str, config: Config, given: Mapping[str, Given], notices: Notices) -> Config:
    """The config after its defaults have given way; each change, and each value that nothing reads, is told.

    Args:
        given: the options of file and flags. What is named there is never changed where it would change the LoRA.
    """
    if shows_sdxl(config.pretrained_model_name_or_path):
        config = dataclasses.replace(config, sdxl=True)  # so that config.toml states what the base model is
    config = _size(config, given, notices)
    if door not in TRAINERS:
        return config
    if door in PRIVATE:
        config = dataclasses.replace(config, **WITHOUT_THE_GAME)
    config = _rates(config, given, notices)
    _network_args(config, given, notices)
    for settle in (_cache, _previews, _trackers, _free_text, _schedule):
        config = settle(config, given, notices)
    return config


def _size(config: Config, given: Mapping[str, Given], notices: Notices) -> Config:
    """The training size of the base model's family, where none is given."""
    if "resolution" in given or not is_taken_for_sdxl(config.pretrained_model_name_or_path):
        return config
    sizes: dict[str, Any] = {"resolution": "1024"}
    sizes |= {} if "max_bucket_reso" in given else {"max_bucket_reso": 2048}
    told = ", ".join(f"{name} = {value}" for name, value in sizes.items())
    notices.tell(f"{told}: none is given, and the base model is SDXL, which was trained at 1024 pixels")
    return dataclasses.replace(config, **sizes)


def _rates(config: Config, given: Mapping[str, Given], notices: Notices) -> Config:
    """Of several rates for text encoders the first, where the base model has one."""
    rates = config.text_encoder_lr
    if not isinstance(rates, list) or is_taken_for_sdxl(config.pretrained_model_name_or_path):
        return config
    entry = given["text_encoder_lr"]
    notices.tell(
        f"{entry.origin}: text_encoder_lr = {entry.value!r} is taken as {rates[0]:g}, the first rate: SD 1.x and 2.x "
        "have one text encoder"
    )
    return dataclasses.replace(config, text_encoder_lr=rates[0])


def _network_args(config: Config, given: Mapping[str, Given], notices: Notices) -> None:
    """Keys that are off; their faults are reported by the joint checks."""
    from networks.given_args import check_given  # slow to import

    off = check_given(config.network_module, config.network_args, config.network_dropout, False, Faults())
    if off:
        notices.idle("network_args", given["network_args"], f"{', '.join(off)}: unknown to the network, and off")


def _cache(config: Config, given: Mapping[str, Given], notices: Notices) -> Config:
    """cache_latents is on by default, and gives way to what changes pictures at every use."""
    named = [name for name in ("cache_latents", "cache_latents_to_disk", "rebuild_cache") if getattr(config, name)]
    if any(name in given and not leaves_unset(name, given[name]) for name in named) or not config.cache_latents:
        return config
    asking = [f"{name} ({given[name].origin})" for name in FRESH_PICTURES if name in given and getattr(config, name)]
    asking += _asking_subsets(config)
    if not asking:
        return config
    notices.tell(
        f"cache_latents is off: {', '.join(asking)} changes a picture at every use, so it is encoded at every use"
    )
    return dataclasses.replace(config, cache_latents=False)


def _asking_subsets(config: Config) -> list[str]:
    """What the dataset_config asks for; its faults are reported where it is read."""
    from library.data.dataset_config import switched_on  # slow to import

    if not config.dataset_config:
        return []
    return [f"{name} ({config.dataset_config})" for name in FRESH_PICTURES if switched_on(config.dataset_config, name)]


def _previews(config: Config, given: Mapping[str, Given], notices: Notices) -> Config:
    """A file of prompts that is absent or holds none asks for nothing, where no preview is asked for."""
    asked = config.sample_every_n_epochs or config.sample_every_n_steps or config.sample_at_first
    place = config.sample_prompts
    if not place or asked or "sample_prompts" not in given:
        return config
    file = Path(place)
    if exists(file) and not _holds_no_prompt(file):
        return config
    state = "holds no prompt" if exists(file) else "does not exist"
    notices.idle(
        "sample_prompts", given["sample_prompts"], f"'{place}' {state}, and no sample_every_* asks for a preview"
    )
    return dataclasses.replace(config, sample_prompts=None)


def _holds_no_prompt(file: Path) -> bool:
    """Whether a file is empty, or has blank lines, comments or an empty list alone."""
    try:
        lines = [line.strip() for line in read_text(file, f"'{file}'").splitlines()]
    except InputError:
        return False  # what is wrong is told where the prompts are read
    return "".join(line for line in lines if not line.startswith("#")) in ("", "[]", "{}")


def _trackers(config: Config, given: Mapping[str, Given], notices: Notices) -> Config:
    """Names for wandb, where it receives nothing."""
    if config.log_with in ("wandb", "all"):
        return config
    unread = [name for name in FOR_WANDB if getattr(config, name) and name in given]
    for name in unread:
        notices.idle(name, given[name], f'it is for wandb, and log_with is "{config.log_with}"')
    return _without(config, unread)


def _free_text(config: Config, given: Mapping[str, Given], notices: Notices) -> Config:
    """Free text, which reaches the LoRA file only where all metadata is asked for."""
    if config.metadata == "full":
        return config
    unwritten = [name for name in ("training_comment", *METADATA) if getattr(config, name) and name in given]
    for name in unwritten:
        notices.idle(
            name,
            given[name],
            'free text is not written into the LoRA file, which may be shared; metadata = "full" writes it',
        )
    return _without(config, unwritten)


def _schedule(config: Config, given: Mapping[str, Given], notices: Notices) -> Config:
    """Numbers that another schedule reads."""
    from library.training.optimization.lr_schedulers import COUNTS  # slow to import

    if config.lr_scheduler_type:
        return config
    unread = [name for name, readers in COUNTS.items() if name in given and config.lr_scheduler not in readers]
    for name in unread:
        notices.idle(
            name, given[name], f"lr_scheduler {config.lr_scheduler} does not read it; it is for {_listed(COUNTS[name])}"
        )
    return _without(config, unread)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _without(config: Config, names: list[str]) -> Config:
    """The config with the defaults of some options."""
    defaults: dict[str, Any] = {name: Config.__dataclass_fields__[name].default for name in names}
    return dataclasses.replace(config, **defaults)
