"""One LoRA evaluated: every attack scored, every control run, one verdict."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from library.audit.attacks.attack_result import Finding, finding, joint_p, sides_of, test_groups
from library.audit.attacks.registry import ATTACKS, PRIMARY, Attack
from library.audit.queries.answer_cache import AnswerArrays
from library.audit.queries.answers import Answers
from library.audit.queries.error_statistics import SQUARE
from library.audit.report.verdict import Verdict, leaks, verdict
from library.audit.statistics.intervals import Interval, auc_interval
from library.audit.statistics.metrics import auc
from library.audit.statistics.one_run_epsilon import OneRunBound, one_run_bounds
from library.audit.statistics.permutation import dataset_level_p
from library.audit.targets.candidate_table import AuxView, Candidates, FloatArray, aux_view
from library.seeding import stream_seed

logger = logging.getLogger(__name__)
PERMUTED_FITS = 3


@dataclass(frozen=True)
class Control:
    """Something that must be at chance, or the audit is invalid."""

    name: str
    auc: float
    interval: Interval


@dataclass(frozen=True)
class Evaluation:
    """All that is known of one LoRA after its audit."""

    findings: dict[str, Finding]
    controls: dict[str, Control]
    controls_p: float
    p_max: float
    worst: str
    epsilon: Sequence[OneRunBound]
    epsilon_doubt: str  # why the split threw no fair coin per group; empty: the bounds are valid
    dataset_p: float
    verdict: Verdict
    profiles: dict[str, list[tuple[int, float, float]]]  # attack -> (timestep, AUC on, AUC off), test sides
    scores: dict[str, FloatArray]
    scores_off: dict[str, FloatArray]
    shadow_findings: dict[str, Finding]  # fitted on a shadow LoRA, tried on this one; empty where none was trained


def examine(
    answers: Answers,
    candidates: Candidates,
    blind: Mapping[str, FloatArray],
    *,
    epsilon_doubt: str,
    target_fpr: float,
    seed: int,
    undefended: Mapping[str, Finding] | None = None,
    extra: Mapping[str, tuple[FloatArray, FloatArray, str]] | None = None,
    shadow: tuple[Candidates, Mapping[str, tuple[FloatArray, FloatArray, str]]] | None = None,
    notes: Sequence[str] = (),
    registry: Sequence[Attack] = ATTACKS,
    of_base: dict[str, dict[str, FloatArray]] | None = None,
) -> Evaluation:
    """Score everything once.

    Args:
        blind: scores of attackers that never asked the model.
        epsilon_doubt: why the split is no fair coin per group, or nothing.
        undefended: findings on an undefended LoRA of the same split; attacks that fail there are not credited.
        extra: scores, scores on the base, and settings of attacks that bring their own answers (shadow LoRAs).
        shadow: candidates with a shadow's labels on the aux sides, and what attacks fitted on that shadow say here.
        notes: why the audit is invalid whatever its figures.
        registry: the attacks; the primary one must be among them.
        of_base: what the attacks say of a base alone, kept by the caller for the next LoRA on it.
    """
    aux = aux_view(candidates, seed)
    scores, chosen = attack_scores(answers, aux, registry, "LoRA on")
    known, name_of_base = {} if of_base is None else of_base, digest_of(answers.off, aux)
    if name_of_base not in known:
        known[name_of_base] = attack_scores(answers.without_adapter(), aux, registry, "LoRA off")[0]
    scores_off = dict(known[name_of_base])
    for name, (rows, rows_off, choice) in (extra or {}).items():
        scores[name], scores_off[name], chosen[name] = rows, rows_off, choice
    findings = {
        name: finding(name, chosen[name], rows, scores_off.get(name), candidates, target_fpr, seed)
        for name, rows in scores.items()
    }
    shadow_findings = {
        name: finding(name, choice, rows, rows_off, shadow[0], target_fpr, seed)
        for name, (rows, rows_off, choice) in shadow[1].items()
    } if shadow else {}  # fmt: skip
    p_max, worst = joint_p(scores, candidates, seed)
    control_rows = {f"{name}, LoRA off": rows for name, rows in scores_off.items() if np.ptp(rows) > 0}
    control_rows |= dict(blind) | {"fusion, aux labels dealt anew": permuted_fit(answers, aux, candidates, registry)}
    controls_p, failed = joint_p(control_rows, candidates, seed)
    test = np.flatnonzero(candidates.is_test)
    groups = [candidates.groups[int(row)] for row in test]
    uncredited = [name for name in findings if undefended and name in undefended and not attack_works(undefended[name])]
    return Evaluation(
        findings=findings,
        controls={name: control(name, rows, candidates, seed) for name, rows in control_rows.items()},
        controls_p=controls_p,
        p_max=p_max,
        worst=worst,
        epsilon=one_run_bounds(scores[PRIMARY][test], candidates.is_member[test], groups),
        epsilon_doubt=epsilon_doubt,
        dataset_p=dataset_level_p(scores[PRIMARY][test], candidates.is_member[test], groups)[0],
        verdict=verdict(findings, PRIMARY, p_max, controls_p, failed, notes, uncredited),
        profiles=profiles(answers, candidates),
        scores=scores,
        scores_off=scores_off,
        shadow_findings=shadow_findings,
    )


def attack_scores(
    answers: Answers, aux: AuxView, registry: Sequence[Attack], state: str
) -> tuple[dict[str, FloatArray], dict[str, str]]:
    """Scores of every attack, and what each chose; ``state`` says in the messages which answers are scored."""
    scores, chosen = {}, {}
    for attack in registry:
        if attack.possible(answers.plan):
            scores[attack.name], chosen[attack.name] = attack.score(answers, aux)
            logger.info("scored %s, %s (%s)", attack.name, state, chosen[attack.name])
    return scores, chosen


def digest_of(records: AnswerArrays, aux: AuxView) -> str:
    """Names a base's answers together with the aux side that attacks learn from."""
    digest = hashlib.sha256(repr((aux.seed, sorted(records))).encode())
    for values in (*(records[name] for name in sorted(records)), aux.indices, aux.labels, aux.folds):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def attack_works(found: Finding) -> bool:
    """Whether an attack succeeds at all: significant, interval clear of chance."""
    return leaks(found, found.p)


