"""Made-up sweeps with a leak of known size, for tests of attacks, protocol and report."""

import numpy as np

from library.audit.queries.answer_cache import AnswerArrays
from library.audit.queries.answers import Answers
from library.audit.queries.error_statistics import BANDS, COLUMNS, FIRST_BAND, FOURTH, NORM2, NORM4, SQUARE
from library.audit.queries.query_plan import LITE, QueryPlan
from library.audit.targets.candidate_table import Candidates

SIDES = ("members-aux", "members-test", "non-members-aux", "non-members-test")
FACTORS = 12  # low-rank factors of the made-up adapter


def planted_candidates(per_side: int = 60, seed: int = 0) -> Candidates:
    """Pictures in groups of one or two."""
    sides = [side for side in SIDES for _ in range(per_side)]
    order = np.random.default_rng(seed).permutation(len(sides))
    groups = [f"{sides[row]} {row // 2 if row % 10 < 2 else f'single {row}'}" for row in range(len(sides))]
    return Candidates(
        [f"{int(row):064x}" for row in order], [sides[row] for row in order], [groups[row] for row in order]
    )


def planted_answers(candidates: Candidates, leak: float | np.ndarray, plan: QueryPlan = LITE, seed: int = 0) -> Answers:
    """Records in which every quantity of a member is lowered by ``leak`` standard deviations with the adapter on."""
    generator = np.random.default_rng(seed)
    hardness = generator.normal(size=len(candidates.pixels))  # of each picture, shared by all its numbers
    shift = leak * candidates.is_member
    off = _records(generator, hardness, np.zeros_like(hardness), plan)
    on = _records(generator, hardness, shift, plan)
    return Answers(on, off, plan)


def _records(generator: np.random.Generator, hardness: np.ndarray, shift: np.ndarray, plan: QueryPlan) -> AnswerArrays:
    def lowered(*shape: int) -> np.ndarray:
        values = generator.normal(size=(len(hardness), *shape))
        level = (0.5 * hardness - shift).reshape(-1, *[1] * len(shape))
        return np.exp(0.2 * (values * 0.5 + level) - 2)

    def statistics(*shape: int) -> np.ndarray:
        square = lowered(*shape)
        rows = np.zeros((*square.shape, len(COLUMNS)))
        rows[..., SQUARE], rows[..., FOURTH] = square, 3 * square**2
        rows[..., NORM2], rows[..., NORM4] = 1, 3
        rows[..., FIRST_BAND : FIRST_BAND + BANDS] = square[..., None] / BANDS
        return rows

    noise = statistics(len(plan.noise_timesteps), plan.noise_draws, 2)
    noise[..., 1, :] *= np.exp(0.1 * shift)[:, None, None, None]  # the caption is worth more to members
    records = {
        "noise": noise,
        "pair": lowered(len(plan.noise_timesteps), plan.noise_draws, 2),
        "edges": statistics(len(plan.chain_nodes) - 1),
        "pia": statistics(len(plan.pia_timesteps)),
        "pian": statistics(1),
        "sima": statistics(len(plan.sima_timesteps)),
        "map_loss": lowered(4, 8, 8),
        "map_chain": lowered(4, 8, 8),
        "gradient_norms": lowered(len(plan.gradient_timesteps), FACTORS),
        "gradient_of_mean": lowered(FACTORS),
    }
    if plan.crop_timesteps:
        records["crop"] = statistics(len(plan.crop_timesteps)) * np.exp(0.3 * shift)[:, None, None]
    if plan.clipped_shares:
        clipped = statistics(len(plan.clipped_shares), len(plan.clipped_timesteps), plan.clipped_draws)
        records["clipped"] = clipped * np.exp(0.1 * shift)[:, None, None, None, None]
    return {name: values.astype(np.float32) for name, values in records.items()}
