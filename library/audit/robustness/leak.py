"""What each variant tells of its members and learnt of others, by one attack that needs no label and no fit."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from library.audit.queries.answer_cache import AnswerArrays
from library.audit.queries.audited_model import AuditedModel
from library.audit.queries.error_statistics import noise_for
from library.audit.robustness.objectives import KNOWN, DenoisingLoss
from library.audit.robustness.robustness_findings import AuditedPictures, Estimate
from library.audit.statistics.gain import gain_with_interval, log_falls
from library.audit.statistics.intervals import auc_interval, paired_auc_difference
from library.audit.statistics.metrics import auc
from library.audit.targets.candidate_table import Picture

TIMESTEPS = (100, 300)  # of 1000: where the membership audit's losses tell most


@dataclass(frozen=True)
class LeakFinding:
    """Loss against the base on all pictures of the test sides (the membership audit's label-free attack)."""

    variant: str
    members: int
    non_members: int
    auc: Estimate  # 0.5 for the base, which is held against itself
    minus_full: Estimate | None  # paired over the same pictures; None for the whole LoRA
    learnt: Estimate  # held-out gain: how far the error of the non-members lies below the base's


@torch.no_grad()
def losses_of(audited: AuditedModel, batch: list[Picture]) -> dict[str, Tensor]:
    """losses [B, T] of pictures as they are, each under its own noise."""
    latents = torch.stack([one.latent for one in batch]).float().to(audited.device)
    states = audited.encode_text([one.caption for one in batch])
    shape = tuple(batch[0].latent.shape)
    losses = []
    for timestep in TIMESTEPS:
        noise = torch.stack([noise_for(one.identity, timestep, KNOWN, shape) for one in batch]).to(audited.device)
        losses.append(DenoisingLoss(audited, [(timestep, noise)]).of(latents, states))
    return {"losses": torch.stack(losses, dim=1).cpu()}


def leaks_of(answers: Mapping[str, AnswerArrays], pictures: AuditedPictures, seed: int) -> list[LeakFinding]:
    """One finding for each variant.

    Args:
        answers: of ``losses_of`` by the variant's name; "base" and "full" are among them.
    """
    members, others = pictures.rows("members-test"), pictures.rows("non-members-test")
    of_members, of_others = ([pictures.groups[row] for row in rows.tolist()] for rows in (members, others))
    off = answers["base"]["losses"].astype(np.float64)
    falls = {name: log_falls(one["losses"].astype(np.float64), off) for name, one in answers.items()}
    sides = {name: (fall[members], fall[others]) for name, fall in falls.items()}
    found = []
    for name, side in sides.items():
        against = None
        if name != "full":
            difference, reach = paired_auc_difference(side, sides["full"], of_members, of_others, seed)
            against = Estimate(difference, *reach)
        area = Estimate(auc(*side), *auc_interval(*side, of_members, of_others))
        learnt = Estimate(*gain_with_interval(side[1], of_others))
        found.append(LeakFinding(name, len(members), len(others), area, against, learnt))
    return found
