"""The report of one audit: report.html for people, findings.json for programs, scores.csv for statisticians."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from library.audit.attacks.registry import MOST_EXPOSED, PRIMARY
from library.audit.images.generated import QUALITY
from library.audit.report import html
from library.audit.report.advice import FOLDER, HEADLINES, what_now
from library.audit.report.audit_result import AuditResult
from library.audit.report.beside import Beside
from library.audit.report.captioned_figures import captioned_figures, course_figures, epsilon_note
from library.audit.report.dp_ceiling import claimed_ceiling
from library.audit.report.figures import group_bars
from library.audit.report.json_csv import as_json, scores_csv
from library.audit.report.learnt import by_heart_text, gain_text, held_out_gain, percent, share_among
from library.audit.report.most_exposed import ExposedPicture
from library.audit.report.paired_differences import paired_differences
from library.audit.report.verdict import most_shown_sentence
from library.audit.report.wording import ACCESS, ACCESS_WORDS, GLOSSARY, TITLES, area, interval, note_of
from library.audit.statistics.findings import Finding
from library.audit.statistics.intervals import luck_half_width
from library.audit.statistics.permutation import p_number, p_text
from library.audit.statistics.working_attack import CONTROL_P, DOUBT_P
from library.tensor_files import private_folder, write_whole

CLASSES = {"leak": "leak", "no evidence": "none", "invalid": "invalid"}
SIDES = ("members-aux", "members-test", "non-members-aux", "non-members-test")


def write_report(
    result: AuditResult,
    together: Sequence[AuditResult],
    exposed: Sequence[ExposedPicture],
    folder: Path,
    beside: Sequence[Beside] = (),
) -> Path:
    """Write the three files (0600 in a 0700 folder) and return the page.

    Args:
        together: every LoRA of this call, for the comparisons; ``result`` among them.
        beside: what else was measured of this LoRA.
    """
    private_folder(folder)
    write_whole(folder / "findings.json", json.dumps(as_json(result, together), indent=1) + "\n", private=True)
    write_whole(folder / "scores.csv", scores_csv(result), private=True)
    write_whole(folder / "report.html", report_html(result, together, exposed, beside), private=True)
    return folder / "report.html"


def report_html(
    result: AuditResult,
    together: Sequence[AuditResult],
    exposed: Sequence[ExposedPicture],
    beside: Sequence[Beside] = (),
) -> str:
    """The page, first screen first."""
    file = result.file
    first = [
        f"<h1>Membership audit of {html.escape(result.label)}</h1>",
        html.paragraph(f"{file.name}, audited on {file.date} with {file.suite}", small=True),
        *first_screen(result, file.place),
    ]
    parts = course_section(together)
    if len(together) > 1:
        parts += comparison(together, result)
    if exposed:
        parts += risk_section(exposed) + group_section(result)
    parts += [html.heading("Figures"), html.figures(captioned_figures(result, together)), *attack_table(result)]
    parts += [part for one in beside for part in one.section()]
    parts += (
        learnt_section(result)
        + quality_section(result)
        + set_section(result)
        + controls_section(result)
        + epsilon_section(result)
        + explanations()
    )
    own = {
        "file": file.name,
        "SHA-256 of the file (`sha256sum FILE`)": file.sha256,
        "base model": file.base,
        **{f"pictures, {side}": str(result.candidates.sides.count(side)) for side in SIDES},
    }
    return html.page(f"Audit of {result.label}", first, [*parts, *provenance_section(result, own)])


def headline(result: AuditResult) -> str:
    """One LoRA in a line of the terminal."""
    main, word = result.main, result.evaluation.verdict.word
    return f"  {word}; main attack ({TITLES[main.name]}): AUC {area(main)}, {p_text(main.p)}"


def summary(result: AuditResult) -> str:
    """The verdict, what to do now and the main figures for the terminal."""
    main, worst, verdict = result.main, result.worst, result.evaluation.verdict
    shown = most_shown_sentence(result.evaluation.most_shown)
    lines = [f"{HEADLINES[verdict.word]}.", verdict.sentence, *([shown] if shown else []), "What to do now:"]
    lines += [
        f"  {number}. {step.replace('`', '')}"
        for number, step in enumerate(what_now(verdict.word, result.file.place), 1)
    ]
    over_all = f"{p_text(result.evaluation.p_max)} over all attacks"
    figures = f"main attack ({TITLES[main.name]}): AUC {area(main)}, {p_text(main.p)}"
    if worst is main:
        lines.append(f"{figures}; it is the strongest, {over_all}")
    else:
        lines += [figures, f"strongest attack ({TITLES[worst.name]}): AUC {area(worst)}, {over_all}"]
    lines.append(f"learnt {gain_text(result.utility)}; by heart {by_heart_text(result.utility)}")
    return "\n".join(lines)


def first_screen(result: AuditResult, place: str = FOLDER) -> list[str]:
    """The verdict in everyday words, what to do now, then the figures that a LoRA maker needs to judge it.

    Args:
        place: what was audited, for the commands.
    """
    verdict, word = result.evaluation.verdict, result.evaluation.verdict.word
    said = [text for text in (verdict.sentence, most_shown_sentence(result.evaluation.most_shown)) if text]
    box = html.verdict(CLASSES[word], HEADLINES[word], said, "; ".join(verdict.reasons), what_now(word, place))
    pairs = [
        *strongest(result),
        (
            "Tested on",
            f"{result.main.members} members, {result.main.non_members} non-members; luck alone moves an AUC by "
            f"\u00b1{luck_half_width(result.main.effective):.2f}",
        ),
        ("Exposures per member picture", exposures_text(result)),
        ("Learnt: how far the error of held-out pictures falls", gain_text(result.utility)),
        ("By heart: how much farther that of members falls", by_heart_text(result.utility)),
    ]
    transfer = result.main.transfer
    if transfer is not None:
        found, wrong = 100 * transfer.tpr, 100 * transfer.fpr
        pairs.append(("Accusing at a threshold from other pictures", f"finds {found:.0f} %, wrong on {wrong:.0f} %"))
    return [box, html.facts(pairs)]


def strongest(result: AuditResult) -> list[tuple[str, str]]:
    """The main attack and the strongest one; one box where they are the same."""
    main, worst = result.main, result.worst
    p_max = f"{p_text(result.evaluation.p_max)} over all attacks"
    off = "" if main.auc_off is None else f"; LoRA off: {main.auc_off:.2f}"
    figures = f"AUC {area(main)}, {p_text(main.p)}{off}"
    if worst is main:
        name = f"Main attack, fixed beforehand, and strongest: {TITLES[main.name]}"
        return [(name, f"{figures}; {p_max}")]
    off = "" if worst.auc_off is None else f"; LoRA off: {worst.auc_off:.2f}"
    return [
        (f"Main attack, fixed beforehand: {TITLES[main.name]}", figures),
        (f"Strongest attack: {TITLES[worst.name]}", f"AUC {area(worst)}, {p_max}{off}"),
    ]


def exposures_text(result: AuditResult) -> str:
    """Exposures as the file states them, to one digit; the least and the most where they differ."""
    most, mean = result.evaluation.most_shown, result.exposures
    if mean is None:
        return "unknown (the file does not say)"
    if most is None:
        return f"about {mean:g}"
    return f"{mean:g} on average, {mean * most.least_of_mean:g} at least, {mean * most.share_of_mean:g} at most"


def course_section(together: Sequence[AuditResult]) -> list[str]:
    """The curve over saved files, on top."""
    drawn = course_figures(together)
    return [html.heading("The course of the training"), html.figures(drawn)] if drawn else []


def comparison(together: Sequence[AuditResult], result: AuditResult) -> list[str]:
    """All LoRAs of this call in one table."""
    names = (
        "LoRA, method, exposures, verdict, learnt (held-out gain), of plain LoRA's best, main attack's AUC, "
        "minus the reference's, strongest attack, its AUC"
    )
    rows = [
        (
            one.label,
            one.method,
            "?" if one.exposures is None else f"{one.exposures:g}",
            one.evaluation.verdict.word,
            percent(held_out_gain(one.utility)),
            share_among(one, together),
            area(one.main),
            paired(one, together),
            TITLES[one.worst.name],
            area(one.worst),
        )
        for one in together
    ]
    text = (
        "The shaded LoRA is the one of this page. Differences are paired (same pictures, noise and bootstrap draws); "
        "the reference is the first undefended LoRA on this split, else the first. Plain LoRA's best is the largest "
        "held-out gain of the undefended LoRAs on that split, saved files of earlier epochs among them, taken as exact."
    )
    table = html.table(names.split(", "), rows, [one is result for one in together])
    return [html.heading("Side by side"), html.paragraph(text, small=True), table]


def paired(one: AuditResult, together: Sequence[AuditResult]) -> str:
    """The main attack's AUC minus the reference's, with its interval."""
    for pair in paired_differences(one, together):
        if pair.attack == PRIMARY:
            return f"{round(pair.difference, 2) + 0.0:+.2f} {interval(pair.interval)}"
    return "-"


def learnt_section(result: AuditResult) -> list[str]:
    """What was learnt, what of it by heart, and how well members fit, each under its own name."""
    utility = result.utility
    members, held_out = (f"{utility[f'{side}_loss_relative']:.1%}" for side in ("member", "non_member"))
    rows = [
        ("learnt (held-out gain)", gain_text(utility)),
        ("by heart (members' gain beyond it)", by_heart_text(utility)),
        ("fit (loss of all members, in percent of the base's)", members.replace("%", " %")),
        ("the same of all non-members", held_out.replace("%", " %")),
    ]
    text = (
        "What is learnt of held-out pictures is what the LoRA is useful for. The members' loss only says how well they "
        "fit: what is learnt by heart lowers it too, so it is no utility."
    )
    return [
        html.heading("What was learnt"),
        html.paragraph(text, small=True),
        html.table(("figure", "value"), rows),
    ]


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


def set_section(result: AuditResult) -> list[str]:
    """Whether the drawings as a set come nearer to the members as a set."""
    found = result.set_test
    if found is None:
        return []
    nearer = "nearer to the members" if found.difference < 0 else "no nearer to the members"
    text = (
        f"{found.drawings} drawings of captions of both sides, against {found.members} members and {found.non_members} "
        f"pictures held out, in features of {found.space}: with the LoRA they come {nearer} than the base's do "
        f"({p_text(found.p)}, one-sided, labels dealt out to whole groups). A LoRA that teachers have taught can pass "
        "the attacks on single pictures and fail this test (arXiv 2502.02970). It does not move the verdict."
    )
    rows = [
        ("members", f"{found.to_members:.4g}", f"{found.to_members_of_base:.4g}"),
        ("held out", f"{found.to_non_members:.4g}", f"{found.to_non_members_of_base:.4g}"),
    ]
    return [
        html.heading("Set-level test"),
        html.paragraph(text, small=True),
        html.table(("squared MMD of the drawings to", "LoRA on", "LoRA off"), rows),
    ]


def attack_table(result: AuditResult) -> list[str]:
    """Every attack with all its figures, then what each of them is."""
    shadows = result.evaluation.shadow_findings
    names = "attack, AUC, LoRA off, TPR at 5 % FPR, TPR at 1 % FPR, balanced accuracy, p"
    columns = [*names.split(", "), *(["AUC, fitted on a shadow"] if shadows else [])]
    findings = result.evaluation.findings.values()
    rows = [attack_row(one, shadows) for one in findings]
    marked = [one.name == PRIMARY for one in findings]
    figures = (
        "Scores are higher for likelier members. The shaded attack was fixed as the main one beforehand. Against a "
        "LoRA that leaks nothing even the best attack stays at 0.50. Balanced accuracy is that of a threshold from the "
        "aux side."
    )
    described = [
        (
            TITLES[one.name],
            note_of(one.name).sentence,
            f"{ACCESS_WORDS[ACCESS[one.name]]} ({result.passes.get(one.name, '-')} passes)",
            one.chosen,
            note_of(one.name).reference,
        )
        for one in findings
    ]
    access = (
        "Who can make an attack, with how many passes through the UNet per picture. Whoever has the file can ask the "
        "model and read its weights; who only sees its pictures cannot."
    )
    heads = ("attack", "what it does", "who can make it", "chosen on the aux side", "source")
    return [
        html.heading("Every attack"),
        html.paragraph(figures, small=True),
        html.table(columns, rows, marked),
        html.heading("What each attack does"),
        html.paragraph(access, small=True),
        html.table(heads, described, marked),
    ]


def attack_row(one: Finding, shadows: Mapping[str, Finding]) -> tuple[str, ...]:
    """One attack's figures."""
    flipped = f" (flipped {one.auc_flipped:.2f})" if one.auc < 0.5 else ""
    accuracy = "-"
    if one.transfer is not None:
        accuracy = f"{one.transfer.balanced_accuracy:.2f} {interval(one.transfer.balanced_accuracy_interval)}"
    return (
        TITLES[one.name],
        f"{area(one)}{flipped}",
        "-" if one.auc_off is None else f"{one.auc_off:.2f}",
        _rate(one, 0.05),
        _rate(one, 0.01),
        accuracy,
        p_number(one.p),
        *((area(shadows[one.name]) if one.name in shadows else "-",) if shadows else ()),
    )