def permuted_fit(answers: Answers, aux: AuxView, candidates: Candidates, registry: Sequence[Attack]) -> FloatArray:
    """[n] mean scores of the primary attack fitted on aux labels that were dealt anew among groups."""
    primary = next(attack for attack in registry if attack.name == PRIMARY)
    groups = np.array(candidates.groups, dtype=str)[aux.indices]
    names, position = np.unique(groups, return_inverse=True)
    label_of = np.zeros(len(names), dtype=bool)
    label_of[position] = aux.labels
    total = np.zeros(len(candidates.pixels))
    for draw in range(PERMUTED_FITS):
        order = np.random.default_rng(stream_seed(aux.seed, "permuted fit", draw)).permutation(len(names))
        dealt = AuxView(aux.indices, label_of[order][position], aux.folds, aux.seed)
        total += primary.score(answers, dealt)[0]
    return total / PERMUTED_FITS


def control(name: str, rows: FloatArray, candidates: Candidates, seed: int) -> Control:
    """AUC of a control on the test sides."""
    test = sides_of(rows, candidates, "test")
    generator = np.random.default_rng(stream_seed(seed, "bootstrap", name))
    return Control(name, auc(*test), auc_interval(*test, *test_groups(candidates), generator))


def profiles(answers: Answers, candidates: Candidates) -> dict[str, list[tuple[int, float, float]]]:
    """AUC against the timestep for loss, the caption's worth and SecMI, on and off (shown, never chosen from)."""
    nodes = answers.plan.chain_nodes[:-1]  # edge 0 starts at the clean latent: it is PIA
    both = [_profile_scores(state) for state in (answers, answers.without_adapter())]
    timesteps = {"loss": answers.plan.noise_timesteps, "caption gain": answers.plan.noise_timesteps, "SecMI": nodes}
    return {
        name: [
            (step, *(auc(*sides_of(one[name][:, place], candidates, "test")) for one in both))  # type: ignore[misc]
            for place, step in enumerate(steps)
        ]
        for name, steps in timesteps.items()
    }


def _profile_scores(answers: Answers) -> dict[str, FloatArray]:
    loss = answers.losses("on")
    gain = answers.losses("on", caption=False) - loss
    return {"loss": -loss, "caption gain": gain, "SecMI": -answers.on["edges"][..., SQUARE].astype(np.float64)}
