"""What findings.json holds, key by key: its JSON schema, made from the types of the findings and one meaning "
"per key."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from library.audit.report.dp_ceiling import Ceiling
from library.audit.report.evaluation import Control
from library.audit.report.json_csv import SCHEMA_VERSION
from library.audit.report.most_shown import MostShown
from library.audit.report.paired_differences import Pair
from library.audit.report.verdict import Verdict
from library.audit.statistics.findings import Finding
from library.audit.statistics.one_run_epsilon import OneRunBound
from library.audit.statistics.set_test import SetTest

PLAIN = {int: "integer", float: "number", str: "string", bool: "boolean"}
VERDICTS = ("leak", "no evidence", "invalid")
BESIDE: Mapping[Any, Mapping[str, Any]] = {  # keys that the file has beside the fields of a class
    Finding: {"title": str, "access": str, "unet_passes_per_image": int | None, "score_direction": str},
    MostShown: {"verdict": str},
}
KEYS: Mapping[str, Any] = {  # of the file, in its order
    "schema_version": int,
    "suite": str,
    "date": str,
    "checkpoint_sha256": str,
    "label": str,
    "method": str,
    "settings": Mapping[str, bool | int | float | str],
    "exposures_per_image": float | None,
    "most_shown": MostShown | None,
    "defended": bool | None,
    "verdict": Verdict,
    "primary": str,
    "worst": str,
    "p_max_over_attacks": float,
    "findings": Sequence[Finding],
    "findings_with_a_shadow": Sequence[Finding],
    "paired_differences": Sequence[Pair],
    "controls": Sequence[Control],
    "p_max_over_controls": float,
    "epsilon_lower_bounds": Sequence[OneRunBound],
    "epsilon_is_valid": bool,
    "epsilon_doubt": str,
    "dp_ceiling": Ceiling | None,
    "dataset_level_p": float,
    "set_level_test": SetTest | None,
    "auc_by_timestep": Mapping[str, Sequence[tuple[float, float, float]]],
    "utility": Mapping[str, float],
    "images": Mapping[str, int],
    "groups_tested": int,
    "facts": Mapping[str, str],
}
MEANINGS = {  # by key, or by class and field
    "schema_version": "of this description; it grows when a key goes away or changes its meaning, not when one "
    "is added",
    "suite": "name and version of the suite that audited",
    "date": "of the audit, year-month-day",
    "checkpoint_sha256": "SHA-256 of the LoRA file as it lay there when the report was written",
    "label": "a number in place of the folder's name",
    "method": "what the file states: PLoRA, SPLoRA, DPLoRA, LoRA (without a defence) or another trainer",
    "settings": "what the file states of its training, in the order of the names",
    "exposures_per_image": "uses of each member, to one digit; null where the file does not say",
    "most_shown": "the members that were shown most often; null where all were shown alike",
    "defended": "whether a defence was on; null where the file does not say",
    "verdict": "the decision",
    "primary": "name of the main attack, which was fixed beforehand",
    "worst": "name of the attack farthest from chance on all test pictures",
    "p_max_over_attacks": "p of the largest deviation among all attacks",
    "findings": "one for each attack",
    "findings_with_a_shadow": "the same attacks fitted on a shadow LoRA; empty without one",
    "paired_differences": "this LoRA's AUC minus that of the reference of the call; empty for the reference",
    "controls": "tests in which no leak can be",
    "p_max_over_controls": "p of the largest deviation among all controls; below 0.001 the audit is invalid",
    "epsilon_lower_bounds": "one-run bounds, by number of guesses",
    "epsilon_is_valid": "whether a fair coin put each group in or out, so that the bounds are valid",
    "epsilon_doubt": "why not; empty where they are",
    "dp_ceiling": "what differential privacy leaves to any attack, where the file states it; else null",
    "dataset_level_p": "one-sided Welch test by group: was the collection as a whole used?",
    "set_level_test": "drawings of both sides' captions against the members and against the others, as sets; null "
    "without drawings",
    "auc_by_timestep": "timestep, AUC with the LoRA, AUC without, for three kinds of score",
    "utility": "what was learnt of held-out pictures (`held_out_gain`) and what of members alone (`learnt_by_heart`), "
    "each with its 95 % interval (`_low`, `_high`) and number of pictures; fit: losses as a share of the base model's; "
    "image quality where drawings were made",
    "images": "number of pictures by side",
    "groups_tested": "number of groups on the test sides",
    "facts": "of the audit: profile, hash of the tensors, versions, seconds",
    "Verdict.word": "leak, no evidence or invalid",
    "Verdict.sentence": "the same in everyday words",
    "Verdict.reasons": "on what grounds",
    "Verdict.least_detectable_auc": "a smaller leak would mostly go unseen in a sample of this size",
    "Finding.name": "short name; `scores.csv` has a column of that name",
    "Finding.title": "name on the report",
    "Finding.access": "who can make it: BB draws pictures, GB asks the UNet, GB+base also the base, WB reads weights",
    "Finding.unet_passes_per_image": "cost with the LoRA on; null where it is not counted",
    "Finding.score_direction": "always: higher = more likely a member",
    "Finding.chosen": "what was chosen on the aux sides",
    "Finding.members": "tested",
    "Finding.non_members": "tested",
    "Finding.auc": "on the test sides",
    "Finding.auc_interval": "95 %",
    "Finding.auc_flipped": "the larger of AUC and 1 - AUC",
    "Finding.auc_aux": "on the aux sides, for comparison; null where those were not asked",
    "Finding.low_rates": "TPR at fixed FPRs, thresholds on the test sides",
    "Finding.transfer": "what a threshold from the aux sides does; null without aux scores",
    "Finding.p": "permutation p, two-sided; 1e-4 is the smallest that 10,000 draws can give",
    "Finding.auc_off": "the same attack on the base without the LoRA; null where there is none",
    "Finding.auc_off_interval": "95 %",
    "Finding.effective": "what the two sides are worth, since pictures come in groups",
    "EffectiveSizes.members": "pictures over the design effect",
    "EffectiveSizes.non_members": "pictures over the design effect",
    "EffectiveSizes.groups": "groups of the side that has fewer",
    "MostShown.pictures": "members that were shown most often",
    "MostShown.others": "members that were shown less often",
    "MostShown.times": "as often as the member that was shown least",
    "MostShown.share_of_mean": "their uses over the mean of all members",
    "MostShown.least_of_mean": "the least uses over that mean",
    "MostShown.finding": "an attack without labels on them alone; null where they are too few",
    "MostShown.verdict": "leak, no evidence, or not tested",
    "LowRate.fpr": "false-positive rate",
    "LowRate.needed": "non-members that resolve it",
    "LowRate.tpr": "true-positive rate; null where the sample is too small",
    "LowRate.interval": "95 %; null where none is given",
    "LowRate.chance": "what guessing reaches",
    "LowRate.tpr_inverted": "the other tail: lowest scores accused",
    "Transfer.target_fpr": "the rate that the threshold was set for",
    "Transfer.threshold": "score; null where published",
    "Transfer.fpr": "the rate that it has on the test sides",
    "Transfer.fpr_interval": "95 %",
    "Transfer.tpr": "members that it finds there",
    "Transfer.tpr_interval": "95 %",
    "Transfer.balanced_accuracy": "at the aux threshold of best accuracy",
    "Transfer.balanced_accuracy_interval": "95 %",
    "Control.name": "what is tested",
    "Control.auc": "must be at 0.5",
    "Control.interval": "95 %",
    "Ceiling.epsilon": "as the file states it",
    "Ceiling.delta": "as the file states it",
    "Ceiling.auc": "largest AUC under that claim, where a fair coin put each unit in or out",
    "Ceiling.exceeded_by": "names of attacks whose whole 95 % interval lies above: none, or the claim is wrong",
    "Pair.attack": "name of the attack",
    "Pair.against": "label of the reference",
    "Pair.difference": "AUC of this LoRA minus the reference's",
    "Pair.interval": "95 %, paired over the same pictures",
    "SetTest.space": "network or space of the features",
    "SetTest.to_members": "squared MMD of the drawings to the members, LoRA on",
    "SetTest.to_non_members": "the same to the pictures held out",
    "SetTest.to_members_of_base": "squared MMD of the base's drawings to the members",
    "SetTest.to_non_members_of_base": "the same to the pictures held out",
    "SetTest.difference": "to members minus to others, LoRA on minus base; below 0: the LoRA comes nearer to members",
    "SetTest.p": "permutation over groups, one-sided; 1e-4 is the smallest that 10,000 draws can give",
    "SetTest.drawings": "of each of LoRA and base",
    "SetTest.members": "pictures compared with",
    "SetTest.non_members": "pictures compared with",
    "SetTest.groups": "groups of the side that has fewer",
    "OneRunBound.guesses": "how many of the surest guesses count",
    "OneRunBound.correct": "how many of them are right",
    "OneRunBound.canaries": "tested pictures, or groups of them, whose coin was thrown",
    "OneRunBound.epsilon": "lower bound, 95 %",
    "OneRunBound.ceiling": "the bound if all guesses were right",
    "OneRunBound.gaussian_epsilon": "lower bound that holds for Gaussian mechanisms alone",
}
UNPUBLISHED = ("auc_by_timestep", "most_shown")
NULL_WHERE_PUBLISHED = ("Transfer.threshold", "Finding.auc_aux")


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of findings.json, private and published."""
    content = {name: schema_of(kind, MEANINGS) for name, kind in KEYS.items()}
    content["schema_version"] = {"const": SCHEMA_VERSION}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "findings.json of an audit",
        "type": "object",
        "properties": {name: part | {"description": meaning(name, MEANINGS)} for name, part in content.items()},
        "required": [name for name in KEYS if name not in UNPUBLISHED],
        "additionalProperties": False,
    }


