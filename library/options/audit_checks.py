"""Checks of the audit's options that depend on each other."""

import os
from pathlib import Path

from library.audit.robustness.sizes import read_ranks, read_sizes
from library.errors import Faults
from library.incoming.files import exists, is_folder
from library.options.declarations import AUDITED, Config

OF_MEMBERSHIP = (
    "publishable",
    "stamp",
    "fail_above",
    "scores_only",
    "generated_images",
    "shadow_loras",
    "shadow_transfer",
    "undefended",
)

OF_ROBUSTNESS = (
    "robustness_eps",
    "robustness_steps",
    "robustness_restarts",
    "robustness_pictures",
    "robustness_ranks",
)


def _check_attacks(config: Config, faults: Faults) -> None:
    """What is tried on the LoRA, and what needs another word beside it."""
    if not config.attacks:
        faults.add(f"attacks is empty; give one or more of {', '.join(AUDITED)}", about="attacks")
    given = [name for name in OF_MEMBERSHIP if getattr(config, name) not in (None, False, 0)]
    if config.attacks and "membership" not in config.attacks and given:
        faults.add(
            f"{' and '.join(given)}: of the membership audit alone, which attacks does not name; add membership to "
            "attacks, or leave the other out"
        )
    elif config.scores_only and set(config.attacks) != {"membership"}:
        faults.add("scores_only asks no model, and only membership can do without; leave one of the two out")
    if config.public_data_dir and "reconstruction" not in config.attacks:
        faults.add("public_data_dir is for the attack on the weights; add reconstruction to attacks, or leave it out")
    idle = [name for name in OF_ROBUSTNESS if getattr(config, name) != getattr(Config(), name)]
    if "robustness" not in config.attacks and idle:
        faults.add(
            f"{' and '.join(idle)}: of the robustness audit alone, which attacks does not name; add robustness to "
            "attacks, or leave the other out"
        )
    if not config.robustness_eps:
        faults.add("robustness_eps is empty; give one or more, such as 8/255", about="robustness_eps")
    read_sizes(config.robustness_eps, faults)
    read_ranks(config.robustness_ranks, faults)


def check_audit(config: Config, faults: Faults) -> None:
    """Collect the faults of the audit's options that are each valid alone."""
    _check_attacks(config, faults)
    judges = [name for name in ("inception_weights", "clip_model", "image_encoder") if getattr(config, name)]
    if judges and not config.generated_images:
        faults.add(
            f"{' and '.join(judges)} need generated images; set generated_images above 0, or leave the models out"
        )
    if config.shadow_loras % 2:
        faults.add(f"shadow_loras must be even (half of them are trained on each picture), got {config.shadow_loras}")
    _check_publishable(config, faults)


def _check_publishable(config: Config, faults: Faults) -> None:
    """The publishable part has a folder of its own, without older files and without private ones."""
    if not config.publishable:
        return
    target = Path(config.publishable)
    if exists(target) and (not is_folder(target) or any(target.iterdir())):
        faults.add(f"publishable '{target}' must be an empty folder or one that does not exist yet; give a fresh one")
    for output in (*config.outputs, *([config.undefended] if config.undefended else [])):
        private = Path(output, "audit") if is_folder(output) else Path(output).with_name(f"{Path(output).stem}-audit")
        if target.resolve().is_relative_to(private.resolve()):
            faults.add(f"publishable '{target}' is inside the private folder '{private}'; give a folder outside it")
    existing = next(place for place in (target.resolve(), *target.resolve().parents) if exists(place))
    if not os.access(existing, os.W_OK):
        faults.add(f"publishable '{target}' cannot be written: '{existing}' is read-only")
