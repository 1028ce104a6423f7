"""Cross-fitted distillation in a run: which teacher learns from what, and what teachers say of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from library.data.training_set import TrainingSet
from library.errors import InputError
from library.privacy.distillation import CrossFit, DistillRules, answering, draw_folds, uses_of_teacher
from library.seeding import StreamKey
from library.training.state import copied_tensors, fill_raw, restored
from library.training.training_plan import TrainingPlan, plan_training

Predict = Callable[[Sequence[int]], Tensor]  # places of a batch -> predictions [P, C, h, w] of the network as it is


@dataclass(frozen=True)
class DistillPlan:
    """What each teacher is trained on, and for how long; by teacher, counted from 0."""

    cross_fit: CrossFit
    training_sets: Sequence[TrainingSet]
    plans: Sequence[TrainingPlan]

    def total_steps(self) -> int:
        """Optimizer steps of all teachers together, where none stops early."""
        return sum(plan.total_steps for plan in self.plans)

    def summary(self, rules: DistillRules) -> str:
        """The teachers in one line."""
        epochs = f"{rules.distill_teacher_epochs} epoch{'s' if rules.distill_teacher_epochs != 1 else ''}"
        return (
            f"distillation: {rules.distill_folds} teachers, one after another, each {epochs} "
            f"over the members outside its fold ({self.total_steps()} steps in all)"
        )


def member_groups(training_set: TrainingSet) -> list[str | None]:
    """The group of each picture of a training set; None for one that is no member."""
    return [
        one.group if is_member else None
        for one, is_member in zip(training_set.examples, training_set.is_member, strict=True)
    ]


def plan_distillation(
    training_set: TrainingSet, rules: DistillRules, key: StreamKey, *, accumulation: int, processes: int
) -> DistillPlan:
    """Draw the folds and plan the teachers. Regularisation images are public: every teacher sees all of them.

    Raises:
        InputError: more folds than groups of members.
    """
    groups = member_groups(training_set)
    different = {
        one.pixels: group for one, group in zip(training_set.examples, groups, strict=True) if group is not None
    }
    cross_fit = draw_folds(different.values(), rules.distill_folds, key)
    sets = [
        replace(training_set, uses=uses_of_teacher(cross_fit, teacher, groups, training_set.uses))
        for teacher in range(rules.distill_folds)
    ]
    plans = [
        plan_training(one.steps_per_epoch(processes, accumulation), 0, rules.distill_teacher_epochs) for one in sets
    ]
    return DistillPlan(cross_fit, sets, plans)


@dataclass(frozen=True)
class Teachers:
    """The teachers of a run. They take turns in the one network of the model, so there is no second model."""

    plan: DistillPlan
    network: Any
    start: Mapping[str, Tensor]  # of the network: every teacher and the student begin there
    weights: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # of the network, by teacher; filled in teach()

    @torch.no_grad()
    def goal(self, target: Tensor, groups: Sequence[str | None], predict: Predict) -> Tensor:
        """What the student's prediction is compared with, [B, C, h, w].

        For a member, the mean prediction of the teachers that never saw its group, without dropout, and nothing of the
        target. For any other picture, the target.

        Args:
            target: [B, C, h, w] true noise or velocity.
            groups: of the pictures; None for one that is no member.
            predict: of the places that one teacher answers for.
        """
        asked = answering(self.plan.cross_fit, groups)
        goal = target.clone()
        goal[[place for place, group in enumerate(groups) if group is not None]] = 0.0
        was_training = self.network.training
        self.network.eval()
        with restored(self.network):
            for teacher, places in asked.items():
                fill_raw(self.network, self.weights[teacher])
                several = [len(self.plan.cross_fit.teachers_for(str(groups[place]))) for place in places]
                share = torch.tensor(several, device=target.device)[:, None, None, None]
                goal[places] += predict(places) / share
        self.network.train(was_training)
        return goal


def require_swap(network: Any, module: str) -> None:
    """Raises: InputError for a network whose tensors cannot be taken out and put back.

    Args:
        module: its name, for the message.
    """
    try:
        tensors = copied_tensors(network)
        fill_raw(network, tensors)
    except (AttributeError, TypeError, NotImplementedError, RuntimeError) as error:
        raise _no_swap(module, f"{type(error).__name__}: {error}") from error
    if not tensors:
        raise _no_swap(module, "it has no tensors")


def _no_swap(module: str, reason: str) -> InputError:
    return InputError(
        f"network_module '{module}' makes a network whose tensors cannot be taken out and put back ({reason}), so "
        "teachers and student cannot take turns in it; leave distill_folds out, or use networks.lora"
    )
