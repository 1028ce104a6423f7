"""The members that were shown most often: a verdict of their own, where exposures differ."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from library.audit.attacks.registry import MOST_EXPOSED
from library.audit.statistics.findings import Finding, ScoreSettings, examine_scores
from library.audit.statistics.working_attack import attack_works
from library.audit.targets.candidate_table import Candidates, FloatArray

LEAST_GROUPS = 2  # on each side, to test anything


@dataclass(frozen=True)
class MostShown:
    """The stratum of the pictures with the most uses per epoch."""

    pictures: int  # members in it
    others: int  # members that were shown less often
    times: float  # as often as the member that was shown least
    share_of_mean: float  # its uses over the mean of all members
    least_of_mean: float  # the least uses over that mean
    finding: Finding | None  # of the attack that uses no label, on both aux and test; None: too few to test

    @property
    def word(self) -> str:
        """leak, no evidence, or not tested."""
        if self.finding is None:
            return "not tested"
        return "leak" if attack_works(self.finding.p, self.finding.auc_interval) else "no evidence"


def most_shown(scores: Mapping[str, FloatArray], candidates: Candidates, seed: int) -> MostShown | None:
    """The members that were shown most often, against non-members of the same number of repeats.

    Those come from the same folders, so a style that the LoRA learnt from a folder tells nothing. The attack uses no
    label, so the aux pictures count like the test pictures. None where all members were shown alike.
    """
    repeats, members = np.asarray(candidates.repeats), candidates.is_member
    if not len(repeats) or np.ptp(repeats[members]) == 0:
        return None
    inside, uses = repeats == repeats[members].max(), repeats[members]
    rows = [np.flatnonzero(inside & side) for side in (members, ~members)]
    groups = [[candidates.groups[row] for row in side.tolist()] for side in rows]
    found = None
    if MOST_EXPOSED in scores and min(len(set(names)) for names in groups) >= LEAST_GROUPS:
        settings = ScoreSettings(MOST_EXPOSED, "nothing", seed=seed)
        inner, outer = (scores[MOST_EXPOSED][side] for side in rows)
        found = examine_scores(inner, outer, (groups[0], groups[1]), settings=settings).finding
    mean = float(uses.mean())
    return MostShown(
        len(rows[0]),
        int(members.sum()) - len(rows[0]),
        float(uses.max() / uses.min()),
        float(uses.max() / mean),
        float(uses.min() / mean),
        found,
    )
