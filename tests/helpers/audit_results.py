"""A whole audit result from made-up answers, for tests of what is written about it."""

import dataclasses
from functools import cache

import numpy as np

from library.audit.attacks.registry import ATTACKS, MOST_EXPOSED
from library.audit.queries.query_plan import LITE
from library.audit.report.audit_result import AuditedFile, AuditResult, adaptation_utility
from library.audit.report.evaluation import EvaluationInputs, examine
from tests.helpers.audit_planted import planted_answers, planted_candidates

CANDIDATES = planted_candidates(40)
KEPT = ("loss", "loss_calibrated", MOST_EXPOSED, "clid", "fusion")  # quick ones
FILE = AuditedFile("last.safetensors", "out put", "ab" * 32, "demo/base", "2026-11-29", "private-lora 0.1.0")
STATED = {"param_alpha": "0.05", "k_steps": "1", "separate_noise": "False", "gain_limit": "inf", "inclusion": "fixed"}


@cache
def planted_result(leak: float) -> AuditResult:
    """The audit of a LoRA under which every quantity of a member is lowered by ``leak`` standard deviations."""
    answers, chance = planted_answers(CANDIDATES, leak), np.random.default_rng(1)
    blind = {name: chance.normal(size=len(CANDIDATES.pixels)) for name in ("pictures alone", "captions alone")}
    registry = [attack for attack in ATTACKS if attack.name in KEPT]
    given = EvaluationInputs(
        answers, CANDIDATES, blind, epsilon_doubt="", target_fpr=0.05, seed=0, registry=registry
    )  # fmt: skip
    passes = {attack.name: attack.passes(LITE) for attack in ATTACKS}
    return AuditResult(
        "run", "SPLoRA", STATED, 40.0, True, examine(given), CANDIDATES, adaptation_utility(answers, CANDIDATES),
        {"profile": "lite", "LoRA": "0" * 16}, passes, {}, FILE,
    )  # fmt: skip


def with_interval(result: AuditResult, name: str, area: float, low: float, high: float) -> AuditResult:
    """The same result with another AUC of one attack."""
    changed = dataclasses.replace(
        result.evaluation.findings[name], auc=area, auc_flipped=max(area, 1 - area), auc_interval=(low, high)
    )
    findings = {**result.evaluation.findings, name: changed}
    return dataclasses.replace(result, evaluation=dataclasses.replace(result.evaluation, findings=findings))


def with_verdict(result: AuditResult, word: str) -> AuditResult:
    """The same result with another verdict."""
    verdict = dataclasses.replace(result.evaluation.verdict, word=word)
    return dataclasses.replace(result, evaluation=dataclasses.replace(result.evaluation, verdict=verdict))
