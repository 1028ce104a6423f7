"""The robustness of one LoRA at its ranks, as one value, and as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from library.audit.robustness.damage import STRENGTH
from library.audit.robustness.objectives import TIMESTEPS
from library.audit.robustness.questions import RobustnessRules
from library.audit.robustness.ranks import Variant
from library.audit.robustness.robustness_findings import CodeFinding, Estimate, MaskingCheck, RobustnessFinding

SCHEMA_VERSION = 1  # of robustness.json; grows when a key goes away or changes its meaning


@dataclass(frozen=True)
class RobustnessResult:
    """All that was measured."""

    variants: Sequence[Variant]
    sizes: Sequence[float]
    findings: Sequence[RobustnessFinding]
    checks: Sequence[MaskingCheck]
    code: Sequence[CodeFinding]
    learnt: Mapping[str, Estimate]  # held-out gain by variant
    pictures: Mapping[str, int]  # by side
    groups: int
    rules: RobustnessRules

    def of(self, variant: str, attack: str, size: float, side: str = "all") -> RobustnessFinding:
        """One finding."""
        wanted = (variant, attack, size, side)
        return next(one for one in self.findings if (one.variant, one.attack, one.size, one.side) == wanted)

    @property
    def main_size(self) -> float:
        """The size that is named in one line: the upper one of the middle."""
        return self.sizes[len(self.sizes) // 2]


def as_json(result: RobustnessResult) -> dict[str, Any]:
    """Aggregate figures alone; no picture, caption, or name of a picture, group or folder."""
    return {
        "schema_version": SCHEMA_VERSION,
        "sizes": list(result.sizes),
        "pictures": dict(result.pictures),
        "groups": result.groups,
        "settings": asdict(result.rules) | {"timesteps": list(TIMESTEPS), "strength": STRENGTH},
        "variants": [{"name": one.name, "rank": one.rank, "kept_energy": one.kept_energy} for one in result.variants],
        "findings": [asdict(one) for one in result.findings],
        "checks": [asdict(one) for one in result.checks],
        "code": [asdict(one) for one in result.code],
        "learnt": {name: asdict(one) for name, one in result.learnt.items()},
    }
