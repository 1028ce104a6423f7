"""Sorts the keys that were given: those that this door uses, those that change nothing, and those that are faults."""

from collections.abc import Mapping
from typing import Any

from library.errors import Faults, InputError, did_you_mean, nearest
from library.options import front_ends
from library.options.declarations import Config, fields_of
from library.options.front_ends import reads_as_off, say_the_same
from library.options.kohya import (
    READ_ONLY_WITH,
    REFUSED,
    RENAMED,
    STAND_FOR,
    VALUES_WITHOUT_EFFECT,
    WITHOUT_EFFECT,
)
from library.options.notices import Notices
from library.options.sources import COMMAND_LINE, Given
from library.trainers import PRIVATE

_CHOICE = "its figures of private pictures would choose the weights, which the accounting does not cover"
# Why differentially private training does not take an option, where more is to be said than that it has no use for it
NOT_PRIVATE = {
    "target_auc": _CHOICE,
    "ema_decay": "to choose between weights and their average by looking at pictures is outside the accounting",
    **dict.fromkeys(
        ("aux_loss_share", "aux_loss_every_n_epochs", "aux_loss_every_n_steps", "attack_eval_draws"),
        f"a validation pass asks about private pictures outside the accounting: {_CHOICE}",
    ),
    "max_grad_norm": "gradients are clipped unit by unit; set dp_max_grad_norm",
    "gradient_accumulation_steps": "a step has dp_batch_size units on average, in as many passes as it needs",
    "reg_data_dir": "every picture of a step is a member's",
    "gradient_checkpointing": "gradients are read from kept activations; lower train_batch_size or dp_draws",
    "torch_compile": "gradients are read unit by unit, which compiled blocks do not allow",
    "keep_exposures": "an epoch is as many steps as use each unit once on average",
}


def known_keys(door: str, given: dict[str, Given], faults: Faults, notices: Notices) -> dict[str, Given]:
    """Keep the options that this door uses; say of each other one why it is not taken."""
    known = fields_of(door)
    kept: dict[str, Given] = {}

    def keep(name: str, entry: Given) -> None:
        if name in kept and not say_the_same(name, kept[name].value, entry.value):
            also = f"contradicts {kept[name].origin}; leave one out"
            faults.add(f"{entry.origin}: {name} = {entry.value!r} {also}", about=name)
        kept[name] = entry

    for written, entry in given.items():
        name = RENAMED.get(written, written)
        if name != written:
            notices.tell(f"{entry.origin}: '{written}' is taken as {name}")
        if name in STAND_FOR:
            if not reads_as_off(entry.value):
                name, value = STAND_FOR[name]
                shown = f'"{value}"' if isinstance(value, str) else str(value).lower()
                notices.tell(f"{entry.origin}: '{written}' is taken as {name} = {shown}")
                keep(name, Given(value, f"{entry.origin}, as {written}"))
        elif name == "epoch" and "max_train_epochs" in known:
            _keep_epoch(entry, given, keep, notices)
        elif name == "optimizer_type" and entry.value == "":
            continue  # kohya's own default, a word for AdamW
        elif name in known and str(entry.value) not in VALUES_WITHOUT_EFFECT.get(name, {}):
            keep(name, entry)
        else:
            _explain_left_out(door, written, entry, given, faults, notices)
    return kept


def check_sdxl(given: Mapping[str, Given]) -> None:
    """Compare what a config says of SDXL with the base model, where its file or folder shows what it is.

    Raises:
        InputError: in one sentence, a config for SDXL with another base model, or the other way round; the other keys
            are not worth a list.
    """
    base = given.get("pretrained_model_name_or_path")
    known = None if base is None else front_ends.shows_sdxl(str(base.value))
    if base is None or known is None:
        return
    marks = front_ends.sdxl_marks({name: entry.value for name, entry in given.items()})
    place = f"'{base.value}' ({base.origin})"
    if marks and not known:
        shown = ", ".join(f"{name} = {given[name].value!r} ({given[name].origin})" for name in marks)
        raise InputError(
            f"this is a config for SDXL: {shown}; and {place} is no SDXL model; give one, or leave these keys out"
        )
    denied = given.get("sdxl")
    if known and denied is not None and reads_as_off(denied.value):
        raise InputError(
            f"sdxl = {denied.value!r} ({denied.origin}) says that the base model is not SDXL; and {place} is an SDXL "
            "model; leave sdxl out, or give the base model that the config was written for"
        )


def _keep_epoch(entry: Given, given: Mapping[str, Given], keep: Any, notices: Notices) -> None:
    """``epoch``, which a GUI writes and kohya ignores: the length in epochs, where nothing else names the length."""
    other = next((name for name in ("max_train_epochs", "max_train_steps") if _is_on(name, given)), None)
    if reads_as_off(entry.value):
        notices.idle("epoch", entry, front_ends.UNKNOWN_AND_OFF)
    elif other is not None:
        notices.idle("epoch", entry, f"kohya ignores it, and {other} decides the length")
    else:
        notices.tell(f"{entry.origin}: 'epoch' is taken as max_train_epochs")
        keep("max_train_epochs", entry)


def _is_on(name: str, given: Mapping[str, Given]) -> bool:
    return name in given and not reads_as_off(given[name].value)


def _explain_left_out(  # noqa: PLR0913  one key with all that decides what is said of it
    door: str, written: str, entry: Given, given: Mapping[str, Given], faults: Faults, notices: Notices
) -> None:
    """Say of one option why it is not taken: a notice where that changes nothing, else a fault."""
    name = RENAMED.get(written, written)
    is_off = reads_as_off(entry.value)
    if str(entry.value) in VALUES_WITHOUT_EFFECT.get(name, {}):
        notices.idle(name, entry, VALUES_WITHOUT_EFFECT[name][str(entry.value)], with_value=True)
    elif name in Config.__dataclass_fields__:
        used_by = ", ".join(Config.__dataclass_fields__[name].metadata["doors"])
        why_not = f" ({NOT_PRIVATE[name]})" if door in PRIVATE and name in NOT_PRIVATE else ""
        faults.add(f"{entry.origin}: option '{name}' has no meaning for {door}; it belongs to {used_by}{why_not}")
    elif reason := _reason_without_effect(name, given):
        if not (is_off and (isinstance(entry.value, (bool, str, list)) or name in READ_ONLY_WITH)):
            notices.idle(name, entry, reason)
    elif name in REFUSED:
        if not is_off:
            faults.add(f"{entry.origin}: option '{name}' is not taken: {REFUSED[name]}")
    elif is_off and entry.origin != COMMAND_LINE and not front_ends.could_be_misspelt(written):
        notices.idle(written, entry, front_ends.UNKNOWN_AND_OFF)
    else:
        hint, near = did_you_mean(written, fields_of(door)), nearest(written, fields_of(door))
        faults.add(f"{entry.origin}: unknown option '{written}'{hint}", about=near)


def _reason_without_effect(name: str, given: Mapping[str, Given]) -> str | None:
    """Why a key changes nothing here whatever its value; None if it would, or is unknown."""
    leader = READ_ONLY_WITH.get(name)
    if leader is not None and not _is_on(leader, given):
        return f"it is read only beside {leader}, which is not set"
    return WITHOUT_EFFECT.get(name) or front_ends.WITHOUT_EFFECT.get(name)
