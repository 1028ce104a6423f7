"""The report for programs: findings.json (aggregates) and scores.csv (one line per picture)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from library.audit.battery import PRIMARY
from library.audit.findings import Finding
from library.audit.outcome import ACCESS, TITLES, Outcome
from library.audit.pairing import paired_differences


def as_json(outcome: Outcome, together: Sequence[Outcome] = ()) -> dict[str, Any]:
    """All aggregate figures; no picture, caption, or name of a picture, group or folder.

    Args:
        together: every LoRA of the call, for the paired differences.
    """
    examination = outcome.examination
    sides = list(outcome.candidates.sides)
    return {
        "format": 1,
        "label": outcome.alias,
        "method": outcome.method,
        "settings": dict(outcome.settings),
        "exposures_per_image": outcome.exposures,
        "defended": outcome.defended,
        "verdict": asdict(examination.verdict),
        "primary": PRIMARY,
        "worst": outcome.worst.name,
        "p_max_over_attacks": examination.p_max,
        "findings": [_finding_json(outcome, one) for one in examination.findings.values()],
        "findings_with_a_shadow": [_finding_json(outcome, one) for one in examination.shadow_findings.values()],
        "paired_differences": [asdict(pair) for pair in paired_differences(outcome, together)],
        "controls": [asdict(one) for one in examination.controls.values()],
        "p_max_over_controls": examination.controls_p,
        "epsilon_lower_bounds": [asdict(bound) for bound in examination.epsilon],
        "epsilon_is_valid": not examination.epsilon_doubt,
        "epsilon_doubt": examination.epsilon_doubt,
        "dataset_level_p": examination.dataset_p,
        "auc_by_timestep": {name: [list(row) for row in rows] for name, rows in examination.profiles.items()},
        "utility": dict(outcome.utility),
        "images": {side: sides.count(side) for side in sorted(set(sides))},
        "groups_tested": len({group for group, side in zip(outcome.candidates.groups, sides, strict=True)
                              if side.endswith("-test")}),
        "facts": dict(outcome.facts),
    }  # fmt: skip


def _finding_json(outcome: Outcome, one: Finding) -> dict[str, Any]:
    return {
        **asdict(one),
        "title": TITLES[one.name],
        "access": ACCESS[one.name],
        "unet_passes_per_image": outcome.passes.get(one.name),
        "score_direction": "higher = more likely a member",
    }


def scores_csv(outcome: Outcome) -> str:
    """One line per picture: hash of its pixels, side, every score with the LoRA on and off."""
    examination = outcome.examination
    on, off = examination.scores, examination.scores_off
    columns = [*on, *(f"{name}_off" for name in off)]
    values = np.column_stack([*on.values(), *off.values()])
    lines = [",".join(["pixels", "side", *columns])]
    for place, (pixels, side) in enumerate(zip(outcome.candidates.pixels, outcome.candidates.sides, strict=True)):
        lines.append(",".join([pixels, side, *(f"{value:.8g}" for value in values[place])]))
    return "\n".join(lines) + "\n"
