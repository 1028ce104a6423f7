"""Answers of a robustness audit whose rises are known, and what is made of them."""

import numpy as np

from library.audit.robustness.leak import leaks_of
from library.audit.robustness.questions import RobustnessRules
from library.audit.robustness.ranks import Variant
from library.audit.robustness.robustness_findings import (
    AuditedPictures,
    checks_of,
    code_findings,
    findings_of,
)
from library.audit.robustness.robustness_result import RobustnessResult

SIZES = (0.01, 0.02)
SIDES = ["members-test"] * 4 + ["non-members-test"] * 4
PICTURES = AuditedPictures(SIDES, ["a", "a", "b", "c", "d", "e", "f", "f"])


def answers(rise: float, *, transfer: float = 1.1, noise: float = 1.01, one_step: float = 1.2) -> dict:
    """Losses of eight pictures that rise by these factors; the second size by their squares."""
    clean = np.linspace(0.5, 1.2, 8)
    by_size = np.stack([clean, clean], 1)

    def at(factor: float) -> np.ndarray:
        return (by_size * [factor, factor**2]).astype(np.float32)

    known = {"loss": rise, "text": rise, "transfer": transfer}
    known |= {f"{kind}_{end}": value for kind in ("loss", "text")
              for end, value in (("noise", noise), ("one_step", one_step), ("fresh", rise))}  # fmt: skip
    moved = np.tile(np.array([[3.0, 4.0, 1.0], [6.0, 8.0, 2.0]]) / 255, (8, 1, 1)) * rise
    return {name: at(factor) for name, factor in known.items()} | {
        "clean": by_size.astype(np.float32), "damage": moved.astype(np.float32),
    }  # fmt: skip


RISES = {"base": 1.5, "full": 2.0, "rank 2": 1.8, "rank 1": 1.6, "half strength": 1.7}


def losses(rise: float) -> dict:
    """Losses at two noise levels that lie the farther below the base's (1.5) the larger the number."""
    clean = np.linspace(0.5, 1.2, 8)[:, None] * [1.0, 2.0]
    of_members = np.array([0.9, 0.95, 1, 1, 1, 1, 1, 1])[:, None] ** (rise != RISES["base"])
    return {"losses": (clean * 1.5 / rise * of_members).astype(np.float32)}


def result() -> RobustnessResult:
    """A LoRA of rank 4 that grows sturdier the more it is cut."""
    generator = np.random.default_rng(0)
    asked = {name: answers(rise) for name, rise in RISES.items()}
    for one in asked.values():  # pictures differ, so that intervals have a width
        one["loss"] *= np.exp(0.02 * generator.standard_normal((8, 1))).astype(np.float32)
    code = {name: np.tile([value, 2 * value], (8, 1)) for name, value in
            {"code": 0.4, "code_noise": 0.1, "code_one_step": 0.3}.items()}  # fmt: skip
    kept = {"base": (0, 0.0), "full": (4, 1.0), "rank 2": (2, 0.8), "rank 1": (1, 0.6), "half strength": (4, 0.25)}
    return RobustnessResult(
        variants=[Variant(name, rank, energy, None) for name, (rank, energy) in kept.items()],
        sizes=list(SIZES),
        findings=findings_of(asked, PICTURES, SIZES),
        checks=checks_of(asked, PICTURES),
        code=code_findings(code, PICTURES, SIZES),
        leaks=leaks_of({name: losses(rise) for name, rise in RISES.items()}, PICTURES, 0),
        pictures={"members-test": 4, "non-members-test": 4},
        groups=6,
        rules=RobustnessRules(robustness_steps=3, robustness_restarts=1, generation_steps=4, audit_seed=0),
    )
