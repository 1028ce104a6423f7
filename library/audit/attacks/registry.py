"""The registry of attacks, with what each needs to know and what it costs."""

from collections.abc import Callable
from dataclasses import dataclass

from library.audit.attacks import label_free, score_attacks
from library.audit.attacks.score_attacks import Scored
from library.audit.queries.answers import Answers
from library.audit.queries.query_plan import QueryPlan
from library.audit.targets.candidate_table import AuxView


@dataclass(frozen=True)
class Attack:
    """One line of the registry."""

    name: str
    title: str
    access: str  # BB generates, GB asks the UNet, GB+base also the public base, WB reads weights and gradients
    needs_caption: bool
    learns: bool  # fits labels, more than a choice among a few timesteps
    passes: Callable[[QueryPlan], int]  # UNet passes per picture with the adapter on
    score: Callable[[Answers, AuxView], Scored]
    possible: Callable[[QueryPlan], bool] = lambda plan: True


def _noise(plan: QueryPlan) -> int:
    return plan.passes()["noise"] // 2


def _both(plan: QueryPlan) -> int:
    return plan.passes()["noise"]


def _jumps(count: Callable[[QueryPlan], int]) -> Callable[[QueryPlan], int]:
    return lambda plan: 1 + count(plan)


def _clid(plan: QueryPlan) -> int:
    return 2 * len(plan.clid_timesteps) * plan.noise_draws


def _clid_full(plan: QueryPlan) -> int:
    return _clid(plan) + plan.passes()["clipped captions"]


def _everything(plan: QueryPlan) -> int:
    return sum(plan.passes().values())


ATTACKS = (
    Attack("loss", "Loss threshold", "GB", True, False, _noise, score_attacks.loss),
    Attack("loss_calibrated", "Loss against the base", "GB+base", True, False, _noise, score_attacks.calibrated_loss),
    Attack("loss_filtered", "Low-frequency loss", "GB", True, False, _noise, score_attacks.filtered_loss),
    Attack(
        "loss_filtered_calibrated",
        "Low-frequency loss against the base",
        "GB+base",
        True,
        False,
        _noise,
        score_attacks.filtered_calibrated_loss,
    ),
    Attack(
        "loss_empty_calibrated",
        "Loss against the base, empty caption",
        "GB+base",
        False,
        False,
        _noise,
        label_free.empty_calibrated_loss,
    ),
    Attack("caption_gain", "Caption gain against the base", "GB+base", True, False, _both, label_free.log_caption_gain),
    Attack(
        "loss_residual",
        "Loss against the base, difficulty taken out",
        "GB+base",
        True,
        False,
        _noise,
        label_free.residual_loss,
    ),
    Attack(
        "label_free", "Empty caption and caption gain, no labels", "GB+base", True, False, _both, label_free.label_free
    ),
    Attack("secmi", "SecMI", "GB", True, False, lambda plan: len(plan.chain_nodes), score_attacks.secmi),
    Attack(
        "secmi_filtered",
        "SecMI, low frequencies",
        "GB",
        True,
        False,
        lambda plan: len(plan.chain_nodes),
        score_attacks.secmi_filtered,
    ),
    Attack(
        "secmi_network",
        "SecMI, network on error maps",
        "GB",
        True,
        True,
        lambda plan: len(plan.chain_nodes),
        score_attacks.secmi_network,
    ),
    Attack("pia", "PIA", "GB", True, False, _jumps(lambda plan: len(plan.pia_timesteps)), score_attacks.pia),
    Attack("pian", "PIAN", "GB", True, False, _jumps(lambda plan: 1), score_attacks.pian),
    Attack("sima", "SimA", "GB", True, False, lambda plan: len(plan.sima_timesteps), score_attacks.sima),
    Attack(
        "pfami",
        "PFAMI minus base",
        "GB+base",
        True,
        False,
        lambda plan: 2 * len(plan.crop_timesteps),
        score_attacks.pfami,
        lambda plan: bool(plan.crop_timesteps),
    ),
    Attack("clid", "CLiD, empty caption", "GB", True, False, _clid, score_attacks.clid_null),
    Attack("clid_threshold", "CLiD, threshold", "GB", True, False, _clid_full, score_attacks.clid_threshold),
    Attack("clid_vector", "CLiD, trees", "GB", True, True, _clid_full, score_attacks.clid_vector),
    Attack(
        "gsa1", "GSA1, LoRA gradients", "WB", True, True, lambda plan: plan.passes()["gradients"], score_attacks.gsa1
    ),
    Attack(
        "gsa2", "GSA2, LoRA gradients", "WB", True, True, lambda plan: plan.passes()["gradients"], score_attacks.gsa2
    ),
    Attack("map_mlp", "Loss-map MLP of the released method", "GB", True, True, lambda plan: 1, score_attacks.map_mlp),
    Attack("fusion", "All profiles, linear", "WB", True, True, _everything, score_attacks.fusion),
)
PRIMARY = "fusion"  # fixed beforehand
MOST_EXPOSED = "loss_residual"  # ranks single pictures: no label of theirs or of others is in the score
