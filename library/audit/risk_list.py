"""Which member pictures are most exposed: for the owner's eyes only, with thumbnails."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from library.audit.evidence import Candidates, Rows
from library.data.examples import open_picture

THUMB = 96  # pixels


@dataclass(frozen=True)
class Risk:
    """One member picture."""

    file: str
    side: str
    score: float
    passed_by: float  # share of non-members (both sides) that score at least as high
    thumbnail: str  # data URI


def riskiest(scores: Rows, candidates: Candidates, paths: Sequence[Path], count: int = 24) -> list[Risk]:
    """The members with the highest scores; aux members carry held-out scores."""
    members = np.flatnonzero(candidates.is_member)
    non_members = np.sort(scores[~candidates.is_member])
    order = members[np.argsort(-scores[members], kind="stable")][:count]
    return [
        Risk(
            file=paths[row].name,
            side=candidates.sides[row],
            score=float(scores[row]),
            passed_by=float(1 - np.searchsorted(non_members, scores[row], side="left") / len(non_members)),
            thumbnail=thumbnail(paths[row]),
        )
        for row in order.tolist()
    ]


def thumbnail(path: Path) -> str:
    """A small PNG as a data URI."""
    picture = open_picture(path)
    picture.thumbnail((THUMB, THUMB))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
