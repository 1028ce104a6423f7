"""Beside faults of the options: those of the files and folders that the sound options name, told in one round."""

import logging
from collections.abc import Callable
from pathlib import Path

from library.errors import Faults
from library.options.declarations import TRAINERS, Config
from library.rules import pick


def add_further_faults(door: str, config: Config, faults: Faults) -> None:
    """Collect what a run with these options would find next: dataset file, folders, prompts, optimizer.

    Only for a run that stops anyway; the run itself looks at all of it, and at the pictures and the model too. A check
    is left out where a fault names an option that it reads: its value would not be the one that is meant.
    """
    if door not in TRAINERS:
        return
    said = "\n".join(faults.messages)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the run tells the lines of these checks, once it starts
    try:
        for options, check in CHECKS:
            if not any(name in said for name in options):
                faults.attempt(check, config)
    finally:
        logging.disable(disabled)


def _pictures(config: Config) -> None:
    from library.data.picture_sources import find_parts, pick_rules  # slow to import

    if config.dataset_name is None:  # that would be fetched
        find_parts(*pick_rules(config))


def _prompts(config: Config) -> None:
    from library.data.dataset_config import main_resolution
    from library.diffusion.previews import SAMPLERS
    from library.diffusion.prompt_files import read_prompts

    if config.sample_prompts is not None and Path(config.sample_prompts).is_file():
        size = main_resolution(config.dataset_config, config.resolution)
        read_prompts(config.sample_prompts, size, config.seed, 8, list(SAMPLERS))


def _optimizer(config: Config) -> None:
    from library.training.optimizers import OptimizerRules, check_optimizer

    check_optimizer(pick(config, OptimizerRules))


def _trackers(config: Config) -> None:
    from library.training.trackers import LogRules, check_trackers

    check_trackers(pick(config, LogRules))


# Options that a check reads, and the check.
CHECKS: tuple[tuple[tuple[str, ...], Callable[[Config], None]], ...] = (
    (
        ("train_data_dir", "reg_data_dir", "nonmember_data_dir", "dataset_config", "in_json", "conditioning_data_dir",
         "flat_data_dir", "cache_latents", "masked_loss"),
        _pictures,
    ),
    (("sample_prompts", "resolution", "dataset_config"), _prompts),
    (("optimizer_type", "optimizer_args"), _optimizer),
    (("log_with", "log_tracker_config"), _trackers),
)  # fmt: skip
