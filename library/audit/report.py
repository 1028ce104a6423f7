"""The report of one audit: report.html for people, findings.json for programs, scores.csv for statisticians."""

import json
from collections.abc import Sequence
from pathlib import Path

from library.audit import page
from library.audit.battery import PRIMARY
from library.audit.exhibits import exhibits
from library.audit.figures import group_bars
from library.audit.findings import Finding
from library.audit.generation import QUALITY
from library.audit.intervals import hanley_mcneil_half_width
from library.audit.outcome import ACCESS, TITLES, Outcome
from library.audit.pairing import paired_differences
from library.audit.plain_files import as_json, scores_csv
from library.audit.risk_list import Risk
from library.tensor_files import private_folder, write_whole

CLASSES = {"leak": "leak", "no evidence": "none", "invalid": "invalid"}
HEADLINES = {"leak": "Leak detected", "no evidence": "No evidence of a leak", "invalid": "Audit invalid"}


def write_report(outcome: Outcome, together: Sequence[Outcome], risks: Sequence[Risk], folder: Path) -> Path:
    """Write the three files (0600 in a 0700 folder) and return the page.

    Args:
        together: every LoRA of this call, for the comparisons; ``outcome`` among them.
    """
    private_folder(folder)
    write_whole(folder / "findings.json", json.dumps(as_json(outcome, together), indent=1) + "\n", private=True)
    write_whole(folder / "scores.csv", scores_csv(outcome), private=True)
    write_whole(folder / "report.html", report_html(outcome, together, risks), private=True)
    return folder / "report.html"


def report_html(outcome: Outcome, together: Sequence[Outcome], risks: Sequence[Risk]) -> str:
    """The page, first screen first."""
    parts = [f"<h1>Membership audit of {page.escape(outcome.label)}</h1>", *first_screen(outcome)]
    if len(together) > 1:
        parts += comparison(together, outcome)
    parts += [page.heading("Figures"), page.figures(exhibits(outcome, together)), *attack_table(outcome)]
    parts += quality_section(outcome) + controls_section(outcome) + epsilon_section(outcome)
    if risks:
        parts += risk_section(risks) + group_section(outcome)
    return page.page(f"Audit of {outcome.label}", [*parts, *fine_print(outcome)])


def summary(outcome: Outcome) -> str:
    """The verdict and the main figures for the terminal."""
    main, worst = outcome.main, outcome.worst
    verdict = outcome.examination.verdict
    lines = [
        f"{HEADLINES[verdict.word]}. {verdict.sentence}",
        f"  main attack ({TITLES[main.name]}): AUC {area(main)}, p = {main.p:.4f}",
        f"  worst attack ({TITLES[worst.name]}): AUC {area(worst)}, LoRA off "
        + ("-" if worst.auc_off is None else f"{worst.auc_off:.2f}"),
        f"  member loss {100 * outcome.utility['member_loss_relative']:.1f} % of the base's; "
        f"tested on {main.members} members and {main.non_members} non-members",
    ]
    return "\n".join(lines)


def interval(low_high: tuple[float, float], digits: int = 2) -> str:
    """[low, high]."""
    return f"[{low_high[0]:.{digits}f}, {low_high[1]:.{digits}f}]"


def area(one: Finding) -> str:
    """AUC with its interval."""
    return f"{one.auc:.2f} {interval(one.auc_interval)}"


def first_screen(outcome: Outcome) -> list[str]:
    """The verdict in words, then what a LoRA maker needs to judge it."""
    verdict, worst, utility = outcome.examination.verdict, outcome.worst, outcome.utility
    box = (
        f'<section class="verdict {CLASSES[verdict.word]}"><b>{HEADLINES[verdict.word]}</b>'
        f"{page.paragraph(verdict.sentence)}{page.paragraph('; '.join(verdict.reasons), small=True)}</section>"
    )
    transfer = outcome.main.transfer
    exposures = "unknown (the file does not say)" if outcome.exposures is None else f"{outcome.exposures:g}"
    pairs = [
        ("Worst attack", TITLES[worst.name]),
        ("its AUC (0.5 = guessing) with 95 % interval", area(worst)),
        ("the same with the LoRA off", "-" if worst.auc_off is None else f"{worst.auc_off:.2f}"),
        ("Main attack, fixed beforehand", f"{area(outcome.main)}, p = {outcome.main.p:.4f}"),
        ("Exposures per member picture", exposures),
        ("Member loss, of the base's", f"{100 * utility['member_loss_relative']:.1f} %"),
        ("Non-member loss, of the base's", f"{100 * utility['non_member_loss_relative']:.1f} %"),
        ("Tested on", f"{outcome.main.members} members, {outcome.main.non_members} non-members"),
        (
            "Luck alone moves an AUC of this sample by",
            f"\u00b1{hanley_mcneil_half_width(0.5, outcome.main.members, outcome.main.non_members):.2f}",
        ),
    ]
    if transfer is not None:
        found, wrong = 100 * transfer.tpr, 100 * transfer.fpr
        pairs.append(("Accusing at a threshold from other pictures", f"finds {found:.0f} %, wrong on {wrong:.0f} %"))
    return [box, page.facts(pairs)]