def meaning(key: str, meanings: Mapping[str, str]) -> str:
    """What a key holds. Raises: KeyError for one that was added without a meaning."""
    if key not in meanings:
        raise KeyError(f"'{key}' of the file has no meaning; add it to MEANINGS beside its schema")
    return meanings[key]


def schema_of(kind: Any, meanings: Mapping[str, str]) -> dict[str, Any]:
    """The schema of one type: plain values, dataclasses, unions, sequences, pairs and mappings of them."""
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    if kind is types.NoneType:
        return {"type": "null"}
    if dataclasses.is_dataclass(kind):
        return _schema_of_class(kind, meanings)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        parts = [schema_of(one, meanings) for one in inner]
        if all(set(part) == {"type"} for part in parts):
            return {"type": [part["type"] for part in parts]}
        return {"anyOf": parts}
    if origin is tuple:
        items = schema_of(inner[0], meanings)
        return {"type": "array", "items": items, "minItems": len(inner), "maxItems": len(inner)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": schema_of(inner[1], meanings)}
    return {"type": "array", "items": schema_of(inner[0], meanings)}


def _schema_of_class(kind: Any, meanings: Mapping[str, str]) -> dict[str, Any]:
    """All fields are there, and no others."""
    fields = typing.get_type_hints(kind) | dict(BESIDE.get(kind, {}))
    found = object_of(kind.__name__, fields, meanings)
    if kind is Verdict:
        found["properties"]["word"] = {"enum": list(VERDICTS), "description": meaning("Verdict.word", meanings)}
    return found


def object_of(title: str, fields: Mapping[str, Any], meanings: Mapping[str, str]) -> dict[str, Any]:
    """The schema of an object with exactly these keys.

    Args:
        title: before the keys in ``meanings``.
        fields: type of each key.
    """
    content = {}
    for name, hint in fields.items():
        key = f"{title}.{name}"
        wanted = hint | None if key in NULL_WHERE_PUBLISHED else hint
        content[name] = schema_of(wanted, meanings) | {"description": meaning(key, meanings)}
    return {"type": "object", "properties": content, "required": list(content), "additionalProperties": False}
