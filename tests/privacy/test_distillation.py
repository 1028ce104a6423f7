"""Folds of the members, who answers for whom, and what a student is compared with."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from library.assembly.distillation import Teachers, member_groups, plan_distillation, require_swap
from library.assembly.run import open_run
from library.assembly.teachers import Lesson, teach
from library.assembly.training import Training, open_training
from library.data.batches import Batch
from library.diffusion.denoising import Denoiser
from library.errors import Faults, InputError
from library.options.declarations import Config
from library.options.resolve import ReadOptions
from library.privacy.distillation import CrossFit, DistillRules, answering, draw_folds, uses_of_teacher
from library.seeding import StreamKey
from library.training.interruption import StopSignal
from library.training.state import copied_tensors
from tests.helpers.keys import write_secret

KEY = StreamKey(b"0" * 32, 7)
# Teacher 0 never saw a and d, teacher 1 never saw b and d, teacher 2 never saw c
THREE = CrossFit([frozenset("ad"), frozenset("bd"), frozenset("c")])


def test_who_answers_for_whom_by_hand() -> None:
    """Place 1 is no member; d was left out of two teachers, who both answer."""
    assert answering(THREE, ["c", None, "a", "d", "a", "b"]) == {0: [2, 3, 4], 1: [3, 5], 2: [0]}
    assert answering(THREE, [None]) == {} and THREE.teachers_for("d") == [0, 1]
    with pytest.raises(ValueError, match="every teacher was trained on this group"):
        answering(THREE, ["a", "e"])


def test_the_uses_of_a_teacher_by_hand() -> None:
    """Its own fold has none; what is no member keeps its uses."""
    assert uses_of_teacher(THREE, 0, ["a", "b", None, "d", None], [3, 2, 5, 1, 0]) == [0, 2, 5, 0, 0]


@pytest.mark.parametrize("folds", [2, 3, 5, 8])
def test_folds_are_disjoint_by_group_cover_all_and_are_of_one_size(folds: int) -> None:
    groups = [f"person {number % 8}" for number in range(40)]
    parts = draw_folds(groups, folds, KEY).left_out
    assert sorted(group for part in parts for group in part) == sorted(set(groups))
    sizes = sorted(len(part) for part in parts)
    assert len(parts) == folds and sizes[-1] - sizes[0] <= 1


def test_the_largest_group_gets_a_fold_of_its_own_and_the_order_of_pictures_is_no_matter() -> None:
    groups = ["many"] * 50 + [f"one {number}" for number in range(50)]
    fit = draw_folds(groups, 2, KEY)
    (of_many,) = [part for part in fit.left_out if "many" in part]
    assert of_many == {"many"} and fit == draw_folds(reversed(groups), 2, KEY)


def test_folds_depend_on_the_secret_and_on_the_seed() -> None:
    groups = [f"person {number}" for number in range(40)]
    drawn = [draw_folds(groups, 2, key) for key in (KEY, StreamKey(b"1" * 32, 7), StreamKey(b"0" * 32, 8))]
    assert drawn[0] != drawn[1] and drawn[0] != drawn[2]


def test_more_folds_than_groups_are_refused() -> None:
    with pytest.raises(InputError, match="distill_folds 3 is above the 2 groups of members"):
        draw_folds(["a", "b", "b"], 3, KEY)


class OneNumber(torch.nn.Module):
    """A network of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(1))


def toy_teachers(values: Sequence[float]) -> Teachers:
    """Teachers that predict a constant each."""
    network = OneNumber()
    weights = {teacher: {"number": torch.tensor([value])} for teacher, value in enumerate(values)}
    return Teachers(dataclasses.replace(PLAN, cross_fit=THREE), network, copied_tensors(network), weights)


PLAN: Any = dataclasses.make_dataclass("Plan", ["cross_fit"], frozen=True)(THREE)


