"""From scores of all candidates to the finding of one attack, measured once on the test sides."""

from collections.abc import Mapping

import numpy as np

from library.audit.statistics.findings import Finding, ScoreSettings, examine_scores
from library.audit.statistics.permutation import permutation_test
from library.audit.targets.candidate_table import Candidates, FloatArray
from library.seeding import numpy_stream


def sides_of(scores: FloatArray, candidates: Candidates, kind: str) -> tuple[FloatArray, FloatArray]:
    """(members, non-members) of the "aux" or "test" sides."""
    return scores[candidates.indices(f"members-{kind}")], scores[candidates.indices(f"non-members-{kind}")]


def test_groups(candidates: Candidates) -> tuple[list[str], list[str]]:
    """Groups of the two test sides."""
    members, non_members = candidates.indices("members-test"), candidates.indices("non-members-test")
    return [candidates.groups[int(row)] for row in members], [candidates.groups[int(row)] for row in non_members]


def finding(
    scores: FloatArray,
    off: FloatArray | None,
    candidates: Candidates,
    settings: ScoreSettings,
    *,
    with_aux: bool = True,
) -> Finding:
    """All figures of one attack.

    Args:
        off: its scores with the base in the adapter's place.
        with_aux: False for an attack that asked about test pictures only: it has no threshold and chose nothing.
    """
    return examine_scores(
        *sides_of(scores, candidates, "test"),
        test_groups(candidates),
        aux=sides_of(scores, candidates, "aux") if with_aux else None,
        off=None if off is None else sides_of(off, candidates, "test"),
        settings=settings,
    ).finding


def joint_p(scores: Mapping[str, FloatArray], candidates: Candidates, seed: int) -> tuple[float, str]:
    """p of the largest deviation among several rows of scores, and whose it is."""
    rows = np.flatnonzero(candidates.is_test)
    stacked = np.stack([row[rows] for row in scores.values()])
    groups = [candidates.groups[int(row)] for row in rows]
    luck = permutation_test(stacked, candidates.is_member[rows], groups, numpy_stream(seed, "permutation"))
    return luck.p_max, list(scores)[int(np.argmax(np.abs(luck.aucs - 0.5)))]
