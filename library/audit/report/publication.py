"""What may be published of an audit, and nothing else: figures to two digits, under names that name nobody.

docs/files.md says what was left out, and why.
"""

import dataclasses
import json
import random
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from library.audit.attacks.attack_result import sides_of
from library.audit.attacks.registry import PRIMARY
from library.audit.report import html, report_page
from library.audit.report.audit_result import AuditResult
from library.audit.report.captioned_figures import attack_figures, comparison_figures
from library.audit.report.json_csv import as_json
from library.audit.targets.candidate_table import Candidates, FloatArray
from library.errors import InputError
from library.tensor_files import private_folder, write_whole

BANDS = 5  # as many parts of the non-members as scores.csv tells apart
KEPT = (  # keys of findings.json
    "schema_version", "suite", "date", "checkpoint_sha256", "label", "method", "settings", "exposures_per_image",
    "defended", "verdict", "primary", "worst", "p_max_over_attacks", "findings", "findings_with_a_shadow",
    "paired_differences", "controls",
    "p_max_over_controls", "epsilon_lower_bounds", "epsilon_is_valid", "epsilon_doubt", "dp_ceiling", "dataset_level_p",
    "set_level_test", "utility", "images", "groups_tested", "facts",
)  # fmt: skip
FACTS = (
    "profile", "LoRA", "inclusion", "torch", "drawings", "black box", "image quality", "prompt-image agreement",
    "shadow",
)  # fmt: skip


def publish(audited: Sequence[AuditResult], together: Sequence[AuditResult], folder: Path) -> Path:
    """Write findings.json, scores.csv and report.html, 0600; several LoRAs get a numbered folder each.

    Args:
        audited: the outcomes of the LoRA files, as they will be published.
        together: every outcome of the call, for the comparisons.

    Raises:
        InputError: a folder that is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"publishable '{folder}' is not empty; give a fresh folder (--scores_only asks no model again)"
        )
    shared = {id(result): shareable(result) for result in together}
    private_folder(folder)
    for number, result in enumerate(audited, 1):
        place = private_folder(folder / str(number)) if len(audited) > 1 else folder
        one, others = shared[id(result)], list(shared.values())
        content = json.dumps(shareable_json(one, others), indent=1)
        write_whole(place / "findings.json", content + "\n")
        write_whole(place / "scores.csv", banded_scores(result.evaluation.scores[PRIMARY], result.candidates))
        write_whole(place / "report.html", shareable_page(one, others))
    return folder


def shareable(result: AuditResult) -> AuditResult:
    """The same audit under its alias, every figure to two digits; what no page or file may show is left out."""
    evaluation = result.evaluation
    coarse = dataclasses.replace(
        evaluation,
        findings=two_digits(evaluation.findings),
        shadow_findings=two_digits(evaluation.shadow_findings),
        controls=two_digits(evaluation.controls),
        epsilon=two_digits(evaluation.epsilon),
        verdict=two_digits(evaluation.verdict),
        controls_p=two_digits(evaluation.controls_p),
        p_max=two_digits(evaluation.p_max),
        dataset_p=two_digits(evaluation.dataset_p),
        most_shown=None,  # it counts all members
    )
    return dataclasses.replace(
        result,
        label=result.alias,
        evaluation=coarse,
        set_test=two_digits(result.set_test),
        utility={name: two_digits(value) for name, value in result.utility.items() if _may_be_told(name)},
        facts={name: text for name, text in result.facts.items() if name in FACTS},
        nearest={},
    )


def _may_be_told(name: str) -> bool:
    """Losses are told as a share of the base's alone."""
    return name not in ("member_loss", "member_loss_of_base")


def two_digits(value: Any) -> Any:
    """Every fraction inside, to two significant digits; whole numbers, texts and truths stay."""
    if isinstance(value, float):
        return value if value.is_integer() else float(f"{value:.2g}")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: two_digits(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    if isinstance(value, Mapping):
        return {name: two_digits(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(two_digits(part) for part in value)
    return value


def shareable_json(one: AuditResult, others: Sequence[AuditResult]) -> dict[str, Any]:
    """The keys of findings.json that carry their n and interval; thresholds are scores of pictures, so none stays."""
    whole = as_json(one, others)
    content = {name: whole[name] for name in KEPT}
    content["paired_differences"] = two_digits(content["paired_differences"])
    content["images"] = {side: count for side, count in whole["images"].items() if side.endswith("-test")}
    for found in (*content["findings"], *content["findings_with_a_shadow"]):
        found["auc_aux"] = None
        if found["transfer"] is not None:
            found["transfer"]["threshold"] = None
    return content


def banded_scores(scores: FloatArray, candidates: Candidates) -> str:
    """A line per tested picture in an order of chance: a number of chance, its side, and which fifth its score is in.

    Fifths of the tested non-members, 5 = likeliest members. Lines of one side and fifth are alike, so the file is a
    table of 2 x 5 counts and nothing that could be computed again from a picture.
    """
    members, non_members = sides_of(scores, candidates, "test")
    edges = np.quantile(non_members, np.arange(1, BANDS) / BANDS)
    lines = []
    for side, rows in (("member", members), ("non-member", non_members)):
        bands = 1 + np.searchsorted(edges, rows, side="left")
        lines += [f"{secrets.token_hex(8)},{side},{band}" for band in bands.tolist()]
    random.SystemRandom().shuffle(lines)
    return "\n".join(["row,side,fifth", *lines]) + "\n"


def shareable_page(one: AuditResult, others: Sequence[AuditResult]) -> str:
    """The report without pictures, scores, groups and names."""
    first = [f"<h1>Membership audit of {html.escape(one.label)}</h1>", *report_page.first_screen(one)]
    parts = report_page.course_section(others)
    if len(others) > 1:
        parts += report_page.comparison(others, one)
    parts += [
        html.heading("Figures"),
        html.figures([*attack_figures(one), *comparison_figures(others)]),
        *report_page.attack_table(one),
    ]
    parts += report_page.learnt_section(one) + report_page.quality_section(one) + report_page.set_section(one)
    parts += report_page.controls_section(one) + report_page.epsilon_section(one)
    parts += report_page.explanations()
    note = (
        "Figures are rounded to two digits. What could be computed again from a picture (scores, thresholds, exact "
        "curves) is left out, since it would tell members to whoever has the pictures."
    )
    tested = {side: str(one.candidates.sides.count(side)) for side in report_page.SIDES if side.endswith("-test")}
    own = {
        "SHA-256 of the file (`sha256sum FILE`)": one.file.sha256,
        **{f"pictures, {side}": count for side, count in tested.items()},
    }
    parts += [*report_page.provenance_section(one, own), html.paragraph(note, small=True)]
    return html.page(f"Audit of {one.label}", first, parts)
