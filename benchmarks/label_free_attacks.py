"""New attacks against old ones on any audited runs, with paired intervals.

    bash audit.sh RUN [RUN ...] && python -m benchmarks.label_free_attacks RUN [RUN ...]

Takes the audit's options. Splits that were not looked at while an attack was designed say most; runs on one pool of
pictures share pictures, so their mean is less certain than its interval.
"""

import dataclasses
import math
import sys
from collections.abc import Mapping

import numpy as np

from library.assembly.audit_lora import Subject
from library.audit.attacks.attack_result import sides_of, test_groups
from library.audit.attacks.classifiers import best_logistic
from library.audit.attacks.registry import ATTACKS
from library.audit.attacks.score_attacks import against_untrained, fusion_features
from library.audit.queries.answers import Answers
from library.audit.queries.run_queries import read_answers, read_index
from library.audit.statistics.intervals import paired_auc_difference
from library.audit.statistics.metrics import auc, tpr_at_fpr
from library.audit.targets import candidates, lora_runs, provenance
from library.audit.targets.candidate_table import AuxView, Candidates, FloatArray, aux_view
from library.options import resolve, sources

PAIRS = (
    ("label_free", "fusion"),
    ("loss_empty_calibrated", "loss_calibrated"),
    ("loss_residual", "loss_calibrated"),
    ("caption_gain", "clid"),
    ("fusion", "fusion without the empty caption"),
)
FPR = 0.05


def earlier_fusion(answers: Answers, aux: AuxView) -> FloatArray:
    """The main attack without its columns of the empty caption, as it was before they came in."""
    width = len(answers.plan.noise_timesteps)
    kept = np.delete(fusion_features(answers), np.arange(3 * width, 5 * width), axis=1)
    learned = [
        best_logistic(against_untrained(answers, norms), aux)[0] for norms in ("gradient_of_mean", "gradient_norms")
    ]
    return best_logistic(np.column_stack([kept, *learned]), aux)[0]


def scores_of(answers: Answers, aux: AuxView) -> dict[str, FloatArray]:
    """Scores of every attack in ``PAIRS``."""
    wanted = {name for pair in PAIRS for name in pair}
    found = {attack.name: attack.score(answers, aux)[0] for attack in ATTACKS if attack.name in wanted}
    return found | {"fusion without the empty caption": earlier_fusion(answers, aux)}


def differences(scores: Mapping[str, FloatArray], everybody: Candidates) -> list[tuple[float, float]]:
    """(AUC difference, its standard error) of every pair, and a line about each."""
    found = []
    for new, old in PAIRS:
        first, second = (sides_of(scores[name], everybody, "test") for name in (new, old))
        difference, (low, high) = paired_auc_difference(first, second, *test_groups(everybody), seed=0)
        rates = " against ".join(f"{tpr_at_fpr(*side, FPR):.2f}" for side in (first, second))
        areas = f"AUC {auc(*first):.3f} against {auc(*second):.3f}, {difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        print(f"  {new} - {old}: {areas}; TPR at {FPR:g} FPR {rates}")
        found.append((difference, (high - low) / 3.92))
    return found


def main(arguments: list[str]) -> int:
    """Score the cached answers of every run, and print the paired differences and their means."""
    words = sources.outputs_named(arguments, resolve.TYPES)
    config = resolve.read_config("audit", words)
    given = {name: getattr(config, name) for name in resolve.given_options("audit", words)}
    runs = lora_runs.find_runs(
        config.outputs,
        config.checkpoints,
        defaults=dataclasses.asdict(config),
        overrides=given,
        split_file=config.split_file or None,
    )
    sets, found = candidates.candidate_sets_of(runs, config.target_fpr), []
    for run in runs:
        subject = Subject(run, config, *provenance.read_adapter(run.lora), sets[run.lora], None)
        index = run.answer_index(subject.plan.name)
        answers = read_answers(*read_index(index, subject.shelf, subject.origin.fingerprint), subject.plan)
        everybody = subject.candidate_set.candidates
        print(run.label)
        found.append(differences(scores_of(answers, aux_view(everybody, config.audit_seed)), everybody))
    print(f"mean of {len(found)} runs")
    for pair, column in zip(PAIRS, zip(*found, strict=True), strict=True):
        mean = sum(one for one, _ in column) / len(column)
        reach = 1.96 * math.hypot(*(error for _, error in column)) / len(column)
        ends = min(one for one, _ in column), max(one for one, _ in column)
        print(f"  {' - '.join(pair)}: {mean:+.3f} [{mean - reach:+.3f}, {mean + reach:+.3f}], "
              f"runs {ends[0]:+.3f} to {ends[1]:+.3f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(resolve.run(main))
