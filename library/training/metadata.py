"""What a LoRA file says of itself: an allow-list for WebUIs and the privacy facts, nothing that names the data."""

import json
import time
from collections.abc import Mapping
from typing import Any

MINIMUM = (
    "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args",
)  # fmt: skip
HASHES = ("sshs_model_hash", "sshs_legacy_hash", "ss_sd_model_hash", "ss_new_sd_model_hash")
MODELSPEC = (
    "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation", "modelspec.resolution",
    "modelspec.date", "modelspec.prediction_type", "modelspec.encoder_layer", "modelspec.timestep_range",
    "modelspec.title",
)  # fmt: skip
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


def is_allowed(name: str) -> bool:
    """Whether a key may stand in a file that is shared."""
    return name in ALLOWED or name.startswith(PRIVACY_PREFIX)


def network_facts(
    network_module: str, network_dim: int, network_alpha: float, resolution: tuple[int, int], clip_skip: int,
    prediction_type: str, model_hashes: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """The keys that WebUIs read, for an SD 1.x LoRA."""
    facts = {
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": network_module,
        "ss_network_dim": str(network_dim),
        "ss_network_alpha": str(network_alpha),
        "ss_network_args": json.dumps({}),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": f"{resolution[0]}x{resolution[1]}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else "epsilon",
        "modelspec.title": "LoRA",
        **model_hashes,
    }
    if clip_skip > 1:
        facts["modelspec.encoder_layer"] = str(clip_skip)
    return facts


def privacy_facts(
    method: str, options: Mapping[str, Any], *, epochs: float, exposures: float, verdict: str, base_fingerprint: str
) -> dict[str, str]:
    """The ss_privacy_* keys that a training can state of itself; an audit adds what it measured.

    Args:
        method: name of the door.
        options: the run's options; the privacy settings among them are stated.
        epochs: passes over the member sides so far.
        exposures: how often each member was trained on, on average.
        verdict: "proxy beat chance", "undefended" (it never did) or "plain" (no attacker).
        base_fingerprint: hash of the base model's files, so that an audit can tell another base.
    """
    settings = {name: options[name] for name in PRIVACY_SETTINGS if options.get(name) is not None}
    facts = {
        "method": method,
        **settings,
        "epochs": f"{epochs:g}",
        "exposures_per_image": f"{exposures:g}",
        "training": verdict,
        "base_fingerprint": base_fingerprint,
    }
    return {f"{PRIVACY_PREFIX}{name}": str(value) for name, value in facts.items()}


def full_facts(output_name: str, comment: str | None, images: int, steps: int) -> dict[str, str]:
    """What ``--metadata full`` adds: names, counts and the comment, still no caption and no file name."""
    return {
        "ss_output_name": output_name,
        "ss_training_comment": comment or "",
        "ss_num_train_images": str(images),
        "ss_max_train_steps": str(steps),
    }


def written(*facts: Mapping[str, str], no_metadata: bool, full: bool) -> dict[str, str]:
    """All facts in one, reduced to what may be written."""
    return reduced({name: text for part in facts for name, text in part.items()}, no_metadata=no_metadata, full=full)


def reduced(facts: Mapping[str, str], *, no_metadata: bool, full: bool) -> dict[str, str]:
    """The facts that may be written: the allow-list, everything (``full``), or the minimum (``no_metadata``)."""
    if no_metadata:
        return {name: text for name, text in facts.items() if name in MINIMUM or name == "modelspec.architecture"}
    return {name: text for name, text in facts.items() if full or is_allowed(name)}
