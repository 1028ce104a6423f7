"""Which figures a report shows, each with a caption that explains it alone."""

import re
from collections.abc import Sequence

from library.audit.attacks.registry import PRIMARY
from library.audit.report import figures, html
from library.audit.report.audit_result import AuditResult
from library.audit.report.evaluation import Evaluation
from library.audit.report.figures import Stop
from library.audit.report.learnt import held_out_gain
from library.audit.report.wording import TITLES
from library.audit.statistics.findings import Finding

CHECKPOINT = re.compile(r" (step)?\d{6,8}$")


def captioned_figures(result: AuditResult, together: Sequence[AuditResult]) -> list[str]:
    """Every figure with its caption, but for the course over saved files, which stands on top."""
    return [
        *roc_figures(result),
        *attack_figures(result),
        *score_figures(result),
        *picture_figures(result),
        *comparison_figures(together),
    ]


def roc_figures(result: AuditResult) -> list[str]:
    """The ROC on logarithmic and on plain axes."""
    evaluation, candidates = result.evaluation, result.candidates
    names = list(dict.fromkeys([PRIMARY, result.worst.name, "loss_calibrated", "loss", "gsa2"]))[:5]
    rows = {TITLES[name]: evaluation.scores[name] for name in names if name in evaluation.scores}
    band = "The band is the 95 % interval of the first line."
    return [
        html.figure(
            figures.roc_figure(rows, candidates, True),
            "ROC, logarithmic",
            "How many members are found when few non-members may be accused. Guessing finds (k + 1) / (m + 1) "
            f"with k of m non-members accused. {band}",
        ),
        html.figure(figures.roc_figure(rows, candidates, False), "ROC", f"The same on plain axes. {band}"),
    ]


def attack_figures(result: AuditResult) -> list[str]:
    """What the attacks reach, and at which price: only aggregates, so a published page shows them too."""
    evaluation = result.evaluation
    claimed = result.settings.get("dp_epsilon")
    shadow = (
        "Blue diamonds: the same attack fitted on a shadow LoRA, by an attacker who knows no label of this one. "
        if evaluation.shadow_findings
        else ""
    )
    return [
        html.figure(
            figures.forest_figure(evaluation, TITLES),
            "All attacks",
            f"AUC with 95 % intervals. {shadow}With the LoRA off and for the controls, the AUC must be 0.5.",
        ),
        html.figure(
            figures.transfer_figure(evaluation, TITLES),
            "Thresholds in practice",
            "False accusations on the test side at thresholds fixed on other pictures; dashed: the target.",
        ),
        html.figure(
            figures.epsilon_figure(evaluation, None if claimed is None else float(claimed)),
            "Empirical epsilon",
            epsilon_note(evaluation),
        ),
    ]


def epsilon_note(evaluation: Evaluation) -> str:
    """What the empirical epsilon is worth on this split: the one sentence of figure and text."""
    if evaluation.epsilon_doubt:
        return f"These figures are indicative and not a valid bound: {evaluation.epsilon_doubt}."
    return (
        "A fair coin put each group of pictures in or out, so this is a valid one-run audit of the test sides (95 %): "
        "a claim of differential privacy below the lower bound is refuted."
    )


def score_figures(result: AuditResult) -> list[str]:
    """Figures of the scores of single pictures."""
    evaluation, candidates = result.evaluation, result.candidates
    numbered = ", ".join(f"{place} {TITLES[name]}" for place, name in enumerate(evaluation.scores, 1))
    return [
        html.figure(
            figures.histogram_figure(evaluation.scores[PRIMARY], evaluation.scores_off[PRIMARY], candidates),
            "Scores",
            "Where the two colours separate, an attacker recognises members. Heights are shares of each side; "
            "below the "
            "line the LoRA is off.",
        ),
        html.figure(
            figures.timestep_figure(evaluation.profiles),
            "AUC against the timestep",
            "Which noise level leaks most (x: timestep of the noise). Shown only; no attack selects by it.",
        ),
        html.figure(
            figures.agreement_figure(evaluation.scores, candidates, TITLES),
            "Which attacks agree",
            "Rank correlation over the members of the test side. Red pairs find the same pictures; a defence "
            f"against one attack of a pale pair shows little about the other. {numbered}.",
        ),
    ]


def picture_figures(result: AuditResult) -> list[str]:
    """The most exposed groups."""
    bars, highest = figures.group_bars(result.evaluation.scores[PRIMARY], result.candidates)
    text = (
        "Groups of member pictures (the split's own, with their number of pictures) by the main attack. An average "
        "hides the most exposed picture of a group. Names of groups may be private: the table beside the most exposed "
        "pictures says which group has which number."
    )
    return [html.figure(figures.group_figure(list(bars.values()), highest), "Most exposed groups", text)]


def trainings_of(together: Sequence[AuditResult], known: bool) -> dict[str, list[Stop]]:
    """The saved files of each training.

    Args:
        known: take those that state their exposures; else all, in the order of their files.
    """
    trainings: dict[str, list[Stop]] = {}
    for one in together:
        if known and one.exposures is None:
            continue
        stops = trainings.setdefault(CHECKPOINT.sub("", one.label), [])  # checkpoints of one folder: one line
        place = one.exposures if known and one.exposures is not None else len(stops) + 1
        learnt = held_out_gain(one.utility)
        stops.append(Stop(place, one.main.auc, *one.main.auc_interval, learnt, one.utility["member_gain"]))
    return trainings


def course_figures(together: Sequence[AuditResult]) -> list[str]:
    """AUC and held-out gain against exposures, where several files state theirs, else against the order of saved files;
    the figure tells most, so it stands on top."""
    known = sum(one.exposures is not None for one in together) > 1
    trainings = trainings_of(together, known)
    if not known and all(len(stops) < 2 for stops in trainings.values()):
        return []
    text = (
        "How the leak grows with every time that members are seen, and what the LoRA learns at the same time: while "
        "the gain on held-out pictures grows it learns the subject, and where that stands still or falls while the AUC "
        "grows it learns the pictures. Between the two lower lines lies what is learnt by heart. The best stop looks "
        "better here than it is, because it is chosen by the pictures it is measured on."
    )
    rounded = " Exposures are stated to one digit." if known else ""
    drawn = figures.exposure_figure(trainings, known)
    return [html.figure(drawn, "AUC and held-out gain against exposures", f"{text}{rounded}")]


def comparison_figures(together: Sequence[AuditResult]) -> list[str]:
    """Figures of all LoRAs of one call."""
    if len(together) < 2:
        return []
    points = {
        one.label: (held_out_gain(one.utility), (one.worst.auc_flipped, *flipped_interval(one.worst)))
        for one in together
    }
    return [
        html.figure(
            figures.tradeoff_figure(points),
            "Privacy against what was learnt",
            "The strongest attack against the gain on held-out pictures, for every LoRA of this call; lines are 95 % "
            "intervals. Best is right and low.",
        )
    ]


def flipped_interval(one: Finding) -> tuple[float, float]:
    """The AUC interval on the side of 0.5 where the AUC lies."""
    low, high = one.auc_interval
    return (low, high) if one.auc >= 0.5 else (1 - high, 1 - low)
