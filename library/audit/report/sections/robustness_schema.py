"""What robustness.json holds, key by key: its JSON schema, made from the types of its parts and one meaning per key."""

from collections.abc import Mapping, Sequence
from typing import Any

from library.audit.report.findings_schema import meaning, object_of, schema_of
from library.audit.robustness.leak import LeakFinding
from library.audit.robustness.pictures import SIDES
from library.audit.robustness.questions import DAMAGES, RobustnessRules
from library.audit.robustness.robustness_findings import KINDS, CodeFinding, MaskingCheck, RobustnessFinding
from library.audit.robustness.robustness_result import SCHEMA_VERSION

ATTACKS = (*KINDS, "transfer", "after", *(f"damage_{name}" for name in DAMAGES))
VARIANT = {"name": str, "rank": int, "kept_energy": float}
BESIDE_THE_RULES = {"timesteps": Sequence[int], "strength": float}
KEYS: Mapping[str, Any] = {  # of the file, in its order
    "schema_version": int,
    "sizes": Sequence[float],
    "pictures": Mapping[str, int],
    "groups": int,
    "settings": RobustnessRules,
    "variants": Sequence[Any],
    "findings": Sequence[RobustnessFinding],
    "checks": Sequence[MaskingCheck],
    "code": Sequence[CodeFinding],
    "leaks": Sequence[LeakFinding],
}
MEANINGS = {  # by key, or by class and field
    "schema_version": "of this description; it grows when a key goes away or changes its meaning, not when one "
    "is added",
    "sizes": "of the changes, ascending: the most that a pixel in 0..1 may move, and the share of its own length by "
    "which a text state may",
    "pictures": "number of pictures that were changed, by side",
    "groups": "number of groups that they belong to; intervals count these",
    "settings": "how hard was tried",
    "variants": "the base, the whole LoRA (full), its cuts (rank R), and the LoRA at half strength",
    "findings": "one for each variant, side, attack and size",
    "checks": "one for each variant and each attack by its own gradients: does a share far from 1 say that the "
    "gradients mislead?",
    "code": "the VAE's code attacked, one for each size: the same for every variant, since no LoRA is in it",
    "leaks": "one for each variant: loss against the base on all pictures of the test sides",
    "RobustnessRules.robustness_steps": "steps of projected gradient",
    "RobustnessRules.robustness_restarts": "starts of projected gradient; the best point of all counts",
    "RobustnessRules.generation_steps": "DDIM steps of a whole drawing",
    "RobustnessRules.audit_seed": "of starts and of noise without an aim",
    "RobustnessRules.timesteps": "of 1000: where the denoising error is taken",
    "RobustnessRules.strength": "of img2img: share of the way to pure noise",
    "Variant.name": "base, full, rank R, or half strength",
    "Variant.rank": "the highest of its layers; 0 for the base",
    "Variant.kept_energy": "share of the squared norm of the whole LoRA's change",
    "RobustnessFinding.variant": "name of the variant",
    "RobustnessFinding.side": "all, members-test or non-members-test",
    "RobustnessFinding.attack": "loss, text: by the variant's own gradients, against the picture and against the text "
    "states; transfer: the change of the picture that was found on the base; after: the error itself under the attack "
    "loss; damage_by_*: what drawings from the changed picture move by",
    "RobustnessFinding.size": "of the change",
    "RobustnessFinding.pictures": "number of pictures",
    "RobustnessFinding.groups": "number of groups",
    "RobustnessFinding.value": "relative rise of the error (geometric mean; loss, text, transfer), the error (after), "
    "or the root mean square of what moves, pixels in 0..1 (damage_by_*)",
    "RobustnessFinding.of_noise": "the same by a change of that size without an aim; null where none was asked",
    "RobustnessFinding.on_fresh_noise": "the rise under noise that the attack did not see; null where none was asked",
    "RobustnessFinding.against_full": "ratio to the whole LoRA on the same pictures, below 1: sturdier; null for it",
    "Estimate.value": "mean over pictures",
    "Estimate.low": "95 %, lower end",
    "Estimate.high": "95 %, upper end",
    "MaskingCheck.variant": "name of the variant",
    "MaskingCheck.attack": "loss or text",
    "MaskingCheck.beats_one_step": "share of pictures and sizes where many steps are at least as strong as one",
    "MaskingCheck.beats_noise": "share where they are stronger than a change without an aim",
    "MaskingCheck.grows_with_size": "share of pictures and neighbouring sizes where the larger one is at least as "
    "strong",
    "MaskingCheck.beats_transfer": "share where they are at least as strong as the change that was found on the base; "
    "null for the base and for text states",
    "MaskingCheck.margin_over_transfer": "ratio of the two errors at the largest size; null likewise",
    "CodeFinding.size": "of the change",
    "CodeFinding.distance": "root mean square of what the code moves by, over that of the code",
    "CodeFinding.of_noise": "the same by a change of that size without an aim",
    "CodeFinding.beats_one_step": "share of pictures where many steps are at least as strong as one",
    "CodeFinding.beats_noise": "share of pictures where they are stronger than a change without an aim",
    "LeakFinding.variant": "name of the variant",
    "LeakFinding.members": "tested",
    "LeakFinding.non_members": "tested",
    "LeakFinding.auc": "on the test sides; 0.5 for the base, which is held against itself",
    "LeakFinding.minus_full": "AUC minus the whole LoRA's, paired over the same pictures; null for the whole LoRA",
    "LeakFinding.learnt": "held-out gain: how far the error of the non-members lies below the base's",
}


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of robustness.json."""
    content = {name: schema_of(kind, MEANINGS) for name, kind in KEYS.items() if name != "variants"}
    content["schema_version"] = {"const": SCHEMA_VERSION}
    content["pictures"] = {"type": "object", "properties": {side: {"type": "integer"} for side in SIDES},
                           "required": list(SIDES), "additionalProperties": False}  # fmt: skip
    more = object_of("RobustnessRules", BESIDE_THE_RULES, MEANINGS)
    content["settings"]["properties"] |= more["properties"]
    content["settings"]["required"] += more["required"]
    content["variants"] = {"type": "array", "items": object_of("Variant", VARIANT, MEANINGS)}
    content["findings"]["items"]["properties"]["attack"] |= {"enum": list(ATTACKS)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "robustness.json of an audit",
        "type": "object",
        "properties": {name: content[name] | {"description": meaning(name, MEANINGS)} for name in KEYS},
        "required": list(KEYS),
        "additionalProperties": False,
    }
