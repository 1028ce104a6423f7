"""The proxy that compares the LoRA with its absence: what it sees, what it learns, when it counts."""

import math
from typing import Any

import pytest
import torch

from library.assembly.game import GameRules
from library.privacy.attackers.build import AttackerRules, build_attacker
from library.privacy.attackers.calibrated import CLOSENESS, CalibratedProxy, calibrated_evidence, log_errors
from library.privacy.attackers.losses import attacker_losses, member_cross_entropy, membership_margin
from library.privacy.proxy_history import ProxyCheck, ProxyHistory


def test_errors_are_summed_up_as_logarithms_of_the_map_and_of_each_channel() -> None:
    error_map = torch.tensor([1.0, 4.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
    expected = torch.tensor([[math.log(2.5), 0.0, math.log(4)]])
    assert torch.allclose(log_errors(error_map), expected)
    assert torch.isfinite(log_errors(torch.zeros(1, 2, 3, 3))).all()


def test_the_evidence_is_the_ratio_the_level_and_the_timestep() -> None:
    off, on = torch.tensor([[0.0, 1.0]]), torch.tensor([[-0.1, 1.0]])
    seen = calibrated_evidence(on, off, torch.tensor([500]), 1000)[0]
    assert seen[:3].tolist() == pytest.approx([CLOSENESS * 0.1, 0.0, 0.0])
    assert seen[3].item() == pytest.approx(1.0) and seen[7].item() == pytest.approx(0.0, abs=1e-6)  # sin and cos pi/2


def test_pairs_of_a_picture_add_up() -> None:
    proxy = CalibratedProxy(4, dropout=0.0)
    seen = torch.randn(5, 3, 14)
    alone = sum(membership_margin(proxy, seen[:, [pair]]) for pair in range(3))
    assert torch.allclose(membership_margin(proxy, seen), alone, atol=1e-6)


def test_it_learns_what_the_paper_s_proxy_cannot_see() -> None:
    """Members' errors fall by a tenth more, while pictures differ in their level by far more than that."""
    torch.manual_seed(0)
    rules = AttackerRules(attack_lr=3e-3, attack_weight_decay=0.0, attack_dropout=0.0, proxy_input="calibrated")
    proxy, adam = build_attacker((4, 8, 8), rules, pooled=False, device=torch.device("cpu"))
    member = torch.arange(64) < 32

    def drawn() -> torch.Tensor:
        off = torch.randn(64, 1, 5)
        on = off - 0.1 - 0.1 * member[:, None, None] + 0.02 * torch.randn(64, 1, 5)
        seen = calibrated_evidence(on.flatten(0, 1), off.flatten(0, 1), torch.randint(1000, (64,)), 1000)
        return seen[:, None]

    for _ in range(150):
        losses = attacker_losses(proxy, [drawn()], [member])
        adam.zero_grad()
        (sum(losses) / 2).backward()
        adam.step()
    assert ((membership_margin(proxy, drawn()) > 0) == member).float().mean() > 0.95


def test_the_gain_pulls_a_member_s_error_up_to_where_the_proxy_guesses() -> None:
    proxy = CalibratedProxy(1, dropout=0.0)
    with torch.no_grad():
        for layer in proxy.layers:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.abs_().mul_(0.2)
                layer.bias.zero_()
    off = torch.zeros(1, 2)
    on = torch.full((1, 2), -0.2, requires_grad=True)  # below the base: looks like a member to this proxy
    seen = calibrated_evidence(on, off, torch.zeros(1, dtype=torch.int64), 1000)[:, None]
    (-member_cross_entropy(proxy, seen, math.log(2))).backward()
    assert on.grad is not None and (on.grad[0] < 0).all()  # a step along -gradient raises the error


def check(accuracy: float) -> ProxyCheck:
    return ProxyCheck(epoch=1, balanced_accuracy=accuracy, members=200, non_members=200)


def test_an_opponent_stays_one_though_later_checks_raise_the_bar() -> None:
    history = ProxyHistory([check(0.5)])
    assert not history.has_an_opponent()
    history.checks.append(check(0.553))
    assert history.has_an_opponent()
    history.checks += [check(0.5)] * 40
    assert not history.beat_chance() and history.has_an_opponent()


def rules(**changed: Any) -> GameRules:
    plain = {"train_batch_size": 4, "k_steps": 1, "attack_batch_size": 3, "attack_eval_draws": 2, "proxy_mode": "eval",
             "separate_noise": False, "proxy_input": "error_map", "attack_draws": 1, "gain_starts": "at_once",
             "gain_limit": None, "distill_folds": 0}  # fmt: skip
    return GameRules(**{**plain, **changed})


@pytest.mark.parametrize(
    ("changed", "trained", "asked"),
    [
        ({"k_steps": 0}, 8, 0),
        ({"k_steps": 0, "distill_folds": 4}, 8, 8),  # one teacher answers for each picture
        ({}, 8, 6),  # 2 sides x 3
        ({"k_steps": 2, "separate_noise": True}, 16, 12),
        ({"proxy_input": "calibrated"}, 8, 2 * 6 + 8),  # all of them once more with the LoRA off
        ({"proxy_input": "calibrated", "attack_draws": 5}, 40, 5 * (2 * 6 + 8)),
        ({"proxy_input": "calibrated", "attack_draws": 5, "distill_folds": 4}, 40, 5 * (2 * 6 + 8 + 8)),
    ],
)
def test_the_passes_of_a_step_are_counted(changed: dict[str, Any], trained: float, asked: float) -> None:
    assert rules(**changed).passes(8) == (trained, asked)
