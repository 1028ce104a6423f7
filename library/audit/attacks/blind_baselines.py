"""Blind baselines: attackers that never ask the model, only look at pictures or captions; they must be at chance."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.feature_extraction.text import HashingVectorizer

from library.audit.attacks.classifiers import best_logistic
from library.audit.targets.candidate_table import AuxView, FloatArray
from library.data.examples import as_rgb
from library.incoming.pictures import open_image

THUMB = 8  # pixels per side
ORIENTATIONS = 8


def picture_features(picture: Image.Image) -> FloatArray:
    """Colours of a thumbnail, a colour histogram, edge directions, and the picture's own size."""
    small = np.asarray(picture.resize((THUMB, THUMB), Image.Resampling.BOX), np.float64) / 255
    middle = np.asarray(picture.resize((64, 64), Image.Resampling.BOX), np.float64) / 255
    bins = (middle.reshape(-1, 3) * 3.999).astype(int)
    colours = np.bincount(bins @ (16, 4, 1), minlength=64) / len(bins)
    down, across = np.gradient(middle.mean(2))
    direction = ((np.arctan2(down, across) / np.pi + 1) / 2 * (ORIENTATIONS - 1e-9)).astype(int)
    edges = np.bincount(direction.ravel(), np.hypot(down, across).ravel(), ORIENTATIONS) / direction.size
    size = [np.log(picture.width), np.log(picture.height), middle.mean(), middle.std()]
    return np.concatenate([small.ravel(), colours, edges, size])


def image_features(paths: Sequence[Path]) -> FloatArray:
    """[n, F] features of picture files."""
    rows = []
    for path in paths:
        with open_image(path) as file:
            rows.append(picture_features(as_rgb(file)))
    return np.stack(rows)


def caption_features(captions: Sequence[str]) -> FloatArray:
    """[n, F] hashed pieces of two to four letters, and lengths."""
    pieces = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=512, alternate_sign=False)
    lengths = np.array([[len(caption), len(caption.split()), caption.count(",")] for caption in captions], np.float64)
    return np.column_stack([pieces.transform(captions).toarray(), lengths])


def blind_controls(paths: Sequence[Path], captions: Sequence[str], aux: AuxView) -> dict[str, FloatArray]:
    """Cross-fitted logits of penalised logistic regressions; at chance on a sound split."""
    features = {"pictures alone": image_features(paths), "captions alone": caption_features(captions)}
    return {name: best_logistic(rows, aux)[0] for name, rows in features.items()}
