"""Attacks that use no label: the base is the reference, and a fit reads pictures without their sides."""

import numpy as np
from numpy.typing import NDArray

from library.audit.attacks.classifiers import cross_fitted
from library.audit.attacks.score_attacks import Scored, calibrated, logarithms
from library.audit.queries.answers import Answers
from library.audit.targets.candidate_table import AuxView, FloatArray


def log_losses(answers: Answers, state: str) -> tuple[FloatArray, FloatArray]:
    """[n, T] log losses with the caption and with the empty caption."""
    return logarithms(answers.losses(state)), logarithms(answers.losses(state, caption=False))


def empty_calibrated_loss(answers: Answers, aux: AuxView) -> Scored:
    """How much the adapter lowered the base's loss under the empty caption, mean over all timesteps."""
    return calibrated(answers, 1.0, caption=False).mean(1), "nothing"


def log_caption_gain(answers: Answers, aux: AuxView) -> Scored:
    """log(L(empty) / L(caption)) over all timesteps, minus the base's: what the caption became worth.

    CLiD's discrepancy (arXiv 2405.14800) as a ratio, against the base.
    """
    gains = []
    for state in ("on", "off"):
        caption, empty = log_losses(answers, state)
        gains.append((empty - caption).mean(1))
    return gains[0] - gains[1], "nothing"


def difficulty_fit(features: FloatArray, labels: NDArray[np.bool_], judged: FloatArray) -> FloatArray:
    """What a least-squares fit on all columns but the last leaves of the last; the labels are not read."""
    rows, asked = (np.column_stack([np.ones(len(one)), one[:, :-1]]) for one in (features, judged))
    weights = np.linalg.lstsq(rows, features[:, -1], rcond=None)[0]
    return judged[:, -1] - asked @ weights


def residual_loss(answers: Answers, aux: AuxView) -> Scored:
    """log(L_off / L_on), less what the base's own losses with and without caption predict of it.

    A hard picture gains more from any training; the fit, on aux pictures without their labels, takes that away.
    """
    (off, off_empty), (on, _) = log_losses(answers, "off"), log_losses(answers, "on")
    means = [off.mean(1), off_empty.mean(1), (off - on).mean(1)]  # few columns: a fit of many would add its own noise
    return cross_fitted(np.column_stack(means), aux, difficulty_fit), "a fit without labels"


def standardised(scores: FloatArray, aux: AuxView) -> FloatArray:
    """In standard deviations of the aux rows, members and non-members together, from their mean."""
    known = scores[aux.indices]
    return (scores - known.mean()) / max(float(known.std()), 1e-12)


def label_free(answers: Answers, aux: AuxView) -> Scored:
    """z(loss against the base, empty caption) + z(log caption gain)."""
    parts = empty_calibrated_loss(answers, aux)[0], log_caption_gain(answers, aux)[0]
    return standardised(parts[0], aux) + standardised(parts[1], aux), "nothing"
