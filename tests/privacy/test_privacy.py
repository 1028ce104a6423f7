"""The game's arithmetic: objectives, proxy attacker, and who learns from whom."""

import math

import pytest
import torch

from library.privacy.attackers.build import AttackerRules, ProxyAttacker, build_attacker, frozen
from library.privacy.attackers.losses import attacker_losses, member_cross_entropy, membership_margin
from library.privacy.objectives import ratio_objective, sum_objective
from library.privacy.proxy_history import ProxyHistory, check_proxy


def proxy_of(shape: tuple[int, int, int] = (4, 8, 8), pooled: bool = False) -> ProxyAttacker:
    """A seeded attacker."""
    torch.manual_seed(0)
    return ProxyAttacker(shape, pooled=pooled, dropout=0.5)


def test_the_objectives_by_hand() -> None:
    adaptation, attack_loss = torch.tensor(0.2), torch.tensor(2.0)
    assert sum_objective(adaptation, attack_loss, 0.05).item() == pytest.approx(0.1)
    assert ratio_objective(adaptation, attack_loss, 0.05, 1.0).item() == pytest.approx(0.2 / 1.10001)


def test_gradients_of_both_objectives_are_those_of_the_paper() -> None:
    """Section 1.3: sum mu + nu; ratio mu / D + (L / D^2) nu, with nu = lambda dG and G = -CE, on a toy network."""
    weight = torch.randn(6, dtype=torch.double, requires_grad=True)
    alpha, beta = 0.3, 1.0

    def losses() -> tuple[torch.Tensor, torch.Tensor]:
        return (weight**2).sum(), torch.log1p((weight - 1).square()).sum()

    adaptation, attack_loss = losses()
    mu = torch.autograd.grad(adaptation, weight, retain_graph=True)[0]
    nu = alpha * torch.autograd.grad(-attack_loss, weight, retain_graph=True)[0]
    denominator = (beta + alpha * attack_loss + 1e-5).detach()
    of_sum = torch.autograd.grad(sum_objective(*losses(), alpha), weight)[0]
    of_ratio = torch.autograd.grad(ratio_objective(*losses(), alpha, beta), weight)[0]
    assert torch.allclose(of_sum, mu + nu)
    assert torch.allclose(of_ratio, mu / denominator + adaptation.detach() / denominator**2 * nu)


def test_the_attacker_has_the_released_size_at_512_pixels() -> None:
    assert (
        sum(parameter.numel() for parameter in ProxyAttacker((4, 64, 64), pooled=False, dropout=0.5).parameters())
        == 8_520_962
    )


def test_an_attacker_is_built_with_the_adam_of_its_rules_and_the_draws_of_the_seed() -> None:
    rules = AttackerRules(attack_lr=0.01, attack_weight_decay=0.5, attack_dropout=0.25, proxy_input="error_map")
    torch.manual_seed(0)
    proxy, adam = build_attacker((4, 8, 8), rules, pooled=True, device=torch.device("cpu"))
    assert all(torch.equal(one, two) for one, two in zip(proxy.parameters(), proxy_of().parameters(), strict=True))
    assert proxy.pooled and [layer.p for layer in proxy.layers if isinstance(layer, torch.nn.Dropout)] == [0.25] * 2
    (group,) = adam.param_groups
    assert isinstance(adam, torch.optim.Adam) and (group["lr"], group["weight_decay"]) == (0.01, 0.5)
    assert group["params"] == list(proxy.parameters())


def test_the_member_cross_entropy_is_minus_the_log_of_the_member_probability() -> None:
    proxy, maps = proxy_of().eval(), torch.rand(5, 4, 8, 8)
    probability = proxy(maps).softmax(dim=1)[:, 1]
    assert member_cross_entropy(proxy, maps, None).item() == pytest.approx((-probability.log().mean()).item(), rel=1e-5)


def test_a_batch_is_the_mean_of_its_images_also_for_a_ragged_last_batch() -> None:
    proxy, maps = proxy_of().eval(), torch.rand(3, 4, 8, 8)
    alone = torch.stack([member_cross_entropy(proxy, maps[row : row + 1], 0.7) for row in range(3)]).mean()
    assert torch.allclose(member_cross_entropy(proxy, maps, 0.7), alone)


