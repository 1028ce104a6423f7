"""Checks of network_args that lycoris.kohya does not make itself, and ways around its faults (version 4.1.3)."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from library.errors import Faults, did_you_mean
from networks.lora_args import check_known

MODULE = "lycoris.kohya"
KNOWN = (
    "algo", "preset", "conv_dim", "conv_alpha", "dropout", "rank_dropout", "module_dropout", "use_tucker", "use_cp",
    "use_conv_cp", "disable_conv_cp", "use_scalar", "block_size", "train_norm", "constraint", "constrain", "rescaled",
    "dora_wd", "wd_on_output", "full_matrix", "bypass_mode", "rs_lora", "unbalanced_factorization", "decompose_both",
    "factor", "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio",
)  # fmt: skip
ALGORITHMS = ("lora", "locon", "loha", "lokr", "glora", "full", "diag-oft", "boft")
REFUSED = {
    "dylora": "it uses Python's own random numbers, so a resumed run would differ",
    "ia3": "its preset in LyCORIS 4.1.3 finds no layer of Stable Diffusion, and the network is empty",
    "tlora": "no client that this suite names reads its files",
}
TIME_EMBEDDING = "TimestepEmbedding"
WITH_UP_FACTORS = ("lora", "locon")
IGNORE_DROPOUT = ("loha", "lokr")  # unless bypass_mode is on


def check_lycoris(given: Mapping[str, str], network_dropout: float, from_weights: bool, faults: Faults) -> None:
    """Add a fault for each argument that LyCORIS would ignore or misread.

    Args:
        from_weights: everything comes from a file, and LyCORIS ignores other arguments.
    """
    if from_weights and (given or network_dropout):
        faults.add(
            f"dim_from_weights: {MODULE} takes its modules only from the file; leave network_args and "
            "network_dropout out"
        )
        return
    check_known(given, KNOWN, MODULE, faults)
    algo = given.get("algo", "lora").lower()
    if algo in REFUSED:
        faults.add(f"network_args: algo={algo} is not supported: {REFUSED[algo]}; use one of {', '.join(ALGORITHMS)}")
    elif algo not in ALGORITHMS:
        faults.add(
            f"network_args: {MODULE} has no algo '{algo}'{did_you_mean(algo, ALGORITHMS)} ({', '.join(ALGORITHMS)})"
        )
    bypasses = given.get("bypass_mode", "false").lower() != "false"
    if algo in IGNORE_DROPOUT and not bypasses and (network_dropout or float_or_zero(given.get("dropout"))):
        faults.add(
            f"network_dropout has no effect on algo={algo} unless network_args has bypass_mode=True; use "
            "rank_dropout or module_dropout, or set bypass_mode"
        )
    for name in given:
        if name.startswith("loraplus_") and algo not in WITH_UP_FACTORS:
            faults.add(f"network_args: {name} acts on up factors, which algo={algo} does not have; leave it out")


@contextmanager
def sound_presets(module: Any) -> Iterator[None]:
    """Presets that name the time embedding's layers once: version 4.1.3 fails if both class and name are listed."""
    before, network = module.PRESET, module.LycorisNetworkKohya
    listed = network.UNET_TARGET_REPLACE_MODULE
    module.PRESET = {name: _named_once(preset) for name, preset in before.items()}
    network.UNET_TARGET_REPLACE_MODULE = [kind for kind in listed if kind != TIME_EMBEDDING]
    try:
        yield
    finally:
        module.PRESET, network.UNET_TARGET_REPLACE_MODULE = before, listed


def _named_once(preset: Any) -> Any:
    if not any(name.startswith("time_embedding") for name in preset.get("unet_target_name", [])):
        return preset
    kinds = [kind for kind in preset.get("unet_target_module", []) if kind != TIME_EMBEDDING]
    return {**preset, "unet_target_module": kinds}


def float_or_zero(text: str | None) -> float:
    """A number, or 0 for other texts (which LyCORIS itself refuses)."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def quieten() -> None:
    """Show only errors of LyCORIS, which reports each of its defaults on the terminal."""
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
