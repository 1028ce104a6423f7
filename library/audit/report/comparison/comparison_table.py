"""Several audited LoRAs in one table, in the form of Table 1 of arXiv 2402.11989."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from library.audit.attacks.registry import PRIMARY
from library.audit.report.learnt import best_plain_gain, held_out_gain, percent, share_of_best, whole_percent
from library.audit.report.wording import TITLES
from library.audit.statistics.working_attack import attack_works
from library.errors import InputError
from library.incoming.shapes import Anything, TableOf, check_shape
from library.incoming.texts import read_json
from library.plain_text import markdown_table

PAPER_ATTACK = "map_mlp"  # the attacker that the released method reports against
COLUMNS = ("method", "exposures", "learnt (held-out gain)", "of plain LoRA's best", "main attack's AUC",
           "minus the first's", "main TPR@5%FPR %", "strongest attack", "strongest AUC", "verdict", "ASR %", "AUC dev",
           "TPR@5%FPR %", "credited", "FD (VAE)", "KD (VAE)")  # fmt: skip
LEGEND = (
    "- Learnt is how far the denoising error of held-out test pictures falls against the base, with its 95 % interval; "
    "plain LoRA's best is the largest such gain of the LoRAs without a defence in this table, taken as exact.",
    "- ASR (balanced accuracy at a threshold from the aux sides), AUC dev (|AUC - .5| / .5) and TPR@5%FPR are figures "
    "of the released method's own attacker, a loss-map MLP that is trained from scratch on each final LoRA.",
    "- 'credited' says whether that attacker works on the undefended LoRA; where it does not, its failure on another "
    "LoRA shows nothing.",
    f"- The main attack ({TITLES[PRIMARY]}) was fixed beforehand; the strongest is the one farthest from chance. "
    "Intervals are 95 %.",
    "- 'minus the first's' is a paired difference over the same pictures and noise.",
    "- FD and KD are Frechet and kernel distances between drawings of member captions and the members, in the VAE's "
    "own space: not FID and not KID.",
)
EXTRA = {"fid_2048": "FID (2048-d)", "kid_2048": "KID (2048-d)", "clip_score": "CLIP score"}


def read_findings(folder: Path) -> dict[str, Any]:
    """The findings.json of an output folder."""
    file = folder / "audit" / "findings.json"
    try:
        findings = read_json(file, "audit/findings.json", finite=False)
        check_shape(findings, TableOf(Anything()), "audit/findings.json")
        return findings
    except InputError as error:
        raise InputError(f"'{folder}' was not audited ({error.messages[0]})") from error


def comparison_rows(named: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per LoRA, from its findings; the first undefended one says which attacks are credited."""
    reference = next((one for one in named.values() if one["defended"] is False), None)
    tried = [] if reference is None else reference["findings"]
    credited = [one["name"] for one in tried if attack_works(one["p"], one["auc_interval"])]
    best = best_plain_gain([(one["defended"], one["utility"]) for one in named.values()])
    rows, titles = [], {content.get("label"): name for name, content in named.items()}
    for name, content in named.items():
        by_name = {one["name"]: one for one in content["findings"]}
        paper, main, worst = (by_name[key] for key in (PAPER_ATTACK, content["primary"], content["worst"]))
        utility = content["utility"]
        pair = next((one for one in content["paired_differences"] if one["attack"] == content["primary"]), None)
        rows.append(
            {
                "method": name,
                "exposures": content["exposures_per_image"],
                "vae_frechet_distance": utility.get("vae_frechet_distance"),
                "vae_kernel_distance": utility.get("vae_kernel_distance"),
                **{key: utility[key] for key in EXTRA if key in utility},
                "held_out_gain": held_out_gain(utility),
                "held_out_pictures": utility["held_out_pictures"],
                "share_of_best_plain_gain": share_of_best(utility, best),
                "member_loss_relative": utility["member_loss_relative"],  # fit, not utility
                "asr": _accuracy(paper),
                "auc_deviation": abs(paper["auc"] - 0.5) / 0.5,
                "tpr_at_5_fpr": tpr(paper, 0.05),
                "main_auc": main["auc"],
                "main_auc_interval": main["auc_interval"],
                "main_auc_difference": None if pair is None else pair["difference"],
                "main_auc_difference_interval": None if pair is None else pair["interval"],
                "main_auc_difference_against": None if pair is None else titles.get(pair["against"]),
                "main_tpr_at_5_fpr": tpr(main, 0.05),
                "worst_attack": worst["title"],
                "worst_auc": worst["auc"],
                "worst_auc_interval": worst["auc_interval"],
                "paper_attack_is_credited": PAPER_ATTACK in credited,
                "credited_attacks": credited,
                "members": main["members"],
                "non_members": main["non_members"],
                "verdict": content["verdict"]["word"],
            }
        )
    return rows


def tpr(found: Mapping[str, Any], fpr: float) -> float | None:
    """TPR at one FPR; None where the sample cannot resolve it."""
    return next((rate["tpr"] for rate in found["low_rates"] if rate["fpr"] == fpr), None)


def _accuracy(found: Mapping[str, Any]) -> float | None:
    return None if found["transfer"] is None else found["transfer"]["balanced_accuracy"]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table, and under it what its columns mean."""
    extra = [key for key in EXTRA if any(key in row for row in rows)]  # where weights for them were given
    columns = [*COLUMNS, *(EXTRA[key] for key in extra)]
    lines = []
    for row in rows:
        cells = (
            row["method"],
            _text(row["exposures"], "{:g}"),
            percent(row["held_out_gain"]),
            whole_percent(row["share_of_best_plain_gain"]),
            _area(row["main_auc"], row["main_auc_interval"]),
            _difference(row["main_auc_difference"], row["main_auc_difference_interval"]),
            _text(row["main_tpr_at_5_fpr"], "{:.1f}", 100),
            row["worst_attack"],
            _area(row["worst_auc"], row["worst_auc_interval"]),
            row["verdict"],
            _text(row["asr"], "{:.1f}", 100),
            f"{row['auc_deviation']:.2f}",
            _text(row["tpr_at_5_fpr"], "{:.1f}", 100),
            "yes" if row["paper_attack_is_credited"] else "no",
            _text(row["vae_frechet_distance"], "{:.2f}"),
            _text(row["vae_kernel_distance"], "{:.3f}"),
            *(_text(row.get(key), "{:.3f}") for key in extra),
        )
        lines.append(cells)
    size = f"{rows[0]['members']} members and {rows[0]['non_members']} non-members" if rows else "nothing"
    return "\n".join([markdown_table(columns, lines), f"Tested on {size}, all on the same split.", "", *LEGEND]) + "\n"


def _text(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else form.format(factor * value)


def _difference(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{round(value, 2) + 0.0:+.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _area(value: float, interval: Sequence[float]) -> str:
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"
