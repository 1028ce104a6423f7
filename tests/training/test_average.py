"""The moving average of the weights: its arithmetic, what is shown of it, and that training never notices."""

import pytest
import torch
from torch import nn

from library.errors import InputError
from library.training.optimization.average import Average, begin_average
from library.training.optimization.optimizers import trained_parameters
from library.training.state import TrainingState


def players_of(optimizer: torch.optim.Optimizer, network: nn.Module, average: Average | None) -> TrainingState:
    """Only what the average needs."""
    return TrainingState(network, optimizer, None, nn.Module(), None, None, average)


def test_the_average_by_hand_with_its_warm_up() -> None:
    """Weights 0, then 1 and 2: d_0 = 1/10 gives 0.9; d_1 = 2/11 gives 0.9 x 2/11 + 2 x 9/11 = 1.8."""
    weight = nn.Parameter(torch.zeros(1))
    average = Average([weight], 0.999)
    for value in (1.0, 2.0):
        weight.data.fill_(value)
        average.update()
    assert average.values[0].item() == pytest.approx(1.8)


def test_after_the_warm_up_the_decay_is_the_one_asked_for() -> None:
    weight = nn.Parameter(torch.zeros(1))
    average = Average([weight], 0.5)
    average.steps = 1000
    weight.data.fill_(4.0)
    average.update()
    assert average.values[0].item() == 2


def test_shown_weights_are_the_average_and_the_trained_ones_come_back_bit_for_bit() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    average = begin_average(0.9, optimizer)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    average.update()
    training_state = players_of(optimizer, network, average)
    with training_state.shown():
        assert not network.training and training_state.shown_weights() == "ema"
        for shown, start in zip(network.parameters(), before, strict=True):
            assert torch.allclose(shown, start + 0.9)
    assert network.training
    for parameter, start in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, start + 1)


def test_a_schedule_free_optimizer_is_shown_at_its_average_and_trains_on_as_if_nobody_had_looked() -> None:
    from schedulefree import AdamWScheduleFree

    def run(looks: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        torch.manual_seed(0)
        network = nn.Linear(4, 2)
        optimizer = AdamWScheduleFree(network.parameters(), lr=0.1)
        optimizer.train()
        shown = []
        for step in range(7):
            network(torch.full((1, 4), float(step))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if looks:
                with players_of(optimizer, network, None).shown():
                    shown = [parameter.detach().clone() for parameter in network.parameters()]
        return [parameter.detach().clone() for parameter in network.parameters()], shown

    plain, _ = run(False)
    looked, shown = run(True)
    assert all(torch.equal(one, other) for one, other in zip(plain, looked, strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(looked, shown, strict=True))


def test_a_second_average_on_top_of_a_schedule_free_one_is_refused() -> None:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(nn.Linear(2, 2).parameters())
    with pytest.raises(InputError, match="ema_decay 0.9: the optimizer is schedule-free"):
        begin_average(0.9, optimizer)
    assert begin_average(None, optimizer) is None


def test_a_state_of_another_network_is_refused_and_its_own_is_taken_over() -> None:
    one, other, same = (Average(list(nn.Linear(2, size).parameters()), 0.9) for size in (2, 3, 2))
    one.update()
    with pytest.raises(InputError, match="do not fit this run's network"):
        other.fill(one.state())
    same.fill(one.state())
    assert same.steps == 1 and all(torch.equal(a, b) for a, b in zip(one.values, same.values, strict=True))
    assert trained_parameters(torch.optim.SGD(one.parameters, lr=1)) == one.parameters
