"""The answers that attacks score: the model with the adapter on and off."""

from dataclasses import dataclass

import numpy as np

from library.audit.queries.answer_cache import AnswerArrays
from library.audit.queries.error_statistics import BANDS, FIRST_BAND, LOW_BANDS, SQUARE
from library.audit.queries.query_plan import QueryPlan
from library.audit.targets.candidate_table import FloatArray

SAME = 1e-4  # share of a loss; fp32 in another batch moves one by 1e-5 at most


@dataclass(frozen=True)
class Answers:
    """The answers about all pictures, adapter on and off (gradients "off" are those of an untrained adapter)."""

    on: AnswerArrays
    off: AnswerArrays
    plan: QueryPlan

    def without_adapter(self) -> "Answers":
        """The control: the base in the adapter's place. Every attack must be at chance on it."""
        return Answers(self.off, self.off, self.plan)

    def is_silent(self) -> bool:
        """Whether the adapter moves no loss by more than ``SAME`` of itself: batches alone move the last digits."""
        on, off = (records["noise"][..., SQUARE].astype(np.float64) for records in (self.on, self.off))
        return bool((np.abs(on - off) <= SAME * np.abs(off)).all())

    def losses(self, state: str, *, caption: bool = True, far_weight: float = 1.0) -> FloatArray:
        """[n, T] loss at each timestep, mean over draws.

        Args:
            far_weight: factor on the residual beyond radius 5; 0.2 is the frequency filter of arXiv 2505.20955.
        """
        grid = (self.on if state == "on" else self.off)["noise"][:, :, :, 0 if caption else 1].astype(np.float64)
        return filtered(grid, far_weight).mean(2)


def filtered(statistics: FloatArray, far_weight: float) -> FloatArray:
    """Mean square of a filtered difference from its band energies (Parseval); weight 1 is the plain mean square."""
    if far_weight == 1.0:
        return statistics[..., SQUARE]
    bands = statistics[..., FIRST_BAND : FIRST_BAND + BANDS]
    return bands[..., :LOW_BANDS].sum(-1) + far_weight**2 * bands[..., LOW_BANDS:].sum(-1)