def comparison(together: Sequence[Outcome], outcome: Outcome) -> list[str]:
    """All LoRAs of this call in one table."""
    columns = ("LoRA", "method", "exposures", "verdict", "main AUC", "minus the reference's", "worst attack",
               "worst AUC", "member loss")  # fmt: skip
    rows = [
        (
            one.label,
            one.method,
            "?" if one.exposures is None else f"{one.exposures:g}",
            one.examination.verdict.word,
            area(one.main),
            paired(one, together),
            TITLES[one.worst.name],
            area(one.worst),
            f"{100 * one.utility['member_loss_relative']:.1f} %",
        )
        for one in together
    ]
    text = ("The shaded LoRA is the one of this page. Differences are paired (same pictures, noise and bootstrap "
            "draws); the reference is the first undefended LoRA on the same split, else the first.")  # fmt: skip
    table = page.table(columns, rows, [one is outcome for one in together])
    return [page.heading("Side by side"), page.paragraph(text, small=True), table]


def paired(one: Outcome, together: Sequence[Outcome]) -> str:
    """The main attack's AUC minus the reference's, with its interval."""
    for pair in paired_differences(one, together):
        if pair.attack == PRIMARY:
            return f"{round(pair.difference, 2) + 0.0:+.2f} {interval(pair.interval)}"
    return "-"


def quality_section(outcome: Outcome) -> list[str]:
    """Image quality and prompt agreement of what was drawn, each figure under its own name."""
    rows = [
        (title, f"{outcome.utility[name]:.4g}", f"{outcome.utility[f'{name}_of_base']:.4g}")
        for name, title in QUALITY.items()
        if name in outcome.utility
    ]
    if not rows:
        return []
    said = [outcome.facts[name] for name in ("drawings", "image quality", "prompt-image agreement")]
    images = f"{outcome.utility['drawn_images']:.0f} drawings"
    if "clip_score_of_pictures" in outcome.utility:
        said.append(f"the pictures themselves reach a CLIP score of {outcome.utility['clip_score_of_pictures']:.4g}")
    note = "Frechet distances of few pictures are too large; compare them only at the same number."
    text = f"{images}: {'; '.join(said)}. {note}"
    return [page.heading("Image quality"), page.paragraph(text, small=True),
            page.table(("figure", "LoRA on", "LoRA off"), rows)]  # fmt: skip


def attack_table(outcome: Outcome) -> list[str]:
    """Every attack with all its figures."""
    shadows = outcome.examination.shadow_findings
    columns = ("attack", "access", "UNet passes", "chosen on aux", "AUC", "flipped", "LoRA off", "balanced accuracy",
               "TPR at 5 % FPR", "TPR at 1 % FPR", "p", *(("AUC, fitted on a shadow",) if shadows else ()))  # fmt: skip
    rows = []
    for one in outcome.examination.findings.values():
        accuracy = (
            "-"
            if one.transfer is None
            else (f"{one.transfer.balanced_accuracy:.2f} {interval(one.transfer.balanced_accuracy_interval)}")
        )
        off = "-" if one.auc_off is None else f"{one.auc_off:.2f}"
        rows.append((
            TITLES[one.name], ACCESS[one.name], str(outcome.passes.get(one.name, "-")), one.chosen, area(one),
            f"{one.auc_flipped:.2f}", off, accuracy, _rate(one, 0.05), _rate(one, 0.01), f"{one.p:.4f}",
            *((area(shadows[one.name]) if one.name in shadows else "-",) if shadows else ()),
        ))  # fmt: skip
    marked = [one.name == PRIMARY for one in outcome.examination.findings.values()]
    text = ("Scores are higher for likelier members. The shaded attack was fixed as the main one beforehand. GB asks "
            "the UNet, GB+base also the public base model, WB reads weights and gradients (all can who have the file), "
            "BB only draws pictures. A perfect attack on a private LoRA has AUC 0.50.")  # fmt: skip
    return [page.heading("Every attack"), page.paragraph(text, small=True), page.table(columns, rows, marked)]


