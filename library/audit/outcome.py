"""One audited LoRA with all that the report, the JSON and the tables say about it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from library.audit.battery import ATTACKS, PRIMARY
from library.audit.evidence import Candidates, Evidence
from library.audit.examination import Examination
from library.audit.findings import Finding

TITLES = {attack.name: attack.title for attack in ATTACKS} | {
    "lira": "LiRA with shadow LoRAs",
    "drawings": "Drawings near the picture (VAE space)",
}
ACCESS = {attack.name: attack.access for attack in ATTACKS} | {"lira": "GB+base, shadow LoRAs", "drawings": "BB"}


@dataclass(frozen=True)
class Outcome:
    """The audit of one LoRA file."""

    label: str
    method: str
    settings: Mapping[str, str]  # what the LoRA's metadata states of its training
    exposures: float | None  # per member picture; None where the file does not say
    defended: bool | None  # None: unknown
    examination: Examination
    candidates: Candidates
    utility: Mapping[str, float]
    facts: Mapping[str, str]  # profile, hashes, versions, seconds
    passes: Mapping[str, int]  # UNet passes per picture, by attack

    @property
    def main(self) -> Finding:
        """The finding of the attack that was fixed beforehand."""
        return self.examination.findings[PRIMARY]

    @property
    def worst(self) -> Finding:
        """The finding farthest from chance, among those measured on all test pictures."""
        measured = [self.examination.findings[name] for name in self.examination.scores]
        return max(measured, key=lambda one: one.auc_flipped)


def adaptation_utility(evidence: Evidence, candidates: Candidates) -> dict[str, float]:
    """Mean loss on members and non-members with the LoRA, as a share of the base's under the same noise."""
    on, off = evidence.losses("on").mean(1), evidence.losses("off").mean(1)
    members = candidates.is_member
    return {
        "member_loss": float(on[members].mean()),
        "member_loss_of_base": float(off[members].mean()),
        "member_loss_relative": float(on[members].mean() / off[members].mean()),
        "non_member_loss_relative": float(on[~members].mean() / off[~members].mean()),
    }


def as_json(outcome: Outcome) -> dict[str, Any]:
    """All aggregate figures; no picture, name or caption."""
    examination = outcome.examination
    sides = list(outcome.candidates.sides)
    return {
        "format": 1,
        "label": outcome.label,
        "method": outcome.method,
        "settings": dict(outcome.settings),
        "exposures_per_image": outcome.exposures,
        "defended": outcome.defended,
        "verdict": asdict(examination.verdict),
        "primary": PRIMARY,
        "worst": outcome.worst.name,
        "p_max_over_attacks": examination.p_max,
        "findings": [_finding_json(outcome, one) for one in examination.findings.values()],
        "controls": [asdict(one) for one in examination.controls.values()],
        "p_max_over_controls": examination.controls_p,
        "epsilon_lower_bounds": [asdict(bound) for bound in examination.epsilon],
        "epsilon_is_valid": examination.epsilon_is_valid,
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
    """One line per picture: hash of its pixels, side, group, every score with the LoRA on and off."""
    examination = outcome.examination
    on, off = examination.scores, examination.scores_off
    columns = [*on, *(f"{name}_off" for name in off)]
    values = np.column_stack([*on.values(), *off.values()])
    lines = [",".join(["pixels", "side", *columns])]
    for place, (pixels, side) in enumerate(zip(outcome.candidates.pixels, outcome.candidates.sides, strict=True)):
        lines.append(",".join([pixels, side, *(f"{value:.8g}" for value in values[place])]))
    return "\n".join(lines) + "\n"


def stamp_facts(outcome: Outcome) -> dict[str, str]:
    """The measured figures for the LoRA's metadata: aggregates only."""
    main, worst = outcome.main, outcome.worst

    def area(one: Finding) -> str:
        return f"{one.auc:.3f} [{one.auc_interval[0]:.3f}, {one.auc_interval[1]:.3f}]"

    known = [rate for rate in main.low_rates if rate.tpr is not None and rate.interval is not None]
    facts = {
        "audit_verdict": outcome.examination.verdict.word,
        "audit_auc": area(main),
        "audit_worst_attack": worst.name,
        "audit_worst_auc": area(worst),
        "audit_p_max": f"{outcome.examination.p_max:.4f}",
        "audit_images": f"{main.members}+{main.non_members}",
        "audit_profile": outcome.facts["profile"],
    }
    for rate in known:
        assert rate.interval is not None
        facts[f"audit_tpr_at_{rate.fpr:g}_fpr"] = f"{rate.tpr:.3f} [{rate.interval[0]:.3f}, {rate.interval[1]:.3f}]"
    return {f"ss_privacy_{name}": text for name, text in facts.items()}