def _rate(one: Finding, fpr: float) -> str:
    for rate in one.low_rates:
        if rate.fpr == fpr:
            if rate.tpr is None:
                return f"needs {rate.needed} non-members"
            sure = interval(rate.interval) if rate.interval else "(no interval)"
            return f"{rate.tpr:.2f} {sure} (guessing {rate.chance:.3f})"
    return "-"


def controls_section(result: AuditResult) -> list[str]:
    """The controls, which must be at chance."""
    evaluation = result.evaluation
    rows = [(one.name, f"{one.auc:.2f} {interval(one.interval)}") for one in evaluation.controls.values()]
    text = (
        "None of these reads the LoRA's own answers, so each must be at 0.50. Largest deviation among all: "
        f"{p_text(evaluation.controls_p)}; below {CONTROL_P:g} the audit is marked invalid, below {DOUBT_P:g} the "
        "verdict says that one is at the edge."
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
    dataset = (
        "Was this collection as a whole used? Dataset-level test: a one-sided Welch t-test on the main attack's "
        "mean scores "
        "by group of pictures, members against non-members of the test sides (after Dubinski et al. 2024, arXiv "
        "2411.12858): "
        f"p = {evaluation.dataset_p:.2g}."
    )
    ceiling = claimed_ceiling(result)
    return [
        html.heading("Empirical epsilon"),
        *([] if ceiling is None else [html.paragraph(ceiling.sentence())]),
        html.paragraph(epsilon_note(evaluation)),
        html.table(names.split(", "), rows),
        html.heading("Dataset-level test"),
        html.paragraph(dataset),
    ]


def risk_section(exposed: Sequence[ExposedPicture]) -> list[str]:
    """The most exposed members."""
    text = (
        f"Member pictures by the attack '{TITLES[MOST_EXPOSED]}', which uses no label. Beside each stands how many "
        "non-members score as high, and how large their share may be: so often would be wrong who accuses all that "
        "score as high. No accusation of a single picture is a proof. This list names private pictures; keep the "
        "folder "
        "to yourself."
    )
    entries = [
        (
            [("training picture", risk.thumbnail), *([("nearest drawing", risk.drawing)] if risk.drawing else [])],
            risk.file,
            risk.in_words(),
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


def explanations() -> list[str]:
    """The words of the page."""
    return [html.heading("Words"), html.definitions(GLOSSARY)]


def provenance_section(result: AuditResult, own: Mapping[str, str]) -> list[str]:
    """What was audited, with what, and how it was measured.

    Args:
        own: facts of the file, in words.
    """
    text = (
        "Attacks chose and fitted everything on the aux sides; the test sides were scored once. Intervals have 95 % "
        "confidence and p-values come from dealing out the labels again, both by group of pictures. An audit "
        "shows what "
        "these attacks find, not what no attack could."
    )
    rows = [
        *own.items(),
        ("date", result.file.date),
        ("suite", result.file.suite),
        ("method", result.method),
        (
            "exposures per member picture",
            exposures_text(result) + ("" if result.exposures is None else ", to one digit"),
        ),
        *((f"training: {name}", str(value)) for name, value in sorted(result.settings.items())),
        *((f"audit: {name}", str(value)) for name, value in result.facts.items()),
    ]
    shown = [(name.replace("`", ""), value) for name, value in rows]
    return [html.heading("What was audited, and how"), html.paragraph(text), html.table(("what", "value"), shown)]