def _rate(one: Finding, fpr: float) -> str:
    for rate in one.low_rates:
        if rate.fpr == fpr:
            if rate.tpr is None or rate.interval is None:
                return f"needs {rate.needed} non-members"
            return f"{rate.tpr:.2f} {interval(rate.interval)} (guessing {rate.chance:.3f})"
    return "-"


def controls_section(outcome: Outcome) -> list[str]:
    """What must be at chance."""
    examination = outcome.examination
    rows = [(one.name, f"{one.auc:.2f} {interval(one.interval)}") for one in examination.controls.values()]
    text = (f"None of these reads the LoRA's own answers, so each must sit at 0.50. Largest deviation among all: "
            f"p = {examination.controls_p:.3f}; below 0.01 the audit is marked invalid.")  # fmt: skip
    return [page.heading("Controls"), page.paragraph(text), page.table(("control", "AUC"), rows)]


def epsilon_section(outcome: Outcome) -> list[str]:
    """One-run epsilon and the dataset-level test."""
    examination = outcome.examination
    note = (
        f"The numbers are indicative, no valid bound: {examination.epsilon_doubt}."
        if examination.epsilon_doubt
        else "Each group of pictures entered by a fair coin, so this is a valid one-run audit of the test sides."
    )
    rows = [
        (str(bound.guesses), str(bound.correct), f"{bound.epsilon:.2f}", f"{bound.ceiling:.2f}",
         f"{bound.gaussian_epsilon:.2f}")
        for bound in examination.epsilon
    ]  # fmt: skip
    columns = ("guesses", "right", "epsilon at least", "if all were right", "at least, Gaussian mechanisms only")
    low = f"{examination.dataset_p:.2g}"
    dataset = f"Dataset-level test (was this collection as a whole used?): one-sided p = {low}."
    return [page.heading("Empirical epsilon"), page.paragraph(note), page.table(columns, rows), page.paragraph(dataset)]


def risk_section(risks: Sequence[Risk]) -> list[str]:
    """The most exposed members."""
    text = ("Member pictures with the highest scores of the main attack. The percentage says how many non-members "
            "score as high: at 0 % an attacker could accuse this picture and be wrong on none of them. This list names "
            "private pictures; keep the folder to yourself.")  # fmt: skip
    if any(risk.drawing for risk in risks):
        text += " Where its caption was drawn, the nearest drawing stands below the picture."
    entries = [
        ([uri for uri in (risk.thumbnail, risk.drawing) if uri], risk.file,
         f"passed by {100 * risk.passed_by:.0f} % of non-members")
        for risk in risks
    ]  # fmt: skip
    return [page.heading("Most exposed pictures"), page.paragraph(text), page.pictures(entries)]


def group_section(outcome: Outcome) -> list[str]:
    """Which group has which number in the figure; a picture that is a group of its own has no name to show."""
    bars, _ = group_bars(outcome.examination.scores[PRIMARY], outcome.candidates)
    own = set(outcome.candidates.pixels)
    rows = [(str(number), name) for number, name in enumerate(bars, 1) if name not in own]
    if not rows:
        return []
    return [page.heading("Most exposed groups"), page.table(("number in the figure", "group"), rows)]


def fine_print(outcome: Outcome) -> list[str]:
    """How it was measured."""
    settings = ", ".join(f"{name} {value}" for name, value in outcome.settings.items()) or "none stated in the file"
    facts = ", ".join(f"{name} {value}" for name, value in outcome.facts.items())
    text = ("Everything chosen or fitted was chosen on the aux sides; the test sides were scored once. Intervals are "
            "95 % bootstraps over groups of pictures, Clopper-Pearson at fixed thresholds; p-values deal the labels of "
            "groups out anew. An audit shows what these attacks find, not what no attack could.")  # fmt: skip
    return [
        page.heading("How this was measured"),
        page.paragraph(text),
        page.paragraph(f"Training: {settings}", small=True),
        page.paragraph(f"Audit: {facts}", small=True),
    ]
