"""What (epsilon, delta) leaves to any attack, beside what the attacks on a file that claims it have reached."""

import math
from dataclasses import dataclass

from library.audit.report.audit_result import AuditResult


@dataclass(frozen=True)
class Ceiling:
    """The claim of a file, the largest AUC under it, and the attacks that are above it: none, or there is a bug."""

    epsilon: float
    delta: float
    auc: float
    exceeded_by: list[str]  # names of attacks whose whole 95 % interval lies above

    def sentence(self) -> str:
        """For the report."""
        claim = (
            f"The file claims epsilon {self.epsilon:g} at delta {self.delta:g}: whatever the attack, its AUC is at "
            f"most {self.auc:.4f} where a fair coin put each unit in or out."
        )
        if self.exceeded_by:
            return (
                f"{claim} {len(self.exceeded_by)} attacks lie above that with their whole interval: the claim or its "
                "implementation is wrong. Please report it."
            )
        return f"{claim} No attack here contradicts that."


def auc_ceiling(epsilon: float, delta: float) -> float:
    """Largest AUC between a unit in and out under (epsilon, delta) differential privacy.

    The area over max(0, 1 - delta - e^epsilon x, (1 - delta - x) / e^epsilon) (arXiv 1905.02383, eq. 5).
    """
    growth, rest = math.exp(min(epsilon, 700.0)), 1 - delta
    turn = rest / (1 + growth)
    steep = rest * turn - growth * turn**2 / 2
    flat = (rest - turn) ** 2 / (2 * growth)
    return 1 - steep - flat


def claimed_ceiling(result: AuditResult) -> Ceiling | None:
    """The ceiling of a file that states epsilon and delta; None for any other, and for an infinite epsilon."""
    try:
        epsilon, delta = (float(result.settings[name]) for name in ("dp_epsilon", "dp_delta"))
    except (KeyError, ValueError):
        return None
    if not (0 <= epsilon < math.inf and 0 <= delta < 1):
        return None
    most = auc_ceiling(epsilon, delta)
    found = result.evaluation.findings.values()
    # An AUC below 0.5 is as good as its mirror image
    above = [one.name for one in found if max(one.auc_interval[0], 1 - one.auc_interval[1]) > most]
    return Ceiling(epsilon, delta, most, above)
