"""What the metadata of any trainer's LoRA file gives away, and the part of it that may be shared."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from library.errors import InputError
from library.incoming.texts import parse_json
from library.lora_files.metadata import DISTILLATION, GUARANTEE, HASHES, PRIVACY_PREFIX, PRIVACY_SETTINGS, reduced

NUMBER = r"[+-]?\d[\d.]*(e[+-]?\d+)?"
HEX = r"[0-9a-f]{8,64}"
# Allowed key -> what its value may be; another value is free text, whatever the key is called
VALUES: Mapping[str, str] = {
    "ss_v2": r"True|False",
    "ss_base_model_version": r"[\w.-]{1,40}",
    "ss_network_module": r"networks\.\w{1,40}|lycoris\.kohya",
    "ss_network_dim": rf"{NUMBER}|Dynamic|None",
    "ss_network_alpha": rf"{NUMBER}|Dynamic|None",
    **dict.fromkeys(HASHES, HEX),
    "modelspec.sai_model_spec": r"\d[\d.]{0,10}",
    "modelspec.architecture": r"[\w.-]{1,60}(/[\w.-]{1,40})?",
    "modelspec.implementation": r"diffusers|https://github\.com/Stability-AI/generative-models",
    "modelspec.resolution": r"\d+x\d+",
    "modelspec.date": r"\d{4}-\d\d-\d\d",
    "modelspec.prediction_type": r"epsilon|v|v_prediction",
    "modelspec.encoder_layer": r"\d+",
    "modelspec.timestep_range": r"\d+,\s?\d+",
    "modelspec.title": r"LoRA",
    "format": r"pt",
}
WORDS_OF_PRIVACY = (
    *PRIVACY_SETTINGS, *DISTILLATION, *GUARANTEE, "method", "exposures_per_image", "training", "base_fingerprint",
)  # fmt: skip
PRIVACY_VALUE = rf"{NUMBER}( \[.{{0,40}}\])?|{HEX}|[<>=]* ?{NUMBER}|True|False|[\w-]+( [\w-]+){{0,5}}"
# Key, as a pattern -> what stands there. The first that fits is taken
KEYS: Sequence[tuple[str, str]] = (
    (r"ss_tag_frequency|modelspec\.tags|ss_caption.*|.*prompts?", "captions or tags"),
    (r"ss_datasets|ot_config|config|training_config|.*dataset_config.*", "the data set: folders, tags, counts"),
    (r"workflow|sd_merge_(recipe|models)", "a whole workflow, prompts included"),
    (r"ss_(reg_)?dataset_dirs|.*_dirs?", "folder names"),
    (r"ss_(output_name|sd_model_name|vae_name)|name|.*(file_?name|_path)", "file names"),
    (r"modelspec\.thumbnail|.*thumbnail.*", "a picture"),
    (r"ss_training_(started|finished)_at|modelspec\.date|.*_at|.*(date|time).*", "a time"),
    (r"ss_session_id", "a number that links files of one run"),
    (r"ss_seed|ss_validation_seed|.*_?seed", "the seed"),
    (r"ss_num_(train|reg|validation)_images|ss_bucket_info|ss_num_batches_per_epoch|ss_(max_train_)?steps|ss_epoch"
     r"|ss_num_epochs|.*(num|count)_.*images?", "how many pictures, or what tells it"),
    (r"modelspec\.(author|description|license|usage_hint|trigger_phrase|merged_from|preprocessor|title)"
     r"|ss_training_comment|ssmd_.*|.*(comment|author|description|notes?|user|trigger).*", "free text"),
)  # fmt: skip
PATH = re.compile(
    r"(^|[\s\"'=:,])(~?/[\w.-]+/|[A-Za-z]:[\\/]|\\\\)|[\\/][\w .-]+\.\w{2,5}\b"
    r"|\w\.(png|jpe?g|webp|txt|caption|safetensors|ckpt)\b",
    re.I,
)
ADDRESS = re.compile(r"[\w.+-]+@[\w-]+\.\w+|https?://")
TIME = re.compile(r"\d{4}-\d\d-\d\d|\b(1[4-9]|2[01])\d{8}(\.\d+)?\b")
PLAIN = re.compile(rf"({NUMBER}|True|False|true|false|None|null|)", re.I)
# Keys of kohya whose words are names of methods, when they are short and without a space
METHODS = re.compile(r"ss_(lr_scheduler|optimizer|mixed_precision|loss_type|huber_schedule|resize_interpolation|"
                     r"sd_scripts_commit_hash|resolution|network_args|lowram|full_fp16)")  # fmt: skip
METHOD_VALUE = re.compile(r"[\w.,()=+\-\[\] ]{0,200}")


@dataclass(frozen=True)
class Leak:
    """One key that gives something away. The value itself is shown nowhere."""

    key: str
    what: str
    letters: int  # length of the value


def is_harmless(key: str, text: str) -> bool:
    """Whether a key with this value may stand in a file that is shared."""
    if key == "ss_network_args":
        return _are_short_arguments(text)
    if key.startswith(PRIVACY_PREFIX):
        name = key.removeprefix(PRIVACY_PREFIX)
        return (name in WORDS_OF_PRIVACY or name.startswith("audit_")) and bool(re.fullmatch(PRIVACY_VALUE, text))
    return key in VALUES and re.fullmatch(VALUES[key], text) is not None


def _are_short_arguments(text: str) -> bool:
    """Whether ss_network_args holds numbers and names of methods alone."""
    try:
        given = parse_json(text, "ss_network_args")
    except InputError:
        return text == "None"
    return given is None or (isinstance(given, dict) and all(map(_is_short_argument, given.items())))


def _is_short_argument(pair: tuple[str, Any]) -> bool:
    key, value = pair[0], str(pair[1])
    return bool(re.fullmatch(r"\w{1,40}", key) and re.fullmatch(r"[\w,+ .-]{0,80}", value)) and not PATH.search(value)


def leaks_of(metadata: Mapping[str, str]) -> list[Leak]:
    """Every key that tells of the data, the machine or the person, in the order of the file."""
    found = []
    for key, text in metadata.items():
        what = "" if is_harmless(key, text) else _what(key, text)
        if what:
            found.append(Leak(key, what, len(text)))
    return found


def _what(key: str, text: str) -> str:
    """What a value gives away; empty for settings of a training, which are numbers and names of methods."""
    if not text or text == "None":
        return ""
    for pattern, what in KEYS:
        if re.fullmatch(pattern, key, re.I):
            return what
    leaves = list(_leaves(text))
    if any(leaf.startswith("data:image") for leaf in leaves):
        return "a picture"
    for content, what in ((ADDRESS, "an address of mail or web"), (PATH, "paths or file names"), (TIME, "a time")):
        if any(content.search(leaf) for leaf in leaves):
            return what
    if all(PLAIN.fullmatch(leaf) for leaf in leaves) or (METHODS.fullmatch(key) and METHOD_VALUE.fullmatch(text)):
        return ""
    return "free text"


def _leaves(text: str) -> Iterator[str]:
    """The texts in a value: those of a JSON table one by one, its keys too; else the value."""
    try:
        content: Any = parse_json(text, "a value") if text[:1] in "[{" else text
    except InputError:
        content = text
    todo = [content]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            todo += [*one.values(), *(key for key in one if not re.fullmatch(r"[a-z][a-z_0-9]*", key))]
        elif isinstance(one, list):
            todo += one
        else:
            yield one if isinstance(one, str) else json.dumps(one)


def stripped(metadata: Mapping[str, str]) -> dict[str, str]:
    """The part that may be shared; of a date with a time, the day."""
    days = {key: text[:10] if key == "modelspec.date" else text for key, text in metadata.items()}
    return {key: text for key, text in days.items() if is_harmless(key, text)}


def carried(sources: Sequence[Mapping[str, str]], *, minimal: bool = False) -> dict[str, str]:
    """What a file made of others takes over: what may be shared, and what all of them state alike.

    Hashes of tensors and ``ss_privacy_*`` are about the sources, and an audit of them is none of the result.

    Args:
        minimal: the keys that kohya writes with no_metadata alone.
    """
    clean = [stripped(one) for one in sources]
    own = ("sshs_model_hash", "sshs_legacy_hash")
    shared = {
        key: text
        for key, text in (clean[0] if clean else {}).items()
        if key not in own and not key.startswith(PRIVACY_PREFIX) and all(one.get(key) == text for one in clean)
    }
    return reduced(shared, no_metadata=minimal, full=True)
