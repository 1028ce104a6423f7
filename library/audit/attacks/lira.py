"""Two attacks with shadow LoRAs: a likelihood ratio per picture, and attacks that need no label of the target."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from library.audit.attacks.registry import ATTACKS, Attack
from library.audit.attacks.shadow_models import Planned, Shadow, train
from library.audit.queries.answer_cache import AnswerArrays
from library.audit.queries.answers import Answers
from library.audit.queries.audited_model import AuditedModel
from library.audit.queries.run_queries import AnswerFolders, QueryRunner, Shelf, losses_of, read_answers, read_index
from library.audit.targets.candidate_table import Candidates, FloatArray, aux_view
from library.audit.targets.provenance import Provenance, read_adapter
from library.errors import InputError

logger = logging.getLogger(__name__)
FEW = 8  # up to so many shadows, all pictures share one spread per timestep
TURNED = {"members-aux": "non-members-aux", "non-members-aux": "members-aux"}


def likelihood_ratios(target: FloatArray, shadows: FloatArray, inside: NDArray[np.bool_]) -> FloatArray:
    """[n] sum over timesteps of log N(x; in) - log N(x; out), Gaussians per picture and timestep (arXiv 2112.03570).

    Args:
        target: [n, T] log of the loss with the LoRA over that of the base.
        shadows: [N, n, T] the same under each shadow.
        inside: [N, n] who was in its training set.
    """
    mask = inside[:, :, None]
    log_ratio = np.zeros(target.shape)
    for sign, chosen in ((1, mask), (-1, ~mask)):
        count = chosen.sum(0)
        if (count == 0).any():
            raise InputError("every picture must be inside some shadows and outside others; train more shadows")
        centre = np.where(chosen, shadows, 0).sum(0) / count
        squares = np.where(chosen, (shadows - centre) ** 2, 0)
        if len(shadows) <= FEW:
            spread = (squares.sum((0, 1)) / max(int(count.sum()) - len(target), 1))[None]
        else:
            spread = squares.sum(0) / np.maximum(count - 1, 1)
        spread = np.maximum(spread, 1e-12)
        log_ratio += sign * (-0.5 * np.log(spread) - (target - centre) ** 2 / (2 * spread))
    return log_ratio.sum(1)


def likelihood_scores(
    answers: Answers, shadows: Sequence[Shadow], shelf: Shelf
) -> dict[str, tuple[FloatArray, FloatArray, str]]:
    """ "lira": scores of the target, of the base in its place, and what was used; nothing without shadows.

    Raises:
        InputError: shadows that were not asked yet.
    """
    if not shadows:
        return {}
    base = np.log(answers.losses("off"))
    shadow_answers = []
    for shadow in shadows:
        stores, keys = _index_of(shadow, answers.plan.name, shelf)
        shadow_answers.append(np.log(losses_of(Path(stores.on), keys, answers.plan)) - base)
    target, stacked = np.log(answers.losses("on")) - base, np.stack(shadow_answers)
    inside = np.stack([shadow.inside() for shadow in shadows])
    off = likelihood_ratios(np.zeros_like(target), stacked, inside)
    return {"lira": (likelihood_ratios(target, stacked, inside), off, f"{len(shadows)} shadows")}


def _index_of(shadow: Shadow, plan_name: str, shelf: Shelf) -> tuple[AnswerFolders, list[str]]:
    """Where a shadow's answers lie. Raises: InputError when it was not asked yet, or is another LoRA by now."""
    index = shadow.answer_index(plan_name)
    adapter = read_adapter(shadow.lora)[2].fingerprint if index.is_file() else ""
    return read_index(index, shelf, adapter)


def transferred_answers(target: Answers, shadow: Answers, aux: NDArray[np.intp]) -> Answers:
    """The target's answers, with the shadow's in the aux rows, so that attacks fit themselves on the shadow.

    Args:
        shadow: answers about the aux pictures alone, in the order of ``aux``.
    """

    def mixed(mine: AnswerArrays, theirs: AnswerArrays) -> AnswerArrays:
        rows = {name: values.copy() for name, values in mine.items()}
        for name, values in rows.items():
            values[aux] = theirs[name]
        return rows

    return Answers(mixed(target.on, shadow.on), target.off, target.plan)


def turned(candidates: Candidates) -> Candidates:
    """The candidates with the shadow's labels: its members are the aux non-members of the target."""
    return dataclasses.replace(candidates, sides=[TURNED.get(side, side) for side in candidates.sides])


def transferred_scores(
    target: Answers,
    shadow: Shadow | None,
    candidates: Candidates,
    seed: int,
    shelf: Shelf,
    registry: Sequence[Attack] = ATTACKS,
) -> tuple[Candidates, dict[str, tuple[FloatArray, FloatArray, str]]] | None:
    """Scores of attacks that are chosen and fitted on a shadow LoRA and tried on the target; they use no target label.

    Returns:
        The candidates with the shadow's labels on their aux sides (for the thresholds); scores, scores with the base
        in the adapter's place, and what was chosen, by attack. None without a shadow.
    """
    if shadow is None:
        return None
    known = turned(candidates)
    aux = aux_view(known, seed)
    shadow_answers = read_answers(*_index_of(shadow, target.plan.name, shelf), target.plan)
    mixed = transferred_answers(target, shadow_answers, aux.indices)
    found = {}
    for attack in registry:
        if attack.possible(target.plan):
            scores, chosen = attack.score(mixed, aux)
            found[attack.name] = scores, attack.score(mixed.without_adapter(), aux)[0], chosen
    return known, found


def ask_shadows(
    planned: Planned,
    candidates: Candidates,
    queries: QueryRunner,
    opened: Callable[[Path], tuple[AuditedModel, Provenance]],
) -> None:
    """Train every shadow that is not there yet and ask it what its attack needs.

    Args:
        opened: gives the base with a LoRA file in it, and what the file states about itself.
    """
    aux = [row for row, tested in enumerate(candidates.is_test.tolist()) if not tested]
    for shadow in [*planned.halves, *([planned.transfer] if planned.transfer else [])]:
        stage = queries.stages.begin("training a shadow LoRA")
        if not shadow.lora.is_file():
            logger.info("%s", stage)
        train(shadow, planned.recipe, candidates)
        audited, origin = opened(shadow.lora)
        stores = queries.stores(shadow.folder / "records", origin.fingerprint, origin.shape)
        whole = shadow is not planned.transfer  # the ratio needs every picture, the transfer needs gradients
        index, rows = shadow.answer_index(queries.plan.name), None if whole else aux
        queries.ask(audited, stores, index, origin.fingerprint, rows, gradients=not whole)


def exposures_summary(target: float | None, shadow: Shadow | None) -> dict[str, str]:
    """How often shadow and target saw their members: if the two differ much, attacks transfer badly."""
    if shadow is None:
        return {}
    known = ["unknown" if one is None else f"{one:g}" for one in (read_adapter(shadow.lora)[2].exposures, target)]
    return {"shadow": f"{known[0]} exposures per member picture, the LoRA under audit {known[1]}"}
