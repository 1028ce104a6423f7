"""The verdict in plain words: leak, no evidence (and what could have hidden), or invalid."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from library.audit.report.most_shown import MostShown
from library.audit.report.wording import TITLES, area
from library.audit.statistics.findings import Finding
from library.audit.statistics.intervals import least_detectable_auc
from library.audit.statistics.permutation import p_text
from library.audit.statistics.working_attack import BAR, CONTROL_P, DOUBT_P, LEAK_P, attack_works

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
        controls_p: the same among all controls; below ``CONTROL_P`` the audit is invalid, below ``DOUBT_P`` the verdict
            says that one is at the edge.
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
    doubt = edge_sentence(failed_control, controls_p) if controls_p < DOUBT_P else ""
    if attack_works(main.p, main.auc_interval) or attack_works(p_max, worst.auc_interval):
        nearly_worst = main.auc_flipped >= worst.auc_flipped - AS_GOOD
        shown = main if attack_works(main.p, main.auc_interval) and nearly_worst else worst
        reasons = [f"{TITLES[shown.name]}: AUC {area(shown)}, {p_text(shown.p)}; over all attacks {p_text(p_max)}"]
        return Verdict("leak", leak_sentence(shown) + doubt, reasons, detectable)
    reasons = [
        f"{TITLES[main.name]}: AUC {area(main)}, {p_text(main.p)}; "
        f"the attack farthest from chance, {TITLES[worst.name]}: {p_text(p_max)} over all attacks"
    ]
    if len(uncredited) == len(findings):
        reasons.append("no attack works on the undefended LoRA of this split either, so nothing is shown")
    return Verdict("no evidence", no_evidence_sentence(main, detectable) + doubt, reasons, detectable)


def edge_sentence(control: str, p: float) -> str:
    """What to think of a control that is too far from chance for comfort and not far enough to fail."""
    return (
        f" One control is at the edge: '{control}' ({p_text(p)} over all controls). Luck does so in one of "
        f"{1 / DOUBT_P:.0f} sound audits; an audit of a fresh split tells."
    )


def of_100_pairs(shown: Finding) -> str:
    """How often the attack is right about a pair, with its interval, rounded outwards."""
    low, high = shown.auc_interval if shown.auc >= 0.5 else (1 - shown.auc_interval[1], 1 - shown.auc_interval[0])
    return f"{math.floor(100 * low + 1e-9)} to {math.ceil(100 * high - 1e-9)} of 100 pairs"


def leak_sentence(shown: Finding) -> str:
    """What somebody who has the file can do."""
    inverted = " The attack is inverted: members score lower, which gives them away as well." if shown.auc < 0.5 else ""
    return (
        "Whoever has this file can tell pictures that it was trained on from others. Shown one of each, an "
        "attack picks "
        f"the right one in {of_100_pairs(shown)}; guessing reaches 50.{inverted}"
    )


def no_evidence_sentence(main: Finding, detectable: float) -> str:
    """What was not found, and what a sample of this size would have missed."""
    said = (
        "The attacks could not tell pictures that this file was trained on from others. Shown one of each, the main "
        f"attack picks the right one in {of_100_pairs(main)}; guessing reaches 50."
    )
    if main.p < LEAK_P:
        said = (
            f"The main attack does better than luck (AUC {area(main)}, {p_text(main.p)}), "
            f"but its interval does not clear {BAR:g}, which a leak must: it is right in {of_100_pairs(main)}, where "
            "guessing reaches 50."
        )
    unseen = (
        f"an attack that is right in fewer than {math.ceil(100 * detectable - 1e-9)} of 100 pairs (AUC "
        f"{detectable:.2f}) "
        "would mostly go unseen"
        if detectable < 1
        else "even a large leak could go unseen"
    )
    return f"{said} With {main.members} members and {main.non_members} non-members to test on, {unseen}."


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
    figures = f"AUC {area(most.finding)}, {p_text(most.finding.p)}"
    least = least_detectable_auc(most.finding.effective)
    seen = f", where a leak below AUC {least:.2f} would mostly go unseen" if most.word == "no evidence" else ""
    return f"{said}Of these alone: {most.word} ({figures}{seen})."
