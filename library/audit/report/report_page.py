"""The report of one audit: report.html for people, findings.json for programs, scores.csv for statisticians."""

import json
from collections.abc import Sequence
from pathlib import Path

from library.audit.attacks.registry import MOST_EXPOSED, PRIMARY
from library.audit.images.generated import QUALITY
from library.audit.report import html
from library.audit.report.audit_result import ACCESS, TITLES, AuditResult
from library.audit.report.captioned_figures import captioned_figures, epsilon_note
from library.audit.report.figures import group_bars
from library.audit.report.json_csv import as_json, scores_csv
from library.audit.report.most_exposed import ExposedPicture
from library.audit.report.paired_differences import paired_differences
from library.audit.report.verdict import most_shown_sentence
from library.audit.statistics.findings import Finding
from library.audit.statistics.intervals import luck_half_width
from library.audit.statistics.permutation import p_number, p_text
from library.audit.statistics.working_attack import CONTROL_P
from library.tensor_files import private_folder, write_whole

CLASSES = {"leak": "leak", "no evidence": "none", "invalid": "invalid"}
HEADLINES = {"leak": "Leak detected", "no evidence": "No evidence of a leak", "invalid": "Audit invalid"}


def write_report(
    result: AuditResult, together: Sequence[AuditResult], exposed: Sequence[ExposedPicture], folder: Path
) -> Path:
    """Write the three files (0600 in a 0700 folder) and return the page.

    Args:
        together: every LoRA of this call, for the comparisons; ``result`` among them.
    """
    private_folder(folder)
    write_whole(folder / "findings.json", json.dumps(as_json(result, together), indent=1) + "\n", private=True)
    write_whole(folder / "scores.csv", scores_csv(result), private=True)
    write_whole(folder / "report.html", report_html(result, together, exposed), private=True)
    return folder / "report.html"


def report_html(result: AuditResult, together: Sequence[AuditResult], exposed: Sequence[ExposedPicture]) -> str:
    """The page, first screen first."""
    parts = [f"<h1>Membership audit of {html.escape(result.label)}</h1>", *first_screen(result)]
    if len(together) > 1:
        parts += comparison(together, result)
    parts += [html.heading("Figures"), html.figures(captioned_figures(result, together)), *attack_table(result)]
    parts += quality_section(result) + controls_section(result) + epsilon_section(result)
    if exposed:
        parts += risk_section(exposed) + group_section(result)
    return html.page(f"Audit of {result.label}", [*parts, *fine_print(result)])


def summary(result: AuditResult) -> str:
    """The verdict and the main figures for the terminal."""
    main, worst = result.main, result.worst
    verdict = result.evaluation.verdict
    lines = [
        f"{HEADLINES[verdict.word]}. {verdict.sentence}",
        f"  main attack ({TITLES[main.name]}): AUC {area(main)}, {p_text(main.p)}",
        f"  worst attack ({TITLES[worst.name]}): AUC {area(worst)}, LoRA off "
        + ("-" if worst.auc_off is None else f"{worst.auc_off:.2f}")
        + f", {p_text(result.evaluation.p_max)} over all attacks",
        f"  member loss {100 * result.utility['member_loss_relative']:.1f} % of the base's; "
        f"tested on {main.members} members and {main.non_members} non-members",
        *([f"  {said}"] if (said := most_shown_sentence(result.evaluation.most_shown)) else []),
    ]
    return "\n".join(lines)


def interval(low_high: tuple[float, float], digits: int = 2) -> str:
    """[low, high]."""
    return f"[{low_high[0]:.{digits}f}, {low_high[1]:.{digits}f}]"


def area(one: Finding) -> str:
    """AUC with its interval."""
    return f"{one.auc:.2f} {interval(one.auc_interval)}"


