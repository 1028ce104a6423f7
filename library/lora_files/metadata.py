"""The metadata of a LoRA file: an allow-list for WebUIs and the privacy facts, without anything about the data."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MINIMUM = (
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
)
HASHES = ("sshs_model_hash", "sshs_legacy_hash", "ss_sd_model_hash", "ss_new_sd_model_hash")
MODELSPEC = (
    "modelspec.sai_model_spec",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.resolution",
    "modelspec.date",
    "modelspec.prediction_type",
    "modelspec.encoder_layer",
    "modelspec.timestep_range",
    "modelspec.title",
)
ALLOWED = (*MINIMUM, *HASHES, *MODELSPEC)
PRIVACY_PREFIX = "ss_privacy_"
PRIVACY_SETTINGS = (
    "param_alpha",
    "param_beta",
    "k_steps",
    "separate_noise",
    "update_order",
    "proxy_mode",
    "gain_limit",
    "ema_decay",
)
DISTILLATION = ("distill_folds", "distill_teacher_epochs")  # stated only of a LoRA that teachers have taught
GUARANTEE = ("dp_epsilon", "dp_delta", "dp_unit", "dp_noise_multiplier", "dp_max_grad_norm")  # of DPLoRA alone


def is_allowed(name: str) -> bool:
    """Whether a key is allowed in a file that is shared."""
    return name in ALLOWED or name.startswith(PRIVACY_PREFIX)


@dataclass(frozen=True)
class FileRules:
    """Options that enter the metadata."""

    network_module: str
    clip_skip: int
    v2: bool
    min_timestep: int | None
    max_timestep: int | None
    output_name: str
    training_comment: str | None
    metadata_title: str | None
    metadata_author: str | None
    metadata_description: str | None
    metadata_license: str | None
    metadata_tags: str | None
    metadata_usage_hint: str | None
    metadata_thumbnail: str | None
    metadata_merged_from: str | None
    metadata_trigger_phrase: str | None
    metadata_preprocessor: str | None


def network_facts(
    rules: FileRules,
    stated: Mapping[str, str],
    resolution: tuple[int, int],
    version: tuple[str, str, str],
    prediction_type: str,
    model_hashes: Mapping[str, str],
) -> dict[str, str]:
    """The keys that WebUIs read.

    Args:
        stated: ss_network_dim, ss_network_alpha and ss_network_args of the network.
        version: ss_base_model_version, modelspec.architecture and modelspec.implementation of the base model's family.
    """
    base_model, architecture, implementation = version
    facts = {
        "ss_v2": str(rules.v2),
        "ss_base_model_version": base_model,
        "ss_network_module": rules.network_module,
        **stated,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": implementation,
        "modelspec.resolution": f"{resolution[0]}x{resolution[1]}",
        "modelspec.date": time.strftime("%Y-%m-%d", time.gmtime()),  # the day in UTC: no clock, no time zone
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else "epsilon",
        "modelspec.title": "LoRA",
        **model_hashes,
    }
    if rules.clip_skip > 1:
        facts["modelspec.encoder_layer"] = str(rules.clip_skip)
    if rules.min_timestep is not None or rules.max_timestep is not None:
        end = 1000 if rules.max_timestep is None else rules.max_timestep
        facts["modelspec.timestep_range"] = f"{rules.min_timestep or 0},{end}"
    return facts


def privacy_facts(
    method: str,
    options: Mapping[str, Any],
    *,
    exposures: float,
    verdict: str,
    base_fingerprint: str,
    guarantee: Mapping[str, str],
) -> dict[str, str]:
    """The ss_privacy_* keys that a training can state; an audit adds its figures.

    Args:
        method: name of the door.
        options: the run's options; only privacy settings are stated.
        exposures: mean number of uses of each member, stated to one significant digit: a file's step number divided by
            the exact figure would give the number of members.
        verdict: "proxy beat chance", "undefended" (the proxy never did), "plain" (no attacker) or "differentially
            private".
        base_fingerprint: hash of the base model's files, so that an audit can recognise another base model.
        guarantee: epsilon and what it rests on, of a differentially private training.
    """
    stated = PRIVACY_SETTINGS + (DISTILLATION if options.get("distill_folds") else ())
    settings = {name: options[name] for name in stated if options.get(name) is not None}
    facts = {
        "method": method,
        **settings,
        **guarantee,
        "exposures_per_image": f"{float(f'{exposures:.0e}'):g}",
        "training": verdict,
        "base_fingerprint": base_fingerprint,
    }
    return {f"{PRIVACY_PREFIX}{name}": str(value) for name, value in facts.items()}


def full_facts(rules: FileRules, images: int, steps: int) -> dict[str, str]:
    """The keys of ``--metadata full``: names, counts and free text; still no caption and no file name of a picture."""
    own_words = {
        f"modelspec.{name.removeprefix('metadata_')}": text
        for name, text in dataclasses.asdict(rules).items()
        if name.startswith("metadata_") and text
    }
    return {
        "ss_output_name": rules.output_name,
        "ss_training_comment": rules.training_comment or "",
        "ss_num_train_images": str(images),
        "ss_max_train_steps": str(steps),
        **own_words,
    }


def written(
    network: Mapping[str, str],
    privacy: Mapping[str, str],
    own_words: Mapping[str, str],
    *,
    no_metadata: bool,
    full: bool,
) -> dict[str, str]:
    """All facts together, reduced to those that may be written; ``own_words`` (such as a title) only with ``full``."""
    facts = {**network, **privacy, **(own_words if full else {})}
    return reduced(facts, no_metadata=no_metadata, full=full)


def reduced(facts: Mapping[str, str], *, no_metadata: bool, full: bool) -> dict[str, str]:
    """The facts that may be written: the allow-list, everything (``full``), or the minimum (``no_metadata``)."""
    if no_metadata:
        return {name: text for name, text in facts.items() if name in MINIMUM or name == "modelspec.architecture"}
    return {name: text for name, text in facts.items() if full or is_allowed(name)}
