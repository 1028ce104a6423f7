"""Which member pictures are most exposed: for the owner's eyes only, with thumbnails."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.audit.attacks.registry import MOST_EXPOSED
from library.audit.report.audit_result import AuditResult
from library.audit.statistics.intervals import share_interval
from library.audit.targets.candidate_table import FloatArray
from library.data.examples import open_picture

THUMB = 96  # pixels


@dataclass(frozen=True)
class ExposedPicture:
    """One member picture."""

    file: str
    side: str
    score: float
    passed_by: int  # non-members (both sides) that score at least as high
    non_members: int
    bound: float  # upper 95 % limit of their share
    thumbnail: str  # data URI
    drawing: str  # the nearest drawing of its caption, or empty
    repeats: int | None = None  # uses per epoch; None where nobody knows, or all have the same

    def in_words(self) -> str:
        """Its side, how often it was shown where that differs, and how often whoever accuses it would be wrong."""
        side = "test side" if self.side.endswith("-test") else "aux side"
        shown = "" if self.repeats is None else f", shown {self.repeats} times an epoch"
        most = f"at most {100 * self.bound:.1f} % with 95 % confidence"
        return f"{side}{shown}; passed by {self.passed_by} of {self.non_members} non-members: {most}"


def most_exposed_members(result: AuditResult, paths: Sequence[Path], count: int = 24) -> list[ExposedPicture]:
    """The members with the highest scores of the attack that ranks single pictures: no label is in its scores."""
    scores, candidates = result.evaluation.scores[MOST_EXPOSED], result.candidates
    outside = np.flatnonzero(~candidates.is_member)
    groups = [candidates.groups[row] for row in outside.tolist()]
    listed = []
    for row in most_exposed_rows(scores, candidates.is_member, count):
        passing = scores[outside] >= scores[row]
        listed.append(
            ExposedPicture(
                file=paths[row].name,
                side=candidates.sides[row],
                score=float(scores[row]),
                passed_by=int(passing.sum()),
                non_members=len(outside),
                bound=share_interval(passing, groups)[1],
                thumbnail=thumbnail(open_picture(paths[row])),
                drawing=drawing(result.nearest.get(candidates.pixels[row])),
                repeats=candidates.repeats[row] if result.evaluation.most_shown else None,
            )
        )
    return listed


def most_exposed_rows(scores: FloatArray, is_member: NDArray[np.bool_], count: int) -> list[int]:
    """The members with the highest scores, highest first."""
    members = np.flatnonzero(is_member)
    return members[np.argsort(-scores[members], kind="stable")][:count].tolist()


def drawing(pixels: NDArray[np.uint8] | None) -> str:
    """A drawing [3, h, w] as a data URI; empty where none was made."""
    return "" if pixels is None else thumbnail(Image.fromarray(pixels.transpose(1, 2, 0)))


def thumbnail(picture: Image.Image) -> str:
    """A small PNG as a data URI."""
    picture.thumbnail((THUMB, THUMB))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
