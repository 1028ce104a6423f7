"""What was learnt, in words: the gain on held-out pictures is the utility; what members gain beyond it is by heart."""

from collections.abc import Mapping, Sequence

from library.audit.report.audit_result import AuditResult
from library.audit.statistics.gain import Share

Utility = Mapping[str, float]


def held_out_gain(utility: Utility) -> Share:
    """How far the error of the held-out test pictures falls, with its interval."""
    return utility["held_out_gain"], utility["held_out_gain_low"], utility["held_out_gain_high"]


def by_heart(utility: Utility) -> Share:
    """How much farther that of the test members falls, with its interval."""
    return utility["learnt_by_heart"], utility["learnt_by_heart_low"], utility["learnt_by_heart_high"]


def percent(share: Share) -> str:
    """ "47.0 % [45.9, 48.0]"."""
    value, low, high = (f"{round(100 * part, 1) + 0.0:.1f}" for part in share)  # no "-0.0"
    return f"{value} % [{low}, {high}]"


def gain_text(utility: Utility) -> str:
    """The held-out gain with its interval and number of pictures."""
    return f"{percent(held_out_gain(utility))}, {utility['held_out_pictures']:.0f} held-out pictures"


def by_heart_text(utility: Utility) -> str:
    """What is learnt by heart, with its interval and number of pictures."""
    return f"{percent(by_heart(utility))}, {utility['member_pictures']:.0f} members"


def best_plain_gain(loras: Sequence[tuple[bool | None, Utility]]) -> float | None:
    """The largest held-out gain of the LoRAs without a defence; None where there is none, or none that learnt.

    Args:
        loras: of one split: whether a defence was on (None: unknown), and what was learnt.
    """
    gains = [utility["held_out_gain"] for defended, utility in loras if defended is False]
    return max(gains) if gains and max(gains) > 0 else None


def share_of_best(utility: Utility, best: float | None) -> Share | None:
    """The held-out gain as a share of plain LoRA's best, which is taken as exact."""
    if best is None:
        return None
    value, low, high = (part / best for part in held_out_gain(utility))
    return value, low, high


def whole_percent(share: Share | None) -> str:
    """ "87 % [85, 89]", or a dash."""
    return "-" if share is None else "{:.0f} % [{:.0f}, {:.0f}]".format(*(round(100 * part) for part in share))


def share_among(one: AuditResult, together: Sequence[AuditResult]) -> str:
    """A LoRA's gain as a share of plain LoRA's best among those that were audited on the same pictures."""
    here = [
        (other.defended, other.utility)
        for other in together
        if (other.candidates.pixels, other.candidates.sides) == (one.candidates.pixels, one.candidates.sides)
    ]
    return whole_percent(share_of_best(one.utility, best_plain_gain(here)))
