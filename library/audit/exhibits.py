"""Which figures a report shows, each with the words that let it be read alone."""

import re
from collections.abc import Sequence

from library.audit import course_figures, figures, page
from library.audit.battery import PRIMARY
from library.audit.course_figures import Stop
from library.audit.findings import Finding
from library.audit.outcome import TITLES, Outcome

CHECKPOINT = re.compile(r" (step)?\d{6,8}$")


def exhibits(outcome: Outcome, together: Sequence[Outcome]) -> list[str]:
    """Every figure with its caption."""
    return [*roc_exhibits(outcome), *attack_exhibits(outcome), *score_exhibits(outcome), *picture_exhibits(outcome),
            *shared_exhibits(together)]  # fmt: skip


def roc_exhibits(outcome: Outcome) -> list[str]:
    """The ROC, twice."""
    examination, candidates = outcome.examination, outcome.candidates
    names = list(dict.fromkeys([PRIMARY, outcome.worst.name, "loss_calibrated", "loss", "gsa2"]))[:5]
    rows = {TITLES[name]: examination.scores[name] for name in names if name in examination.scores}
    band = "The band is the 95 % interval of the first line."
    return [
        page.figure(figures.roc_figure(rows, candidates, True), "ROC, logarithmic",
                    "How many members are found when few non-members may be accused. Guessing finds (k + 1) / (m + 1) "
                    f"with k of m non-members accused. {band}"),
        page.figure(figures.roc_figure(rows, candidates, False), "ROC", f"The same on plain axes. {band}"),
    ]  # fmt: skip


def attack_exhibits(outcome: Outcome) -> list[str]:
    """What the attacks reach, and at which price: aggregates alone, which a published page shows too."""
    examination = outcome.examination
    claimed = outcome.settings.get("epsilon")
    shadow = ("Blue diamonds: the same attack fitted on a shadow LoRA, by somebody who knows no label of this one. "
              if examination.shadow_findings else "")  # fmt: skip
    return [
        page.figure(figures.forest_figure(examination, TITLES), "All attacks",
                    f"AUC with 95 % intervals. {shadow}With the LoRA off and for the controls, 0.5 must come out."),
        page.figure(figures.transfer_figure(examination, TITLES), "Thresholds in practice",
                    "False accusations on the test side at thresholds fixed on other pictures; dashed: the target."),
        page.figure(figures.epsilon_figure(examination, None if claimed is None else float(claimed)),
                    "Empirical epsilon",
                    "What the guesses prove about any differential-privacy claim (95 %): a claim below the lower bound "
                    "is refuted."),
    ]  # fmt: skip


def score_exhibits(outcome: Outcome) -> list[str]:
    """What the scores of single pictures show."""
    examination, candidates = outcome.examination, outcome.candidates
    return [
        page.figure(figures.histogram_figure(examination.scores[PRIMARY], examination.scores_off[PRIMARY], candidates),
                    "Scores", "Where the two colours part, members can be told; below the line the LoRA is off."),
        page.figure(figures.timestep_figure(examination.profiles), "AUC against the timestep",
                    "Which noise level gives most away; shown, never chosen from."),
        page.figure(figures.agreement_figure(examination.scores, candidates, TITLES), "Which attacks agree",
                    "Rank correlation over the test side's members. Attacks that find the same pictures are red; a "
                    "defence against one says little about a pale one."),
    ]  # fmt: skip


def picture_exhibits(outcome: Outcome) -> list[str]:
    """Who is most exposed."""
    bars, highest = figures.group_bars(outcome.examination.scores[PRIMARY], outcome.candidates)
    text = ("Groups of member pictures (the split's own, with their number of pictures) by the main attack. An average "
            "hides the worst off. Which group has which number stands beside the most exposed pictures.")  # fmt: skip
    return [page.figure(figures.group_figure(list(bars.values()), highest), "Most exposed groups", text)]


def shared_exhibits(together: Sequence[Outcome]) -> list[str]:
    """Figures of all LoRAs of one call."""
    shown = []
    known = [one for one in together if one.exposures is not None]
    if len(known) > 1:
        courses: dict[str, list[Stop]] = {}
        for one in known:
            fit = one.utility["member_loss_relative"], one.utility["non_member_loss_relative"]
            stop = Stop(one.exposures or 0.0, one.main.auc, *one.main.auc_interval, *fit)
            courses.setdefault(CHECKPOINT.sub("", one.label), []).append(stop)  # checkpoints of one folder: one line
        shown.append(page.figure(course_figures.course_figure(courses), "AUC against exposures",
                                 "How the leak grows while members are seen again and again, and what is learnt "
                                 "meanwhile."))  # fmt: skip
    if len(together) > 1:
        points = {one.label: (one.utility["member_loss_relative"], one.worst.auc_flipped, *flipped_interval(one.worst))
                  for one in together}  # fmt: skip
        shown.append(page.figure(course_figures.tradeoff_figure(points), "Privacy against fit",
                                 "Best attack against what was learnt, for every LoRA of this call."))  # fmt: skip
    return shown


def flipped_interval(one: Finding) -> tuple[float, float]:
    """The AUC interval on the side of 0.5 where the AUC lies."""
    low, high = one.auc_interval
    return (low, high) if one.auc >= 0.5 else (1 - high, 1 - low)
