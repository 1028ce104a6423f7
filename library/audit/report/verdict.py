"""The verdict in plain words: leak, no evidence (and what could have hidden), or invalid."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from library.audit.report.most_shown import MostShown
from library.audit.statistics.findings import Finding
from library.audit.statistics.intervals import least_detectable_auc, luck_half_width
from library.audit.statistics.permutation import p_text
from library.audit.statistics.working_attack import BAR, CONTROL_P, LEAK_P, attack_works

AS_GOOD = 0.02  # AUC by which the main attack may stay behind the worst and still be the one that is shown


@dataclass(frozen=True)
class Verdict:
    """What the audit says, and on what grounds."""

    word: str  # leak, no evidence, invalid
    sentence: str
    reasons: Sequence[str]
    least_detectable_auc: float


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
        controls_p: the same among all controls; below ``CONTROL_P`` the audit is invalid.
        notes: reasons that make the audit invalid whatever the figures say.
        uncredited: attacks that fail on the undefended LoRA of this split; they show nothing about a defence.
    """
    main, worst = findings[primary], max(findings.values(), key=lambda one: one.auc_flipped)
    detectable = least_detectable_auc(main.effective)
    failed = [
        f"control '{failed_control}' tells members from non-members without the LoRA "
        f"({p_text(controls_p)} over all controls): the two sides differ in themselves"
    ]
    reasons = [*notes, *(failed if controls_p < CONTROL_P else [])]
    if reasons:
        return Verdict("invalid", "Nothing can be concluded: " + "; ".join(reasons) + ".", reasons, detectable)
    if attack_works(main.p, main.auc_interval) or attack_works(p_max, worst.auc_interval):
        nearly_worst = main.auc_flipped >= worst.auc_flipped - AS_GOOD
        shown = main if attack_works(main.p, main.auc_interval) and nearly_worst else worst
        reasons = [f"{shown.name}: {p_text(shown.p)}, over all attacks {p_text(p_max)}"]
        return Verdict("leak", leak_sentence(shown), reasons, detectable)
    reasons = [f"the attack farthest from chance, {worst.name}: {p_text(p_max)} over all attacks"]
    if len(uncredited) == len(findings):
        reasons.append("no attack works on the undefended LoRA of this split either, so nothing is shown")
    return Verdict("no evidence", no_evidence_sentence(main, detectable), reasons, detectable)


def leak_sentence(shown: Finding) -> str:
    """How often the attack is right about a pair."""
    inverted = " (inverted: members score lower, which gives them away as well)" if shown.auc < 0.5 else ""
    return (
        "With this file, an attack tells a member picture from a non-member in "
        f"{math.floor(100 * shown.auc_flipped)} of 100 pairs{inverted}; guessing reaches 50."
    )


def no_evidence_sentence(main: Finding, detectable: float) -> str:
    """What was not found, and what a sample of this size would have missed."""
    sides = f"{main.members} members and {main.non_members} non-members"
    said = f"The attacks do not tell {sides} apart."
    if main.p < LEAK_P:
        low, high = main.auc_interval
        said = (
            f"The main attack does better than luck (AUC {main.auc:.2f} [{low:.2f}, {high:.2f}], {p_text(main.p)}), "
            f"but its interval does not clear {BAR:g}, which a leak must: it hardly tells {sides} apart."
        )
    width = luck_half_width(main.effective)
    return (
        f"{said} That is no proof of privacy: in a sample of this size luck alone moves an AUC by "
        f"\u00b1{width:.2f}, and a leak below AUC {detectable:.2f} would mostly go unseen."
    )


def most_shown_sentence(most: MostShown | None) -> str:
    """What holds for the members that were shown most often; empty where all were shown alike."""
    if most is None:
        return ""
    said = (
        f"The verdict is about the average: {most.pictures} of {most.pictures + most.others} member pictures were "
        f"shown {most.times:g} times as often as the least. "
    )
    if most.finding is None:
        return f"{said}Too few non-members come from where they came, so nothing can be said of them alone."
    low, high = most.finding.auc_interval
    figures = f"AUC {most.finding.auc:.2f} [{low:.2f}, {high:.2f}], {p_text(most.finding.p)}"
    least = least_detectable_auc(most.finding.effective)
    seen = f", where a leak below AUC {least:.2f} would mostly go unseen" if most.word == "no evidence" else ""
    return f"{said}Of these alone: {most.word} ({figures}{seen})."
