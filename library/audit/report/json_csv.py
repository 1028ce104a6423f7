"""The report for programs: findings.json (aggregates) and scores.csv (one line per picture)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from library.audit.attacks.registry import PRIMARY
from library.audit.report.audit_result import AuditResult
from library.audit.report.dp_ceiling import claimed_ceiling
from library.audit.report.paired_differences import paired_differences
from library.audit.report.wording import ACCESS, TITLES
from library.audit.statistics.findings import Finding

SCHEMA_VERSION = 2  # of findings.json; grows when a key goes away or changes its meaning


def as_json(result: AuditResult, together: Sequence[AuditResult] = ()) -> dict[str, Any]:
    """All aggregate figures; no picture, caption, or name of a picture, group or folder.

    Args:
        together: every LoRA of the call, for the paired differences.
    """
    evaluation = result.evaluation
    sides = list(result.candidates.sides)
    return {
        "schema_version": SCHEMA_VERSION,
        "suite": result.file.suite,
        "date": result.file.date,
        "checkpoint_sha256": result.file.sha256,
        "label": result.alias,
        "method": result.method,
        "settings": typed_settings(result.settings),
        "exposures_per_image": result.exposures,
        "most_shown": _most_shown_json(result),
        "defended": result.defended,
        "verdict": asdict(evaluation.verdict),
        "primary": PRIMARY,
        "worst": result.worst.name,
        "p_max_over_attacks": evaluation.p_max,
        "findings": [_finding_json(result, one) for one in evaluation.findings.values()],
        "findings_with_a_shadow": [_finding_json(result, one) for one in evaluation.shadow_findings.values()],
        "paired_differences": [asdict(pair) for pair in paired_differences(result, together)],
        "controls": [asdict(one) for one in evaluation.controls.values()],
        "p_max_over_controls": evaluation.controls_p,
        "epsilon_lower_bounds": [asdict(bound) for bound in evaluation.epsilon],
        "epsilon_is_valid": not evaluation.epsilon_doubt,
        "epsilon_doubt": evaluation.epsilon_doubt,
        "dp_ceiling": None if (ceiling := claimed_ceiling(result)) is None else asdict(ceiling),
        "dataset_level_p": evaluation.dataset_p,
        "set_level_test": None if result.set_test is None else asdict(result.set_test),
        "auc_by_timestep": {name: [list(row) for row in rows] for name, rows in evaluation.profiles.items()},
        "utility": dict(result.utility),
        "images": {side: sides.count(side) for side in sorted(set(sides))},
        "groups_tested": len(
            {group for group, side in zip(result.candidates.groups, sides, strict=True) if side.endswith("-test")}
        ),
        "facts": dict(result.facts),
    }


def typed_settings(settings: Mapping[str, str]) -> dict[str, bool | int | float | str]:
    """What a LoRA's metadata states of its training, in the order of the names: numbers and switches as such."""
    return {name: _typed(settings[name]) for name in sorted(settings)}


def _typed(text: str) -> bool | int | float | str:
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text


def _most_shown_json(result: AuditResult) -> dict[str, Any] | None:
    """The members that were shown most often; None where all were shown alike."""
    most = result.evaluation.most_shown
    if most is None:
        return None
    found = None if most.finding is None else _finding_json(result, most.finding)
    return {**asdict(most), "finding": found, "verdict": most.word}


def _finding_json(result: AuditResult, one: Finding) -> dict[str, Any]:
    return {
        **asdict(one),
        "title": TITLES[one.name],
        "access": ACCESS[one.name],
        "unet_passes_per_image": result.passes.get(one.name),
        "score_direction": "higher = more likely a member",
    }


def scores_csv(result: AuditResult) -> str:
    """One line per picture: hash of its pixels, side, number of its group, every score with the LoRA on and off."""
    evaluation, candidates = result.evaluation, result.candidates
    numbers = {name: number for number, name in enumerate(dict.fromkeys(candidates.groups), 1)}
    on, off = evaluation.scores, evaluation.scores_off
    columns = [*on, *(f"{name}_off" for name in off)]
    values = np.column_stack([*on.values(), *off.values()])
    lines = [",".join(["pixels", "side", "group", *columns])]
    for place, (pixels, side) in enumerate(zip(candidates.pixels, candidates.sides, strict=True)):
        group = str(numbers[candidates.groups[place]])
        lines.append(",".join([pixels, side, group, *(f"{value:.8g}" for value in values[place])]))
    return "\n".join(lines) + "\n"