def first_screen(result: AuditResult) -> list[str]:
    """The verdict in words, then the figures that a LoRA maker needs to judge it."""
    verdict, worst, utility = result.evaluation.verdict, result.worst, result.utility
    most = result.evaluation.most_shown
    stratum = html.paragraph(most_shown_sentence(most)) if most else ""
    box = (
        f'<section class="verdict {CLASSES[verdict.word]}"><b>{HEADLINES[verdict.word]}</b>'
        f"{html.paragraph(verdict.sentence)}{stratum}{html.paragraph('; '.join(verdict.reasons), small=True)}</section>"
    )
    transfer = result.main.transfer
    exposures = "unknown (the file does not say)" if result.exposures is None else f"{result.exposures:g}"
    if most and result.exposures is not None:
        least, highest = (result.exposures * share for share in (most.least_of_mean, most.share_of_mean))
        exposures = f"{exposures} on average, {least:g} at least, {highest:g} at most"
    pairs = [
        ("Worst attack", TITLES[worst.name]),
        ("AUC of the worst attack (0.5 = guessing) with 95 % interval", area(worst)),
        ("The same over all attacks", p_text(result.evaluation.p_max)),
        ("AUC of the worst attack with the LoRA off", "-" if worst.auc_off is None else f"{worst.auc_off:.2f}"),
        ("Main attack, fixed beforehand", f"{area(result.main)}, {p_text(result.main.p)}"),
        ("Exposures per member picture", exposures),
        ("Member loss (% of the base model's)", f"{100 * utility['member_loss_relative']:.1f} %"),
        ("Non-member loss (% of the base model's)", f"{100 * utility['non_member_loss_relative']:.1f} %"),
        ("Tested on", f"{result.main.members} members, {result.main.non_members} non-members"),
        (
            "Half-width of chance at this sample size (AUC)",
            f"\u00b1{luck_half_width(result.main.effective):.2f}",
        ),
    ]
    if transfer is not None:
        found, wrong = 100 * transfer.tpr, 100 * transfer.fpr
        pairs.append(("Accusing at a threshold from other pictures", f"finds {found:.0f} %, wrong on {wrong:.0f} %"))
    return [box, html.facts(pairs)]


def comparison(together: Sequence[AuditResult], result: AuditResult) -> list[str]:
    """All LoRAs of this call in one table."""
    names = "LoRA, method, exposures, verdict, main AUC, minus the reference's, worst attack, worst AUC, member loss"
    rows = [
        (
            one.label,
            one.method,
            "?" if one.exposures is None else f"{one.exposures:g}",
            one.evaluation.verdict.word,
            area(one.main),
            paired(one, together),
            TITLES[one.worst.name],
            area(one.worst),
            f"{100 * one.utility['member_loss_relative']:.1f} %",
        )
        for one in together
    ]
    text = (
        "The shaded LoRA is the one of this page. Differences are paired (same pictures, noise and bootstrap "
        "draws); the reference is the first undefended LoRA on the same split, else the first."
    )
    table = html.table(names.split(", "), rows, [one is result for one in together])
    return [html.heading("Side by side"), html.paragraph(text, small=True), table]


def paired(one: AuditResult, together: Sequence[AuditResult]) -> str:
    """The main attack's AUC minus the reference's, with its interval."""
    for pair in paired_differences(one, together):
        if pair.attack == PRIMARY:
            return f"{round(pair.difference, 2) + 0.0:+.2f} {interval(pair.interval)}"
    return "-"


def quality_section(result: AuditResult) -> list[str]:
    """Image quality and prompt agreement of the drawings, each figure under its own name."""
    rows = [
        (title, f"{result.utility[name]:.4g}", f"{result.utility[f'{name}_of_base']:.4g}")
        for name, title in QUALITY.items()
        if name in result.utility
    ]
    if not rows:
        return []
    said = [result.facts[name] for name in ("drawings", "image quality", "prompt-image agreement")]
    images = f"{result.utility['drawn_images']:.0f} drawings"
    if "clip_score_of_pictures" in result.utility:
        said.append(f"the pictures themselves reach a CLIP score of {result.utility['clip_score_of_pictures']:.4g}")
    note = "Frechet distances of few pictures are too large; compare them only at the same number."
    text = f"{images}: {'; '.join(said)}. {note}"
    return [
        html.heading("Image quality"),
        html.paragraph(text, small=True),
        html.table(("figure", "LoRA on", "LoRA off"), rows),
    ]


def attack_table(result: AuditResult) -> list[str]:
    """Every attack with all its figures."""
    shadows = result.evaluation.shadow_findings
    names = (
        "attack, access, UNet passes, chosen on aux, AUC, flipped, LoRA off, balanced accuracy, TPR at 5 % FPR, "
        "TPR at 1 % FPR, p"
    )
    columns = [*names.split(", "), *(["AUC, fitted on a shadow"] if shadows else [])]
    rows = []
    for one in result.evaluation.findings.values():
        accuracy = (
            "-"
            if one.transfer is None
            else (f"{one.transfer.balanced_accuracy:.2f} {interval(one.transfer.balanced_accuracy_interval)}")
        )
        off = "-" if one.auc_off is None else f"{one.auc_off:.2f}"
        rows.append(
            (
                TITLES[one.name],
                ACCESS[one.name],
                str(result.passes.get(one.name, "-")),
                one.chosen,
                area(one),
                f"{one.auc_flipped:.2f}",
                off,
                accuracy,
                _rate(one, 0.05),
                _rate(one, 0.01),
                p_number(one.p),
                *((area(shadows[one.name]) if one.name in shadows else "-",) if shadows else ()),
            )
        )
    marked = [one.name == PRIMARY for one in result.evaluation.findings.values()]
    text = (
        "Scores are higher for likelier members. The shaded attack was fixed as the main one beforehand. GB asks "
        "the UNet, GB+base also the public base model, WB reads weights and gradients (anyone who has the file can), "
        "BB only draws pictures. Against a LoRA that leaks nothing even the best attack stays at 0.50."
    )
    return [html.heading("Every attack"), html.paragraph(text, small=True), html.table(columns, rows, marked)]


