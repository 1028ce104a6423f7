"""One LoRA evaluated: every attack scored, every control run, one verdict."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from library.audit.attacks.attack_result import finding, joint_p, sides_of, test_groups
from library.audit.attacks.registry import ATTACKS, PRIMARY, Attack
from library.audit.queries.answer_cache import AnswerArrays
from library.audit.queries.answers import Answers
from library.audit.queries.error_statistics import SQUARE
from library.audit.report.most_shown import MostShown, most_shown
from library.audit.report.verdict import Verdict, verdict
from library.audit.report.wording import TITLES
from library.audit.statistics.findings import Finding, ScoreSettings
from library.audit.statistics.intervals import Interval, auc_interval
from library.audit.statistics.metrics import auc
from library.audit.statistics.one_run_epsilon import OneRunBound, one_run_bounds
from library.audit.statistics.permutation import dataset_level_p
from library.audit.statistics.working_attack import attack_works
from library.audit.targets.candidate_table import AuxView, Candidates, FloatArray, aux_view
from library.progress import counted
from library.seeding import numpy_stream

logger = logging.getLogger(__name__)
PERMUTED_FITS = 3

TriedScores = tuple[FloatArray, FloatArray, str]  # scores, scores with the base in the adapter's place, what was chosen
BaseScores = Mapping[str, Mapping[str, FloatArray]]  # by digest of the base's answers, by attack


@dataclass(frozen=True)
class Control:
    """A test that must be at chance, or the audit is invalid."""

    name: str
    auc: float
    interval: Interval


@dataclass(frozen=True)
class EvaluationInputs:
    """What one LoRA's evaluation starts from."""

    answers: Answers
    candidates: Candidates
    blind: Mapping[str, FloatArray]  # scores of attackers that never asked the model
    epsilon_doubt: str  # why the split threw no fair coin per group; empty: the bounds are valid
    target_fpr: float
    seed: int
    undefended: Mapping[str, Finding] | None = None  # an attack that fails there shows nothing about a defence
    extra: Mapping[str, TriedScores] = field(default_factory=dict)  # attacks with answers of their own (shadows)
    shadow: tuple[Candidates, Mapping[str, TriedScores]] | None = None  # fitted on a shadow, labels of its aux sides
    notes: Sequence[str] = ()  # why the audit is invalid whatever its figures
    registry: Sequence[Attack] = ATTACKS  # the primary attack must be among them

    def settings(self, name: str, chosen: str) -> ScoreSettings:
        """What is asked of one attack's scores."""
        return ScoreSettings(name, chosen, target_fpr=self.target_fpr, seed=self.seed)


@dataclass(frozen=True)
class AllScores:
    """Scores of every attack."""

    on: dict[str, FloatArray]
    off: dict[str, FloatArray]  # with the base in the adapter's place
    chosen: dict[str, str]  # on the aux sides
    of_base: BaseScores


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
    of_base: BaseScores  # for the next LoRA on the same base
    most_shown: MostShown | None = None  # where some members were shown more often than others


def examine(inputs: EvaluationInputs, known: BaseScores | None = None) -> Evaluation:
    """Score everything once, and decide.

    Args:
        known: what the attacks say of bases alone, as earlier evaluations returned it (``of_base``).
    """
    candidates, seed = inputs.candidates, inputs.seed
    aux = aux_view(candidates, seed)
    scores = score_all(inputs, aux, known or {})
    findings = {
        name: finding(rows, scores.off.get(name), candidates, inputs.settings(name, scores.chosen[name]))
        for name, rows in scores.on.items()
    }
    p_max, worst = joint_p(scores.on, candidates, seed)
    control_rows = control_scores(inputs, scores, aux)
    controls_p, failed = joint_p(control_rows, candidates, seed)
    test = np.flatnonzero(candidates.is_test)
    primary = scores.on[PRIMARY][test], candidates.is_member[test], [candidates.groups[int(row)] for row in test]
    uncredited = uncredited_attacks(findings, inputs.undefended)
    return Evaluation(
        findings=findings,
        controls={name: control(name, rows, candidates) for name, rows in control_rows.items()},
        controls_p=controls_p,
        p_max=p_max,
        worst=worst,
        epsilon=one_run_bounds(*primary),
        epsilon_doubt=inputs.epsilon_doubt,
        dataset_p=dataset_level_p(*primary)[0],
        verdict=verdict(findings, PRIMARY, p_max, controls_p, failed, inputs.notes, uncredited),
        profiles=profiles(inputs.answers, candidates),
        scores=scores.on,
        scores_off=scores.off,
        shadow_findings=shadow_findings(inputs),
        of_base=scores.of_base,
        most_shown=most_shown(scores.on, candidates, seed),
    )


