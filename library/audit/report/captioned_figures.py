"""Which figures a report shows, each with the words that let it be read alone."""

import re
from collections.abc import Sequence

from library.audit.attacks.attack_result import Finding
from library.audit.attacks.registry import PRIMARY
from library.audit.report import figures, html
from library.audit.report.audit_result import TITLES, AuditResult
from library.audit.report.figures import Stop

CHECKPOINT = re.compile(r" (step)?\d{6,8}$")


def captioned_figures(result: AuditResult, together: Sequence[AuditResult]) -> list[str]:
    """Every figure with its caption."""
    return [*roc_figures(result), *attack_figures(result), *score_exhibits(result), *picture_figures(result),
            *comparison_figures(together)]  # fmt: skip


def roc_figures(result: AuditResult) -> list[str]:
    """The ROC, twice."""
    evaluation, candidates = result.evaluation, result.candidates
    names = list(dict.fromkeys([PRIMARY, result.worst.name, "loss_calibrated", "loss", "gsa2"]))[:5]
    rows = {TITLES[name]: evaluation.scores[name] for name in names if name in evaluation.scores}
    band = "The band is the 95 % interval of the first line."
    return [
        html.figure(figures.roc_figure(rows, candidates, True), "ROC, logarithmic",
                    "How many members are found when few non-members may be accused. Guessing finds (k + 1) / (m + 1) "
                    f"with k of m non-members accused. {band}"),
        html.figure(figures.roc_figure(rows, candidates, False), "ROC", f"The same on plain axes. {band}"),
    ]  # fmt: skip


def attack_figures(result: AuditResult) -> list[str]:
    """What the attacks reach, and at which price: aggregates alone, which a published page shows too."""
    evaluation = result.evaluation
    claimed = result.settings.get("epsilon")
    shadow = ("Blue diamonds: the same attack fitted on a shadow LoRA, by somebody who knows no label of this one. "
              if evaluation.shadow_findings else "")  # fmt: skip
    return [
        html.figure(figures.forest_figure(evaluation, TITLES), "All attacks",
                    f"AUC with 95 % intervals. {shadow}With the LoRA off and for the controls, 0.5 must come out."),
        html.figure(figures.transfer_figure(evaluation, TITLES), "Thresholds in practice",
                    "False accusations on the test side at thresholds fixed on other pictures; dashed: the target."),
        html.figure(figures.epsilon_figure(evaluation, None if claimed is None else float(claimed)),
                    "Empirical epsilon",
                    "What the guesses prove about any differential-privacy claim (95 %): a claim below the lower bound "
                    "is refuted."),
    ]  # fmt: skip


def score_exhibits(result: AuditResult) -> list[str]:
    """What the scores of single pictures show."""
    evaluation, candidates = result.evaluation, result.candidates
    return [
        html.figure(figures.histogram_figure(evaluation.scores[PRIMARY], evaluation.scores_off[PRIMARY], candidates),
                    "Scores", "Where the two colours part, members can be told; below the line the LoRA is off."),
        html.figure(figures.timestep_figure(evaluation.profiles), "AUC against the timestep",
                    "Which noise level gives most away; shown, never chosen from."),
        html.figure(figures.agreement_figure(evaluation.scores, candidates, TITLES), "Which attacks agree",
                    "Rank correlation over the test side's members. Attacks that find the same pictures are red; a "
                    "defence against one says little about a pale one."),
    ]  # fmt: skip


def picture_figures(result: AuditResult) -> list[str]:
    """Who is most exposed."""
    bars, highest = figures.group_bars(result.evaluation.scores[PRIMARY], result.candidates)
    text = ("Groups of member pictures (the split's own, with their number of pictures) by the main attack. An average "
            "hides the worst off. Which group has which number stands beside the most exposed pictures.")  # fmt: skip
    return [html.figure(figures.group_figure(list(bars.values()), highest), "Most exposed groups", text)]


def comparison_figures(together: Sequence[AuditResult]) -> list[str]:
    """Figures of all LoRAs of one call."""
    shown = []
    known = [one for one in together if one.exposures is not None]
    if len(known) > 1:
        trainings: dict[str, list[Stop]] = {}
        for one in known:
            fit = one.utility["member_loss_relative"], one.utility["non_member_loss_relative"]
            stop = Stop(one.exposures or 0.0, one.main.auc, *one.main.auc_interval, *fit)
            trainings.setdefault(CHECKPOINT.sub("", one.label), []).append(stop)  # checkpoints of one folder: one line
        shown.append(html.figure(figures.exposure_figure(trainings), "AUC against exposures",
                                 "How the leak grows while members are seen again and again, and what is learnt "
                                 "meanwhile."))  # fmt: skip
    if len(together) > 1:
        points = {one.label: (one.utility["member_loss_relative"], one.worst.auc_flipped, *flipped_interval(one.worst))
                  for one in together}  # fmt: skip
        shown.append(html.figure(figures.tradeoff_figure(points), "Privacy against fit",
                                 "Best attack against what was learnt, for every LoRA of this call."))  # fmt: skip
    return shown


def flipped_interval(one: Finding) -> tuple[float, float]:
    """The AUC interval on the side of 0.5 where the AUC lies."""
    low, high = one.auc_interval
    return (low, high) if one.auc >= 0.5 else (1 - high, 1 - low)