def _rate(one: Finding, fpr: float) -> str:
    for rate in one.low_rates:
        if rate.fpr == fpr:
            if rate.tpr is None or rate.interval is None:
                return f"needs {rate.needed} non-members"
            return f"{rate.tpr:.2f} {interval(rate.interval)} (guessing {rate.chance:.3f})"
    return "-"


def controls_section(result: AuditResult) -> list[str]:
    """The controls, which must be at chance."""
    evaluation = result.evaluation
    rows = [(one.name, f"{one.auc:.2f} {interval(one.interval)}") for one in evaluation.controls.values()]
    text = (
        f"None of these reads the LoRA's own answers, so each must be at 0.50. Largest deviation among all: "
        f"{p_text(evaluation.controls_p)}; below {CONTROL_P:g} the audit is marked invalid."
    )
    return [html.heading("Controls"), html.paragraph(text), html.table(("control", "AUC"), rows)]


def epsilon_section(result: AuditResult) -> list[str]:
    """One-run epsilon and the dataset-level test."""
    evaluation = result.evaluation
    rows = [
        (
            str(bound.guesses),
            str(bound.correct),
            f"{bound.epsilon:.2f}",
            f"{bound.ceiling:.2f}",
            f"{bound.gaussian_epsilon:.2f}",
        )
        for bound in evaluation.epsilon
    ]
    names = (
        "guesses, correct guesses, lower bound on epsilon, bound if all guesses were correct, "
        "lower bound for Gaussian mechanisms only"
    )
    low = f"{evaluation.dataset_p:.2g}"
    dataset = f"Dataset-level test (was this collection as a whole used?): one-sided p = {low}."
    return [
        html.heading("Empirical epsilon"),
        html.paragraph(epsilon_note(evaluation)),
        html.table(names.split(", "), rows),
        html.paragraph(dataset),
    ]


def risk_section(exposed: Sequence[ExposedPicture]) -> list[str]:
    """The most exposed members."""
    text = (
        f"Member pictures by the attack '{TITLES[MOST_EXPOSED]}', which uses no label. Beside each stands how many "
        "non-members score as high, and how large their share may be: so often would be wrong who accuses all that "
        "score as high. This list names private pictures; keep the folder to yourself."
    )
    if any(risk.drawing for risk in exposed):
        text += " For a drawn caption, the nearest drawing stands below the picture."
    entries = [
        (
            [uri for uri in (risk.thumbnail, risk.drawing) if uri],
            risk.file,
            f"{risk.side}{risk.shown_text()}; passed by {risk.passed_by} of {risk.non_members} non-members: at most "
            f"{100 * risk.bound:.1f} % with 95 % confidence",
        )
        for risk in exposed
    ]
    return [html.heading("Most exposed pictures"), html.paragraph(text), html.pictures(entries)]


def group_section(result: AuditResult) -> list[str]:
    """The number of each group in the figure; a picture that is a group of its own has no name to show."""
    bars, _ = group_bars(result.evaluation.scores[PRIMARY], result.candidates)
    own = set(result.candidates.pixels)
    rows = [(str(number), name) for number, name in enumerate(bars, 1) if name not in own]
    if not rows:
        return []
    return [html.heading("Most exposed groups"), html.table(("number in the figure", "group"), rows)]


def fine_print(result: AuditResult) -> list[str]:
    """How it was measured."""
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items()) or "none stated in the file"
    facts = ", ".join(f"{name} {value}" for name, value in result.facts.items())
    text = (
        "Attacks chose and fitted everything on the aux sides; the test sides were scored once. Intervals are "
        "at 95 % and pay for pictures that come in groups (docs/audit.md defines each); p-values come from dealing "
        "out the labels of groups again. An audit shows what these attacks find, not what no attack could."
    )
    return [
        html.heading("How this was measured"),
        html.paragraph(text),
        html.paragraph(f"Training: {settings}", small=True),
        html.paragraph(f"Audit: {facts}", small=True),
    ]