def test_the_goal_of_a_member_is_the_mean_of_its_teachers_and_of_others_the_target() -> None:
    """Teachers say 1, 3 and 5: a gets 1, b 3, c 5, d their mean 2; the picture that is no member keeps its target."""
    teachers = toy_teachers([1.0, 3.0, 5.0])
    network = teachers.network.train()
    asked: list[tuple[float, list[int]]] = []

    def predict(places: Sequence[int]) -> Tensor:
        assert not network.training and not torch.is_grad_enabled()
        asked.append((network.number.item(), list(places)))
        return network.number.expand(len(places), 1, 2, 2)

    target = torch.full((5, 1, 2, 2), 9.0)
    goal = teachers.goal(target, ["a", "b", None, "c", "d"], predict)
    assert goal[:, 0, 0, 0].tolist() == [1.0, 3.0, 9.0, 5.0, 2.0] and not goal.requires_grad
    assert asked == [(1.0, [0, 4]), (3.0, [1, 4]), (5.0, [3])]
    assert network.training and network.number.item() == 0.0 and (target == 9.0).all()


class Silent:
    """A recorder that nobody reads."""

    def announce(self, *_: object) -> None:
        """Show nothing."""

    def teacher(self, *_: object) -> None:
        """Record nothing."""


KEPT = {"network_dim": 2, "train_batch_size": 4, "learning_rate": 1e-2, "seed": 7, "param_alpha": 0.0, "k_steps": 0,
        "inclusion": "fixed", "resolution": "16", "distill_folds": 3, "distill_teacher_epochs": 1}  # fmt: skip


@pytest.fixture
def taught(model_folder: Path, pictures: Path):
    """A tiny run whose teachers are trained, before its first step; 4 of the 8 groups have two pictures."""

    def make(**changed: Any) -> Training:
        groups = {f"quokka{number:03d}": f"wombat{number // 2}" for number in range(16)}
        (pictures / "groups.json").write_text(json.dumps(groups))
        places = {
            "pretrained_model_name_or_path": str(model_folder), "train_data_dir": str(pictures),
            "output_dir": str(pictures.parent / "out"), "split_secret_file": str(write_secret(pictures.parent)),
        }  # fmt: skip
        config = dataclasses.replace(Config(), **{**KEPT, **places, **changed})
        training = open_training(open_run(ReadOptions("PLoRA", config, {}, Faults())))
        teach(training, Silent(), StopSignal())  # type: ignore[arg-type]
        return training

    return make


