"""Which member pictures are most exposed: for the owner's eyes only, with thumbnails."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from library.audit.attacks.registry import PRIMARY
from library.audit.report.audit_result import AuditResult
from library.audit.statistics.intervals import clopper_pearson
from library.data.examples import open_picture

THUMB = 96  # pixels


@dataclass(frozen=True)
class ExposedPicture:
    """One member picture."""

    file: str
    side: str
    score: float
    passed_by: int  # non-members (both sides) that score at least as high
    non_members: int  # of how many
    thumbnail: str  # data URI
    drawing: str  # the nearest drawing of its caption, or empty

    def in_words(self) -> str:
        """How often whoever accuses this picture would be wrong, as counts with a bound, and which side it is on."""
        most = math.ceil(1000 * clopper_pearson(self.passed_by, self.non_members)[1]) / 10
        side = "test side" if self.side.endswith("-test") else "aux side, held-out score"
        return f"passed by {self.passed_by} of {self.non_members} non-members: at most {most:g} % (95 %); {side}"


def most_exposed_members(result: AuditResult, paths: Sequence[Path], count: int = 24) -> list[ExposedPicture]:
    """The members with the highest scores of the main attack; aux members carry held-out scores."""
    scores, candidates = result.evaluation.scores[PRIMARY], result.candidates
    members = np.flatnonzero(candidates.is_member)
    non_members = np.sort(scores[~candidates.is_member])
    order = members[np.argsort(-scores[members], kind="stable")][:count]
    return [
        ExposedPicture(
            file=paths[row].name,
            side=candidates.sides[row],
            score=float(scores[row]),
            passed_by=len(non_members) - int(np.searchsorted(non_members, scores[row], side="left")),
            non_members=len(non_members),
            thumbnail=thumbnail(open_picture(paths[row])),
            drawing=drawing(result.nearest.get(candidates.pixels[row])),
        )
        for row in order.tolist()
    ]


def drawing(pixels: NDArray[np.uint8] | None) -> str:
    """A drawing [3, h, w] as a data URI; empty where none was made."""
    return "" if pixels is None else thumbnail(Image.fromarray(pixels.transpose(1, 2, 0)))


def thumbnail(picture: Image.Image) -> str:
    """A small PNG as a data URI."""
    picture.thumbnail((THUMB, THUMB))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
