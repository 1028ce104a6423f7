"""One audited LoRA with all that the report, the JSON and the tables say about it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from library import __version__
from library.audit.attacks.registry import ATTACKS, PRIMARY
from library.audit.images.generated import Drawings
from library.audit.queries.answers import Answers
from library.audit.report.evaluation import Evaluation
from library.audit.report.wording import TITLES, area
from library.audit.statistics.findings import Finding
from library.audit.statistics.gain import gains
from library.audit.statistics.permutation import p_number
from library.audit.statistics.set_test import SetTest
from library.audit.targets.candidate_table import Candidates
from library.audit.targets.provenance import Provenance
from library.incoming.files import file_hash
from library.lora_files.lora_file import weight_files
from library.lora_files.metadata import PRIVACY_PREFIX

SUITE = f"private-lora {__version__}"  # name and version


@dataclass(frozen=True)
class AuditedFile:
    """Which file was audited, with what: for a person who wants to know whether a report is about a file."""

    name: str  # of the file: for the owner's own page and terminal alone, like the place and the base's name
    place: str  # the folder or file that was named
    sha256: str  # of the file as it was when the report was written
    base: str  # as the options name it
    date: str  # year-month-day
    suite: str  # name and version


def audited_file(lora: Path, base: str) -> AuditedFile:
    """The facts of a LoRA file, or of a peft folder, as it lies there now.

    Args:
        base: the base model, as the options name it.
    """
    folder = lora.parent
    place = folder if (folder / "config.toml").is_file() else lora
    return AuditedFile(lora.name, str(place), checkpoint_hash(lora), base, time.strftime("%Y-%m-%d"), SUITE)


def checkpoint_hash(lora: Path) -> str:
    """The hash of the LoRA's file; of a peft folder of several parts, that of each beside its name there."""
    files = weight_files(lora)
    if len(files) == 1:
        return file_hash(files[0], f"'{files[0]}'")
    return ", ".join(f"{file.relative_to(lora).as_posix()} {file_hash(file, str(file))}" for file in files)


@dataclass(frozen=True)
class AuditResult:
    """The audit of one LoRA file."""

    label: str  # the folder's name: for the owner's own page and terminal alone
    method: str
    settings: Mapping[str, str]  # what the LoRA's metadata states of its training
    exposures: float | None  # per member picture; None where the file does not say
    defended: bool | None  # None: unknown
    evaluation: Evaluation
    candidates: Candidates
    utility: Mapping[str, float]
    facts: Mapping[str, str]  # profile, hashes, versions, seconds
    passes: Mapping[str, int]  # UNet passes per picture, by attack
    nearest: Mapping[str, NDArray[np.uint8]]  # nearest drawing [3, h, w] by hash of the picture
    file: AuditedFile
    set_test: SetTest | None = None  # where drawings were made
    alias: str = "LoRA"  # in place of the label, which is a folder's name, wherever others may read it

    @property
    def main(self) -> Finding:
        """The finding of the attack that was fixed beforehand."""
        return self.evaluation.findings[PRIMARY]

    @property
    def worst(self) -> Finding:
        """The finding farthest from chance, among those measured on all test pictures."""
        measured = [self.evaluation.findings[name] for name in self.evaluation.scores]
        return max(measured, key=lambda one: one.auc_flipped)


def audit_result_of(
    names: tuple[str, str],
    origin: Provenance,
    evaluation: Evaluation,
    candidates: Candidates,
    answers: Answers,
    drawn: Drawings | None,
    facts: Mapping[str, str],
    file: AuditedFile,
) -> AuditResult:
    """Put together what was measured and where it came from.

    Args:
        names: label and alias.
    """
    if drawn is not None:
        evaluation = replace(evaluation, findings=evaluation.findings | {"drawings": drawn.finding})
    return AuditResult(
        names[0],
        origin.method,
        origin.settings,
        origin.exposures,
        origin.defended,
        evaluation,
        candidates,
        utility=adaptation_utility(answers, candidates) | (dict(drawn.quality) if drawn else {}),
        facts={"profile": answers.plan.name, "LoRA": origin.fingerprint[:16]}
        | dict(facts)
        | (dict(drawn.facts) if drawn else {}),
        passes={attack.name: attack.passes(answers.plan) for attack in ATTACKS},
        nearest=drawn.nearest if drawn else {},
        file=file,
        set_test=drawn.set_test if drawn else None,
        alias=names[1],
    )


def adaptation_utility(answers: Answers, candidates: Candidates) -> dict[str, float]:
    """What was learnt of the test sides' held-out pictures and members, and the mean losses of all, LoRA on and off.

    The members' loss says how well the LoRA fits, not how useful it is: what is learnt by heart is in it.
    """
    by_step = answers.losses("on"), answers.losses("off")  # [n, T] each
    on, off = (losses.mean(1) for losses in by_step)
    members, test = candidates.is_member, np.flatnonzero(candidates.is_test)
    groups = [candidates.groups[int(row)] for row in test]
    learnt = gains(by_step[0][test], by_step[1][test], members[test], groups)
    return learnt | {
        "member_loss": float(on[members].mean()),
        "member_loss_of_base": float(off[members].mean()),
        "member_loss_relative": float(on[members].mean() / off[members].mean()),
        "non_member_loss_relative": float(on[~members].mean() / off[~members].mean()),
    }


def stamp_facts(result: AuditResult) -> dict[str, str]:
    """The measured figures for the LoRA's metadata: aggregates to two digits, no counts (they narrow the members')."""
    main, worst = result.main, result.worst

    known = [rate for rate in main.low_rates if rate.tpr is not None and rate.interval is not None]
    facts = {
        "audit_verdict": result.evaluation.verdict.word,
        "audit_auc": area(main),
        "audit_worst_attack": TITLES[worst.name],
        "audit_worst_auc": area(worst),
        "audit_p_max": p_number(result.evaluation.p_max),
        "audit_profile": result.facts["profile"],
    }
    for rate in known:
        assert rate.interval is not None
        facts[f"audit_tpr_at_{rate.fpr:g}_fpr"] = f"{rate.tpr:.2f} [{rate.interval[0]:.2f}, {rate.interval[1]:.2f}]"
    return {f"{PRIVACY_PREFIX}{name}": text for name, text in facts.items()}