def test_no_teacher_answers_for_a_group_that_it_was_trained_on(taught, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each teacher really was shown, against whom it really was asked about."""
    shown: dict[str, set[str]] = {}
    step = Lesson.step

    def watched(self: Lesson, number: int) -> dict[str, float]:
        for batch in self.game.members.of_step(number):
            shown.setdefault(self.name, set()).update(self.game.pictures.examples[row].group for row in batch.indices)
        return step(self, number)

    monkeypatch.setattr(Lesson, "step", watched)
    training = taught()
    game, asked = training.game, {}
    goal = Teachers.goal

    def spy(self: Teachers, target: Tensor, groups: Sequence[str | None], predict: Any) -> Tensor:
        for teacher, places in answering(self.plan.cross_fit, groups).items():
            asked.setdefault(f"teacher {teacher + 1} of 3", set()).update(groups[place] for place in places)
        return goal(self, target, groups, predict)

    monkeypatch.setattr(Teachers, "goal", spy)
    for step_number in range(4):
        for part, batch in enumerate(game.members.of_step(step_number)):
            game.member_losses(batch, step_number, part)
    members = {one.group for one in training.run.split.members()}
    assert len(shown) == len(asked) == 3 and len(members) == 4
    for name, groups in asked.items():
        assert groups and shown[name] and not groups & shown[name] and groups | shown[name] == members
    assert set().union(*asked.values()) == members and sum(map(len, asked.values())) == len(members)


def test_the_true_noise_of_a_member_never_enters_the_student_s_loss(taught, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another target leaves L as it is, bit for bit; without teachers it does not. The attacker sees the true error."""
    training = taught(k_steps=1, param_alpha=0.1)
    game, alone = training.game, dataclasses.replace(training.game, teachers=None)
    (batch,) = game.members.of_step(0)
    before, plain = game.member_losses(batch, 0, 0), alone.member_losses(batch, 0, 0)
    honest = Denoiser.target
    monkeypatch.setattr(Denoiser, "target", lambda self, scaled, draw: honest(self, scaled, draw) * -3 + 1)
    after, changed = game.member_losses(batch, 0, 0), alone.member_losses(batch, 0, 0)
    assert torch.equal(before[0], after[0]) and before[0] > 0
    assert not torch.equal(plain[0], changed[0]) and not torch.equal(before[0], plain[0])
    assert torch.equal(before[1], plain[1]) and not torch.equal(before[1], after[1])


def test_a_student_that_is_its_teacher_has_no_loss(taught) -> None:
    """Same noise, timestep and caption: what it predicts is what it is compared with."""
    training = taught()
    game = training.game
    for teacher in game.teachers.weights:
        game.teachers.weights[teacher] = copied_tensors(training.run.network)
    (batch,) = game.members.of_step(0)
    assert game.member_losses(batch, 0, 0)[0] < 1e-12


def test_teachers_leave_the_student_and_its_optimizer_as_they_were(taught) -> None:
    training = taught()
    start, present = training.game.teachers.start, copied_tensors(training.run.network)
    assert all(torch.equal(start[name], present[name]) for name in start) and not training.state.optimizer.state
    assert len(training.game.teachers.weights) == 3
    for weights in training.game.teachers.weights.values():
        assert any(not torch.equal(start[name], weights[name]) for name in start)


def test_public_pictures_keep_the_true_noise_and_have_no_teacher(taught) -> None:
    game = taught().game
    (batch,) = game.members.of_step(0)
    public = dataclasses.replace(game.pictures.training_set, is_member=[False] * len(game.pictures.examples))
    apart = dataclasses.replace(game, pictures=game.pictures.in_training(
        public, steps_per_epoch=1, total_steps=1, key=game.key))  # fmt: skip
    alone = dataclasses.replace(game, teachers=None)
    assert torch.equal(apart.member_losses(batch, 0, 0)[0], alone.member_losses(batch, 0, 0)[0])


def test_a_picked_batch_is_the_same_pictures() -> None:
    batch = Batch(torch.rand(3, 4, 2, 2), torch.rand(3, 4, 2, 2), torch.arange(9).reshape(3, 1, 3), torch.rand(3, 1, 3),
                  torch.tensor([True, False, True]), torch.rand(3), torch.rand(3, 1, 2, 2), torch.rand(3, 6),
                  (7, 8, 9))  # fmt: skip
    some = batch.picked([2, 0])
    assert some.indices == (9, 7) and some.is_member.tolist() == [True, True]
    for name in ("mean", "std", "tokens", "token_weights", "weights", "mask", "framing"):
        assert torch.equal(getattr(some, name), getattr(batch, name)[[2, 0]])


def test_a_plan_counts_the_steps_of_every_teacher(taught) -> None:
    """8 members in 4 groups of two, 3 folds: two teachers have 6 members, one has 4; batches of 4."""
    run = taught(distill_teacher_epochs=5).run
    plan = run.distillation()
    sizes = sorted(sum(one.uses) for one in plan.training_sets)
    assert sizes == [4, 6, 6] and plan.total_steps() == 5 * (1 + 2 + 2)
    groups = member_groups(run.training_set)
    again = plan_distillation(run.training_set, DistillRules(3, 5, False), run.key, accumulation=1, processes=1)
    assert again == plan and sum(group is not None for group in groups) == 8


class Stubborn(torch.nn.Module):
    """A network without tensors."""


@pytest.mark.parametrize("network", [Stubborn(), object()])
def test_a_network_that_cannot_be_swapped_is_refused(network: Any) -> None:
    with pytest.raises(InputError, match="network_module 'other' makes a network whose tensors cannot be taken out"):
        require_swap(network, "other")
    require_swap(OneNumber(), "own")
