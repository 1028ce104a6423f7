"""The robustness of one LoRA at its ranks, as one value, and as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from library.audit.robustness.damage import STRENGTH
from library.audit.robustness.leak import LeakFinding
from library.audit.robustness.objectives import TIMESTEPS
from library.audit.robustness.questions import RobustnessRules
from library.audit.robustness.ranks import Variant
from library.audit.robustness.robustness_findings import CodeFinding, Estimate, MaskingCheck, RobustnessFinding
from library.errors import InputError

SCHEMA_VERSION = 1  # of robustness.json; grows when a key goes away or changes its meaning


@dataclass(frozen=True)
class RobustnessResult:
    """All that was measured."""

    variants: Sequence[Variant]
    sizes: Sequence[float]
    findings: Sequence[RobustnessFinding]
    checks: Sequence[MaskingCheck]
    code: Sequence[CodeFinding]
    leaks: Sequence[LeakFinding]  # one for each variant
    pictures: Mapping[str, int]  # by side
    groups: int
    rules: RobustnessRules

    def of(self, variant: str, attack: str, size: float, side: str = "all") -> RobustnessFinding:
        """One finding."""
        wanted = (variant, attack, size, side)
        return next(one for one in self.findings if (one.variant, one.attack, one.size, one.side) == wanted)

    def leak_of(self, variant: str) -> LeakFinding:
        """What one variant tells and learnt."""
        return next(one for one in self.leaks if one.variant == variant)

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
        "leaks": [asdict(one) for one in result.leaks],
    }


def result_of(content: Mapping[str, Any], file: str) -> RobustnessResult:
    """What ``as_json`` wrote, without the tensors of the variants.

    Args:
        file: for messages.

    Raises:
        InputError: a file of another version, or one that was changed since.
    """
    try:
        if content["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"{file} has schema_version {content['schema_version']}, and this version reads {SCHEMA_VERSION}; "
                "audit the LoRA again"
            )
        return RobustnessResult(
            variants=[Variant(one["name"], one["rank"], one["kept_energy"], None) for one in content["variants"]],
            sizes=content["sizes"],
            findings=[RobustnessFinding(**_estimates(one)) for one in content["findings"]],
            checks=[MaskingCheck(**_estimates(one)) for one in content["checks"]],
            code=[CodeFinding(**_estimates(one)) for one in content["code"]],
            leaks=[LeakFinding(**_estimates(one)) for one in content["leaks"]],
            pictures=content["pictures"],
            groups=content["groups"],
            rules=RobustnessRules(**{one.name: content["settings"][one.name] for one in fields(RobustnessRules)}),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not what an audit of robustness writes ({error}); audit the LoRA again") from error


def _estimates(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a finding; what is a table there is an estimate."""
    return {name: Estimate(**value) if isinstance(value, Mapping) else value for name, value in entry.items()}
