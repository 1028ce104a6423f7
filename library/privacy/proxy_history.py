"""The checks of a run: whether the proxy attacker ever beat chance (else there was no defence), and the gap."""

from dataclasses import dataclass, field, fields
from statistics import NormalDist
from typing import Any

from torch import Tensor

from library.privacy.gap import GapCheck


@dataclass(frozen=True)
class ProxyCheck:
    """One check of the proxy on the aux sides, averaged over several fixed draws per image."""

    epoch: int
    balanced_accuracy: float
    members: int  # images
    non_members: int  # images

    def standard_error(self) -> float:
        """Standard error of the balanced accuracy at chance."""
        return 0.25 * (1 / self.members + 1 / self.non_members) ** 0.5

    def is_above_chance(self, level: float) -> bool:
        """Whether a one-sided test at this level finds the accuracy above 0.5."""
        return self.balanced_accuracy > 0.5 + NormalDist().inv_cdf(1 - level) * self.standard_error()


def check_proxy(epoch: int, member_margins: Tensor, non_member_margins: Tensor) -> ProxyCheck:
    """Balanced accuracy at margin 0; a margin of exactly 0 counts half.

    Args:
        member_margins: [M] mean margins of members-aux, one for each image.
        non_member_margins: [N] the same of non-members-aux.
    """
    accused = _share_above_zero(member_margins)
    acquitted = 1 - _share_above_zero(non_member_margins)
    return ProxyCheck(epoch, (accused + acquitted) / 2, len(member_margins), len(non_member_margins))


def _share_above_zero(margins: Tensor) -> float:
    return float(((margins > 0).float() + 0.5 * (margins == 0).float()).mean())


@dataclass
class ProxyHistory:
    """The checks of a run, each of one validation pass."""

    checks: list[ProxyCheck] = field(default_factory=list)
    gaps: list[GapCheck] = field(default_factory=list)

    def best(self) -> ProxyCheck | None:
        """The check with the highest balanced accuracy."""
        return max(self.checks, key=lambda check: check.balanced_accuracy, default=None)

    def beat_chance(self, level: float = 0.05) -> bool:
        """Whether a check is above chance: a one-sided test, corrected for the number of checks (Bonferroni)."""
        return any(check.is_above_chance(level / len(self.checks)) for check in self.checks)

    def has_an_opponent(self, level: float = 0.05) -> bool:
        """Whether the proxy has beaten chance at any time; checks that came later take nothing back.

        The bar only rises, so a check that clears it at any time cleared it when it was made.
        """
        return any(check.is_above_chance(level / number) for number, check in enumerate(self.checks, 1))

    def remember(self, checks: list[dict[str, Any]], gaps: list[dict[str, Any]]) -> None:
        """Add the checks of the run that this one continues."""
        self.checks += [_taken(ProxyCheck, check) for check in checks]
        self.gaps += [_taken(GapCheck, gap) for gap in gaps]

    def word(self) -> str:
        """The verdict in the LoRA's metadata."""
        return "plain" if not self.checks else "proxy beat chance" if self.beat_chance() else "undefended"

    def verdict(self) -> str:
        """What the end of a run says: whether the defence had an opponent, and what that means."""
        best = self.best()
        if best is None:
            return "no proxy attacker ran: this is an ordinary LoRA without a defence"
        figure = (
            f"balanced accuracy {best.balanced_accuracy:.3f} on {best.members} + {best.non_members} aux images "
            f"in epoch {best.epoch}"
        )
        if self.beat_chance():
            return (
                f"the proxy attacker beat chance (best: {figure}):\n"
                "  the defence had an opponent; that is not privacy, which only the audit measures"
            )
        return (
            f"WARNING: the proxy attacker never beat chance (best: {figure}):\n"
            "  this run counts as UNDEFENDED. Raise attack_lr or k_steps, or train longer"
        )


def _taken(kind: Any, values: dict[str, Any]) -> Any:
    """A check of a state; keys of another version are left out."""
    return kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})