@pytest.mark.parametrize(("probability", "flows"), [(0.4, False), (0.6, True)])
def test_gain_limit_stops_the_gradient_beyond_chance(probability: float, flows: bool) -> None:
    """Check 4 of method.md 13: at ln 2, a proxy that is at 40 % on a member gives exactly no gradient, at 60 % some."""
    proxy = proxy_of((1, 1, 1)).eval()
    with torch.no_grad():
        for layer in proxy.layers:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.fill_(0.1)
                layer.bias.zero_()
        proxy.layers[-1].weight[0].zero_()
        proxy.layers[-1].bias[1] = math.log(probability / (1 - probability)) - proxy(torch.ones(1, 1, 1, 1))[0, 1]
    maps = torch.ones(1, 1, 1, 1, requires_grad=True)
    member_cross_entropy(proxy, maps, math.log(2)).backward()
    assert (maps.grad.abs().sum().item() > 0) is flows


def test_the_adversary_is_frozen_and_set_back_afterwards() -> None:
    proxy, maps = proxy_of().train(), torch.rand(2, 4, 8, 8, requires_grad=True)
    with frozen(proxy, "eval") as adversary:
        assert not adversary.training
        member_cross_entropy(adversary, maps, None).backward()
    assert maps.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in proxy.parameters())
    assert proxy.training and all(parameter.requires_grad for parameter in proxy.parameters())
    with frozen(proxy, "train") as adversary:
        assert adversary.training


def test_maps_of_another_shape_are_pooled_where_agreed_and_refused_otherwise() -> None:
    square = torch.rand(2, 4, 8, 8)
    assert torch.equal(proxy_of(pooled=True).eval()(square), proxy_of(pooled=False).eval()(square))
    assert proxy_of(pooled=True)(torch.rand(2, 4, 4, 16)).shape == (2, 2)
    with pytest.raises(ValueError, match=r"needs error maps of \(4, 8, 8\), got \(4, 4, 16\)"):
        proxy_of()(torch.rand(2, 4, 4, 16))


def test_attacker_losses_keep_the_two_labels_apart() -> None:
    proxy = proxy_of().eval()
    maps = [torch.rand(3, 4, 8, 8), torch.rand(2, 4, 8, 8)]
    member = [torch.tensor([True, False, True]), torch.tensor([False, False])]
    members, non_members = attacker_losses(proxy, maps, member)
    chosen = torch.cat([maps[0][[0, 2]]])
    assert members.item() == pytest.approx(member_cross_entropy(proxy, chosen, None).item(), rel=1e-5)
    others = torch.cat([maps[0][[1]], maps[1]])
    assert non_members.item() == pytest.approx((-proxy(others).log_softmax(1)[:, 0].mean()).item(), rel=1e-5)


def test_an_attacker_that_trains_learns_to_tell_larger_errors_apart() -> None:
    proxy = proxy_of()
    optimizer = torch.optim.Adam(proxy.parameters(), lr=1e-3)
    noise = torch.Generator().manual_seed(3)
    for _ in range(400):
        maps = torch.rand(16, 4, 8, 8, generator=noise)
        maps[8:] *= 2
        losses = attacker_losses(proxy, [maps], [torch.arange(16) < 8])
        optimizer.zero_grad()
        (sum(losses) / 2).backward()
        optimizer.step()
    proxy.eval()
    fresh = torch.rand(64, 4, 8, 8, generator=noise)
    assert (membership_margin(proxy, fresh) > 0).float().mean() > 0.9
    assert (membership_margin(proxy, fresh * 2) < 0).float().mean() > 0.9


def test_a_proxy_at_chance_is_called_undefended_and_a_working_one_is_not() -> None:
    watch, chance = ProxyHistory(), torch.tensor([1.0, -1.0] * 50)
    watch.checks.append(check_proxy(0, chance, chance))
    assert not watch.beat_chance() and "UNDEFENDED" in watch.verdict() and watch.word() == "undefended"
    watch.checks.append(check_proxy(1, torch.ones(100), torch.tensor([-1.0] * 70 + [1.0] * 30)))
    assert watch.beat_chance() and "0.850 on 100 + 100" in watch.verdict()
    assert ProxyHistory().word() == "plain" and "without a defence" in ProxyHistory().verdict()


def test_chance_alone_seldom_passes_for_a_working_proxy() -> None:
    """With 20 looks a run, at most a tenth of 300 null runs may be called defended (nominal .05)."""
    generator = torch.Generator().manual_seed(5)
    passed = 0
    for _ in range(300):
        watch = ProxyHistory([check_proxy(epoch, *torch.randn(2, 60, generator=generator)) for epoch in range(20)])
        passed += watch.beat_chance()
    assert passed / 300 < 0.1
