"""What to do now: the one source of the lines in the terminal, the report and the docs, and of the exit status."""

from collections.abc import Sequence

from library.audit.report.audit_result import AuditResult
from library.plain_text import for_shell

HEADLINES = {
    "leak": "Leak: do not share this file",
    "no evidence": "No evidence of a leak, which is no proof of privacy",
    "invalid": "Invalid: this audit says nothing about the file",
}
FOLDER = "OUTPUT_DIR"  # in the steps, where nobody knows the folder
STEPS = {
    "leak": (
        "Do not share the file, and withdraw it where it is shared already.",
        f"See whether an earlier epoch leaks less: `bash audit.sh {FOLDER} --checkpoints all`. The best of several "
        "epochs looks better than it is on the pictures that it was chosen by: train anew for that many epochs, which "
        "draws a fresh split, and audit that LoRA.",
        "Or let the next training stop before it leaks (`--target_auc 0.6`), or use fewer exposures: fewer epochs "
        "(`--max_train_epochs`), fewer repeats, more pictures.",
    ),
    "no evidence": (
        "Take it for what it is: these attacks found nothing, others may. A leak below the size that is named "
        "above would "
        "mostly go unseen; more test pictures make that size smaller.",
        "Look at the most exposed pictures in the report. The verdict is about the average picture, and a single "
        "one can "
        "still be recognised.",
        f"If you share, share the LoRA file and what `bash audit.sh {FOLDER} --publishable OUT` writes, and "
        f"nothing else: "
        "the rest of the folder says who was in it.",
    ),
    "invalid": (
        "Mend what is named above and audit again. Until then treat the file as one that leaks.",
        "Where a control failed, members and non-members differ in themselves, by source, date, size or style of "
        "caption: "
        "let the trainer hold out non-members of the same folder.",
        "Where the LoRA changes nothing, see whether this is the file you meant and whether its training ran.",
    ),
}
FINE, LEAK, INVALID = 0, 3, 4  # exit statuses; 2 is bad usage


def what_now(word: str, folder: str = FOLDER) -> list[str]:
    """The steps after a verdict, commands between backticks.

    Args:
        folder: what was audited, for the commands.
    """
    return [step.replace(FOLDER, folder if folder == FOLDER else for_shell([folder])) for step in STEPS[word]]


def markdown() -> str:
    """All steps for a page of the docs."""
    parts = []
    for word, steps in STEPS.items():
        lines = [f"{number}. {step}" for number, step in enumerate(steps, 1)]
        parts.append("\n".join([f"**{HEADLINES[word]}.**", "", *lines]))
    return "\n\n".join(parts)


def upper_bound(result: AuditResult) -> float:
    """The upper end of the main attack's interval, on the side of 0.5 where a leak is; where the verdict is a leak,
    that of the strongest attack if it is higher.
    """
    rests_on = [result.main, *([result.worst] if result.evaluation.verdict.word == "leak" else [])]
    return max(max(one.auc_interval[1], 1 - one.auc_interval[0]) for one in rests_on)


def exit_status(results: Sequence[AuditResult], fail_above: float | None) -> int:
    """What a program is told: 3 where a LoRA may leak more than it may, else 4 where an audit is invalid, else 0.

    Args:
        fail_above: AUC that no upper bound may exceed; None: every verdict is fine.
    """
    if fail_above is None:
        return FINE
    valid = [one for one in results if one.evaluation.verdict.word != "invalid"]
    if any(upper_bound(one) > fail_above for one in valid):
        return LEAK
    return FINE if len(valid) == len(results) else INVALID