def score_all(inputs: EvaluationInputs, aux: AuxView, known: BaseScores) -> AllScores:
    """Scores of every attack, LoRA on and off; a base that is known already is not scored again."""
    on, chosen = attack_scores(inputs.answers, aux, inputs.registry, "LoRA on")
    base = digest_of(inputs.answers.off, aux)
    if base in known:
        of_base = known[base]
    else:
        of_base = attack_scores(inputs.answers.without_adapter(), aux, inputs.registry, "LoRA off")[0]
    off = dict(of_base)
    for name, (rows, rows_off, choice) in inputs.extra.items():
        on[name], off[name], chosen[name] = rows, rows_off, choice
    return AllScores(on, off, chosen, {base: of_base})


def control_scores(inputs: EvaluationInputs, scores: AllScores, aux: AuxView) -> dict[str, FloatArray]:
    """Scores that no leak can be in: attacks with the LoRA off, blind attackers, a fit of the base on shuffled labels.

    A fit of the LoRA's own answers would not do: where one direction is the leak, it falls on it with a chance sign.
    """
    off = {f"{TITLES[name]}, LoRA off": rows for name, rows in scores.off.items() if np.ptp(rows) > 0}
    permuted = permuted_fit(inputs.answers.without_adapter(), aux, inputs.candidates, inputs.registry)
    return off | dict(inputs.blind) | {f"{TITLES[PRIMARY]}, LoRA off, aux labels dealt anew": permuted}


def shadow_findings(inputs: EvaluationInputs) -> dict[str, Finding]:
    """Findings of the attacks that were fitted on a shadow LoRA."""
    if inputs.shadow is None:
        return {}
    candidates, tried = inputs.shadow
    return {
        name: finding(rows, rows_off, candidates, inputs.settings(name, choice))
        for name, (rows, rows_off, choice) in tried.items()
    }


def uncredited_attacks(findings: Mapping[str, Finding], undefended: Mapping[str, Finding] | None) -> list[str]:
    """Attacks that do not work on the undefended LoRA of the split."""
    tried = {name: undefended[name] for name in findings if name in undefended} if undefended else {}
    return [name for name, one in tried.items() if not attack_works(one.p, one.auc_interval)]


def attack_scores(
    answers: Answers, aux: AuxView, registry: Sequence[Attack], state: str
) -> tuple[dict[str, FloatArray], dict[str, str]]:
    """Scores of every attack, and what each chose; ``state`` names the answers in the log."""
    scores, chosen = {}, {}
    asked = [attack for attack in registry if attack.possible(answers.plan)]
    for attack in counted(len(asked), f"scoring, {state}", "attacks", over=asked):
        scores[attack.name], chosen[attack.name] = attack.score(answers, aux)
        logger.debug("scored %s, %s (%s)", attack.name, state, chosen[attack.name])
    return scores, chosen


def digest_of(records: AnswerArrays, aux: AuxView) -> str:
    """Hash of a base's answers and of the aux side that attacks learn from."""
    digest = hashlib.sha256(repr((aux.seed, sorted(records))).encode())
    for values in (*(records[name] for name in sorted(records)), aux.indices, aux.labels, aux.folds):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def permuted_fit(answers: Answers, aux: AuxView, candidates: Candidates, registry: Sequence[Attack]) -> FloatArray:
    """[n] mean scores of the primary attack, fitted on these answers and on aux labels shuffled among groups."""
    primary = next(attack for attack in registry if attack.name == PRIMARY)
    groups = np.array(candidates.groups, dtype=str)[aux.indices]
    names, position = np.unique(groups, return_inverse=True)
    label_of = np.zeros(len(names), dtype=bool)
    label_of[position] = aux.labels
    total = np.zeros(len(candidates.pixels))
    for draw in range(PERMUTED_FITS):
        order = numpy_stream(aux.seed, "permuted fit", draw).permutation(len(names))
        dealt = AuxView(aux.indices, label_of[order][position], aux.folds, aux.seed)
        total += primary.score(answers, dealt)[0]
    return total / PERMUTED_FITS


def control(name: str, rows: FloatArray, candidates: Candidates) -> Control:
    """AUC of a control on the test sides."""
    test = sides_of(rows, candidates, "test")
    return Control(name, auc(*test), auc_interval(*test, *test_groups(candidates)))


def profiles(answers: Answers, candidates: Candidates) -> dict[str, list[tuple[int, float, float]]]:
    """AUC against the timestep for loss, caption gain and SecMI, LoRA on and off; shown only, no attack reads it."""
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
