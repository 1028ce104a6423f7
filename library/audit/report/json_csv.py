"""The report for programs: findings.json (aggregates) and scores.csv (one line per picture)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from library.audit.attacks.registry import PRIMARY
from library.audit.report.audit_result import ACCESS, TITLES, AuditResult
from library.audit.report.most_shown import MostShown
from library.audit.report.paired_differences import paired_differences
from library.audit.statistics.findings import Finding


def as_json(result: AuditResult, together: Sequence[AuditResult] = ()) -> dict[str, Any]:
    """All aggregate figures; no picture, caption, or name of a picture, group or folder.

    Args:
        together: every LoRA of the call, for the paired differences.
    """
    evaluation = result.evaluation
    sides = list(result.candidates.sides)
    return {
        "format": 1,
        "label": result.alias,
        "method": result.method,
        "settings": dict(result.settings),
        "exposures_per_image": result.exposures,
        "most_shown": _most_shown_json(evaluation.most_shown),
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
        "dataset_level_p": evaluation.dataset_p,
        "auc_by_timestep": {name: [list(row) for row in rows] for name, rows in evaluation.profiles.items()},
        "utility": dict(result.utility),
        "images": {side: sides.count(side) for side in sorted(set(sides))},
        "groups_tested": len(
            {group for group, side in zip(result.candidates.groups, sides, strict=True) if side.endswith("-test")}
        ),
        "facts": dict(result.facts),
    }


def _most_shown_json(most: MostShown | None) -> dict[str, Any] | None:
    """The members that were shown most often; None where all were shown alike."""
    return None if most is None else {**asdict(most), "verdict": most.word}


def _finding_json(result: AuditResult, one: Finding) -> dict[str, Any]:
    return {
        **asdict(one),
        "title": TITLES[one.name],
        "access": ACCESS[one.name],
        "unet_passes_per_image": result.passes.get(one.name),
        "score_direction": "higher = more likely a member",
    }


def scores_csv(result: AuditResult) -> str:
    """One line per picture: hash of its pixels, side, every score with the LoRA on and off."""
    evaluation = result.evaluation
    on, off = evaluation.scores, evaluation.scores_off
    columns = [*on, *(f"{name}_off" for name in off)]
    values = np.column_stack([*on.values(), *off.values()])
    lines = [",".join(["pixels", "side", *columns])]
    for place, (pixels, side) in enumerate(zip(result.candidates.pixels, result.candidates.sides, strict=True)):
        lines.append(",".join([pixels, side, *(f"{value:.8g}" for value in values[place])]))
    return "\n".join(lines) + "\n"
