"""Attackers that learn on aux rows, a fit for each fold of them.

An aux row is judged by the fit that did not see its fold, every other row by the mean of the same fits: so all scores
come from one kind of judge, and a threshold that is fixed on aux scores means the same on test scores.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from library.audit.targets.candidate_table import AuxView, FloatArray

# (features [A, F], labels [A], features to judge [n, F]) -> scores [n]
FitAndScore = Callable[[FloatArray, NDArray[np.bool_], FloatArray], FloatArray]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression, weakest last


def cross_fitted(features: FloatArray, aux: AuxView, fit_and_score: FitAndScore) -> FloatArray:
    """[n] scores: each aux row judged by the fit without its fold, every other row by the mean of the folds' fits."""
    folds = np.unique(aux.folds)
    judged = [
        fit_and_score(features[aux.indices[kept]], aux.labels[kept], features)
        for kept in (aux.folds != fold for fold in folds)
    ]
    return joined(np.stack(judged), folds, aux)


def joined(judged: FloatArray, folds: NDArray[np.intp], aux: AuxView) -> FloatArray:
    """[..., n] scores from those of each fold's fit.

    Args:
        judged: [folds, ..., n] scores of all rows by the fit without each fold.
    """
    scores = judged.mean(0)
    for fold, rows in zip(folds, judged, strict=True):
        held_out = aux.indices[aux.folds == fold]
        scores[..., held_out] = rows[..., held_out]
    return scores


def logistic(penalty: float) -> FitAndScore:
    """L2-logistic regression on features scaled by the rows it is fitted on; the score is the logit."""

    def fit_and_score(features: FloatArray, labels: NDArray[np.bool_], judged: FloatArray) -> FloatArray:
        varying = features.std(0) > 1e-12
        if not varying.any():
            return np.zeros(len(judged))
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, class_weight="balanced", max_iter=500))
        model.fit(features[:, varying], labels)
        return model.decision_function(judged[:, varying])

    return fit_and_score


def best_logistic(features: FloatArray, aux: AuxView) -> tuple[FloatArray, str]:
    """Cross-fitted logits at the penalty with the best aux AUC; ties go to the stronger penalty."""
    tried = [
        (aux.auc(scores), scores, penalty)
        for penalty in PENALTIES
        for scores in [cross_fitted(features, aux, logistic(penalty))]
    ]
    area, scores, penalty = max(tried, key=lambda one: round(one[0], 3))
    return scores, f"logistic, C = {penalty:g}"


def boosted_trees(trees: int, seed: int) -> FitAndScore:
    """Gradient-boosted trees of depth 3 on subsampled rows and columns; the score is the logit."""

    def fit_and_score(features: FloatArray, labels: NDArray[np.bool_], judged: FloatArray) -> FloatArray:
        if not (features.std(0) > 1e-12).any():
            return np.zeros(len(judged))
        model = GradientBoostingClassifier(
            n_estimators=trees, max_depth=3, subsample=0.7, max_features="sqrt", random_state=seed
        )
        model.fit(features, labels)
        return model.decision_function(judged)

    return fit_and_score


def robust_scaled(scores: FloatArray, aux: AuxView) -> FloatArray:
    """(score - median) / interquartile range, both of the aux rows."""
    low, middle, high = np.quantile(scores[aux.indices], (0.25, 0.5, 0.75))
    return (scores - middle) / max(high - low, 1e-12)
