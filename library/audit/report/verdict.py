"""The verdict in plain words: leak, no evidence (and what could have hidden), or invalid."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from library.audit.attacks.attack_result import Finding
from library.audit.statistics.intervals import hanley_mcneil_half_width, least_detectable_auc

BAR = 0.55  # an interval must clear it (or 1 - it) to be called a leak
LEAK_P = 0.01
CONTROL_P = 0.01


@dataclass(frozen=True)
class Verdict:
    """What the audit says, and on what grounds."""

    word: str  # leak, no evidence, invalid
    sentence: str
    reasons: Sequence[str]
    least_detectable_auc: float


def leaks(finding: Finding, p: float) -> bool:
    """Significant, and the interval lies above 0.55 or below 0.45."""
    low, high = finding.auc_interval
    return p < LEAK_P and (low > BAR or high < 1 - BAR)


def verdict(
    findings: Mapping[str, Finding],
    primary: str,
    p_max: float,
    controls_p: float,
    failed_control: str,
    notes: Sequence[str],
    uncredited: Sequence[str] = (),
) -> Verdict:
    """Decide. The primary attack was fixed beforehand; the others count through the max-over-attacks p.

    Args:
        p_max: permutation p of the largest deviation among all attacks.
        controls_p: the same among all controls; below 0.01 the audit is invalid.
        notes: reasons that make the audit invalid whatever the figures say.
        uncredited: attacks that fail on the undefended LoRA of this split; they show nothing about a defence.
    """
    main = findings[primary]
    worst = max((one for one in findings.values()), key=lambda one: one.auc_flipped)
    detectable = least_detectable_auc(main.members, main.non_members, BAR)
    size = f"{main.members} members and {main.non_members} non-members"
    if controls_p < CONTROL_P or notes:
        reasons = list(notes)
        if controls_p < CONTROL_P:
            reasons.append(
                f"control '{failed_control}' tells members from non-members without the LoRA "
                f"(p = {controls_p:.4f} over all controls): the two sides differ in themselves"
            )
        return Verdict("invalid", "Nothing can be concluded: " + "; ".join(reasons) + ".", reasons, detectable)
    if leaks(main, main.p) or (leaks(worst, p_max)):
        shown = main if leaks(main, main.p) and main.auc_flipped >= worst.auc_flipped - 0.02 else worst
        inverted = " (inverted: members score lower, which gives them away as well)" if shown.auc < 0.5 else ""
        sentence = (
            f"With this file, a member picture can be told from a non-member in "
            f"{math.floor(100 * shown.auc_flipped)} of 100 pairs{inverted}; 50 would be guessing."
        )
        return Verdict("leak", sentence, [f"{shown.name}: p = {shown.p:.4f}, max over attacks {p_max:.4f}"], detectable)
    width = hanley_mcneil_half_width(0.5, main.members, main.non_members)
    hint = "The attacks do not tell "
    if main.p < LEAK_P:
        low, high = main.auc_interval
        hint = (
            f"The main attack does better than luck (AUC {main.auc:.2f} [{low:.2f}, {high:.2f}], p = {main.p:.4f}), "
            f"but its interval does not clear {BAR:g}, which is asked of a leak: it hardly tells "
        )
    sentence = (
        f"{hint}{size} apart. That is no proof of privacy: in a sample of this size luck alone moves an AUC by "
        f"\u00b1{width:.2f}, and a leak below AUC {detectable:.2f} would mostly go unseen."
    )
    reasons = [f"max-over-attacks p = {p_max:.3f}"]
    if len(uncredited) == len(findings):
        reasons.append("no attack works on the undefended LoRA of this split either, so nothing is shown")
    return Verdict("no evidence", sentence, reasons, detectable)
