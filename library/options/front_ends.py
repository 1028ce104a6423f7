"""What graphical front-ends and notebooks write beside kohya's options: keys that change nothing, "off", and SDXL."""

import dataclasses
from collections.abc import Mapping
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from library.options.declarations import Config

_LAUNCHER = "it is for the program that starts the script; here the launcher's own variables do that"
_WINDOW = "it is a setting of a front-end's own window"
_STATED = "the options that it chose stand in the file themselves"
_OTHER_FAMILY = "it belongs to another family of models"

# Keys by the reason why they change nothing here, whatever their value.
WITHOUT_EFFECT: Mapping[str, str] = {
    name: reason
    for reason, names in {
        _LAUNCHER: (
            "num_cpu_threads_per_process", "num_processes", "num_machines", "main_process_port", "multi_gpu", "gpu_ids",
            "dynamo_mode", "dynamo_use_dynamic", "dynamo_use_fullgraph", "machine_rank", "num_cpu_threads",
        ),
        _WINDOW: (
            "headless", "save_toml", "save_toml_location", "ui_custom_params", "enable_preview", "use_wandb",
            "model_list", "save_as_bool", "show_timesteps", "train_mode", "training_preset", "gui_version",
            "create_caption", "create_buckets", "caption_metadata_filename", "latent_metadata_filename",
        ),
        _STATED: (
            "LoRA_type", "model_train_type", "LyCORIS_preset",
        ),
        _OTHER_FAMILY: (
            "t5xxl", "t5xxl_device", "t5xxl_dtype", "t5xxl_max_token_length", "clip_l", "clip_g", "ae",
            "discrete_flow_shift", "model_prediction_type", "timestep_sampling", "sigmoid_scale", "weighting_scheme",
            "logit_mean", "logit_std", "mode_scale", "apply_t5_attn_mask", "blocks_to_swap", "double_blocks_to_swap",
            "single_blocks_to_swap", "guidance_scale", "split_mode", "split_qkv", "train_blocks", "train_t5xxl",
            "mem_eff_save", "training_shift", "sd3_text_encoder_batch_size", "pos_emb_random_crop_rate",
            "clip_l_dropout_rate", "clip_g_dropout_rate", "t5_dropout_rate", "enable_scaled_pos_embed",
            "save_clip", "save_t5xxl", "cpu_offload_text_encoder", "text_encoder_batch_size",
        ),
    }.items()
    for name in names
}  # fmt: skip
UNKNOWN_AND_OFF = "unknown, and off"

OFF_TEXTS = ("", "none", "null", "false", "0", "0.0")
NOT_KOHYAS = ("privacy", "dp", "split", "audit", "run")  # sections of options that no file of kohya's has
NEAR, VERY_NEAR = 0.6, 0.8  # likeness of two names, 1 = equal

PAIRS = ("resolution", "skip_image_resolution", "face_crop_aug_range")  # "512", 512, "512,512" or [512, 512]
SDXL_NAMES = ("sdxl", "sd_xl", "stable-diffusion-xl", "sd-xl")


def say_the_same(name: str, one: Any, other: Any) -> bool:
    """Whether two values of an option are one value, also in two forms: 512 and "512", a side and a pair of it."""
    if type(one) is type(other) and name not in PAIRS:
        return bool(one == other)
    return bool(one == other) or (_numbers(one) == _numbers(other) and _numbers(one) is not None)


def _numbers(value: Any) -> tuple[float, ...] | None:
    """The numbers that a value consists of, of two equal ones one; None for other values."""
    try:
        items = value if isinstance(value, list) else str(value).split(",")
        return None if len(items) > 2 else tuple(dict.fromkeys(float(item) for item in items))
    except (TypeError, ValueError, OverflowError):
        return None


def reads_as_off(value: Any) -> bool:
    """Whether a value asks for nothing: false, 0, an empty text, list or table, or the word None."""
    if isinstance(value, str):
        return value.strip().lower() in OFF_TEXTS
    if isinstance(value, list):
        return all(isinstance(item, str) and not item.strip() for item in value)
    return value is None or value == {} or (isinstance(value, (int, float)) and value == 0)


def could_be_misspelt(name: str) -> bool:
    """Whether an unknown key that is off may be a misspelt option, so that the run would not be what was asked for.

    Any likeness to an option of the defence, the split or the audit counts; with an option that kohya has, only a great
    likeness, where the option is on by itself.
    """
    scores = {known: SequenceMatcher(None, name.lower(), known).ratio() for known in Config.__dataclass_fields__}
    nearest = max(scores, key=lambda known: scores[known])
    field = Config.__dataclass_fields__[nearest]
    if scores[nearest] < NEAR:
        return False
    if is_our_own(nearest):
        return True
    is_off_by_itself = field.default is dataclasses.MISSING or reads_as_off(field.default)  # a list has no default
    return scores[nearest] >= VERY_NEAR and not is_off_by_itself


def is_our_own(name: str) -> bool:
    """Whether an option is one that kohya and its front-ends do not have."""
    facts = Config.__dataclass_fields__[name].metadata
    return facts["section"] in NOT_KOHYAS or facts["kohya"].startswith("not in kohya")


def sdxl_marks(values: Mapping[str, Any]) -> list[str]:
    """The keys that show a config written for SDXL: its switches that are on, and values that name it."""
    marks = [name for name in values if (name == "sdxl" or name.startswith("sdxl_")) and not reads_as_off(values[name])]
    return marks + [
        name
        for name in ("model_train_type", "network_module", "LoRA_type")
        if "sdxl" in str(values.get(name, "")).lower()
    ]


def shows_sdxl(base: str) -> bool | None:
    """Whether the base model is one of SDXL, by what its file or folder holds; None where that is not seen."""
    if not base:
        return None
    from library.diffusion.families.sdxl import is_sdxl_place  # slow to import

    return is_sdxl_place(Path(base))


def is_taken_for_sdxl(base: str) -> bool:
    """Whether defaults are those of SDXL: by what the base model holds, else by the usual names."""
    known = shows_sdxl(base)
    name = Path(base.replace("\\", "/").rstrip("/")).name.lower()
    return any(word in name for word in SDXL_NAMES) if known is None else known
