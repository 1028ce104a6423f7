"""Optimizers and courses of the learning rate by name: they learn, refuse what they do not know, and resume exactly."""

import dataclasses
import io
import logging
import math
from typing import Any

import pytest
import torch
from torch import nn

from library.errors import InputError
from library.options.declarations import Config
from library.rules import pick
from library.training.optimization.average import has_two_faces
from library.training.optimization.lr_schedulers import ScheduleRules, build_schedule
from library.training.optimization.optimizers import (
    KNOWN,
    OptimizerRules,
    build_optimizer,
    check_optimizer,
    trained_parameters,
)

CPU = [name for name, known in KNOWN.items() if not known.only_cuda]
RATES = {name: 1.0 if known.adapts else 1e-2 for name, known in KNOWN.items()} | {"DAdaptSGD": 0.1}  # 1.0 diverges


def net() -> nn.Module:
    """Two layers, a group each."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))


def built(
    network: nn.Module, optimizer_type: str, *pairs: str, rates: tuple[float, ...] = (1e-2, 1e-2), **more: Any
) -> Any:
    """The optimizer as the doors build it."""
    config = dataclasses.replace(Config(), optimizer_type=optimizer_type, optimizer_args=list(pairs))
    groups = [
        {"params": list(layer.parameters()), "lr": rate} for layer, rate in zip(network.children(), rates, strict=True)
    ]
    return build_optimizer(network, groups, pick(config, OptimizerRules))


def scheduled(optimizer: Any, total: int = 10, **changed: Any) -> Any:
    """The course as the doors build it."""
    return build_schedule(optimizer, pick(dataclasses.replace(Config(), **changed), ScheduleRules), total)


def learn(network: nn.Module, optimizer: Any, schedule: Any, steps: range) -> list[float]:
    """Least squares on a batch that depends on the step alone; returns the losses."""
    losses = []
    for step in steps:
        inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        loss = (network(inputs) - inputs[:, :3]).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", CPU)
def test_every_optimizer_of_kohyas_list_learns_and_goes_on_exactly_from_a_state(name: str) -> None:
    """Loading takes tensors and plain values alone; 20 steps equal 10, a state, and 10."""
    straight = net()
    optimizer = built(straight, name, rates=(RATES[name],) * 2)
    schedule = scheduled(optimizer)
    losses = learn(straight, optimizer, schedule, range(10))
    file = io.BytesIO()
    parts = {"net": straight, "optimizer": optimizer, "schedule": schedule}
    torch.save({part: each.state_dict() for part, each in parts.items()}, file)
    losses += learn(straight, optimizer, schedule, range(10, 20))
    resumed = net()
    again = built(resumed, name, rates=(RATES[name],) * 2)
    course = scheduled(again)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed.load_state_dict(saved["net"])
    again.load_state_dict(saved["optimizer"])
    course.load_state_dict(saved["schedule"])
    assert learn(resumed, again, course, range(10, 20)) == losses[10:]
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    longer = learn(straight, optimizer, schedule, range(20, 400))
    assert sum(longer[-20:]) < 0.9 * sum(losses)


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in CPU])
def test_optimizers_that_need_cuda_say_so_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"optimizer_type {name} needs a CUDA GPU"):
        built(net(), name)


def test_names_are_taken_in_any_case_and_from_torch_and_by_dotted_path() -> None:
    assert type(built(net(), "adamw")) is torch.optim.AdamW and type(built(net(), "")) is torch.optim.AdamW
    assert type(built(net(), "NAdam", "betas=0.9,0.99")) is torch.optim.NAdam
    assert type(built(net(), "torch.optim.adagrad.Adagrad")) is torch.optim.Adagrad
    nesterov = built(net(), "SGDNesterov")
    assert nesterov.defaults["nesterov"] and nesterov.defaults["momentum"] == 0.9


@pytest.mark.parametrize(
    ("name", "pairs", "text"),
    [
        ("AdamV", [], "neither in kohya's list nor a class of torch.optim; did you mean 'Adam"),
        ("AdamW", ["weight_decai=0.1"], "AdamW has no 'weight_decai'; did you mean 'weight_decay'"),
        ("AdamW", ["weight_decay=much"], "not key=value with a Python literal"),
        ("AdamW", ["betas=0.9,7.0"], "does not take these weights and optimizer_args: Invalid beta"),
        ("LBFGS", [], "evaluates the loss several times"),
        ("absent_package.Optimizer", [], 'no module absent_package is installed here; use "AdamW"$'),
        ("torch.optim.Absent", [], "torch.optim has no class Absent"),
        ("Muon", [], "does not take these weights"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(name: str, pairs: list[str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        built(net(), name, *pairs)


def test_a_missing_optional_package_is_named_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prodigyopt", None)
    with pytest.raises(InputError, match="Prodigy needs the package prodigyopt .*pip install prodigyopt"):
        built(net(), "Prodigy")


def test_no_pip_line_is_made_from_a_name_in_a_config() -> None:
    """Anybody may register a free name on the package index."""
    with pytest.raises(InputError) as caught:
        built(net(), "prodigyplus_of_nobody.ProdigyPlus")
    assert "no module prodigyplus_of_nobody is installed here" in str(caught.value) and "pip" not in str(caught.value)


def test_different_rates_are_refused_where_the_package_would_stop_at_the_first_step() -> None:
    with pytest.raises(InputError, match=r"Prodigy takes one learning rate for everything, got \[0.5, 1.0\]"):
        built(net(), "Prodigy", rates=(1.0, 0.5))


def test_kohyas_warnings_come_as_notices(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "library"):
        built(net(), "DAdaptAdan", rates=(1.0, 0.5))
        built(net(), "Prodigy", rates=(1e-4, 1e-4))
        built(net(), "AdaFactor")
        built(net(), "AdaFactor", "relative_step=False", "warmup_init=True")
        built(net(), "AdaFactor", "relative_step=False")
    text = caplog.text
    assert "that of the first group: 1" in text and "usually 1.0; 0.0001 is low" in text
    assert "finds its own rate" in text and "warmup_init = True turns relative_step on" in text
    assert "max_grad_norm = 0 is usual" in text


def test_what_no_group_holds_is_frozen() -> None:
    network = net()
    config = dataclasses.replace(Config(), optimizer_type="AdamW")
    groups = [{"params": list(network[1].parameters()), "lr": 1e-2}]
    optimizer = build_optimizer(network, groups, pick(config, OptimizerRules))
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]
    assert len(trained_parameters(optimizer)) == 2


def test_schedule_free_optimizers_have_two_faces_and_others_one() -> None:
    faces = {name for name in CPU if has_two_faces(built(net(), name, rates=(RATES[name],) * 2))}
    assert faces == {"RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree"}


COURSES: dict[str, tuple[dict[str, Any], Any]] = {
    "constant": ({}, lambda s: 1.0),
    "constant_with_warmup": ({"lr_warmup_steps": 4.0}, lambda s: min(1, s / 4)),
    "linear": ({"lr_warmup_steps": 0.2}, lambda s: s / 2 if s < 2 else (10 - s) / 8),
    "cosine": ({}, lambda s: (1 + math.cos(math.pi * s / 10)) / 2),
    "cosine_with_restarts": (
        {"lr_scheduler_num_cycles": 2},
        lambda s: (1 + math.cos(math.pi * (2 * s / 10 % 1))) / 2 if s < 10 else 0,
    ),
    "polynomial": ({"lr_scheduler_power": 2.0}, lambda s: max((1 - s / 10) ** 2, 1e-5)),
    "piecewise_constant": (
        {"lr_scheduler_args": ['step_rules="1:3,0.1:6,0.01"']},
        lambda s: 1 if s < 3 else 0.1 if s < 6 else 0.01,
    ),
    "inverse_sqrt": (
        {"lr_warmup_steps": 2.0, "lr_scheduler_timescale": 4},
        lambda s: s / 2 if s < 2 else ((s + 2) / 4) ** -0.5,
    ),
    "cosine_with_min_lr": (
        {"lr_scheduler_min_lr_ratio": 0.2},
        lambda s: 0.2 + 0.8 * (1 + math.cos(math.pi * s / 10)) / 2,
    ),
    "warmup_stable_decay": (
        {"lr_warmup_steps": 2.0, "lr_decay_steps": 0.4, "lr_scheduler_min_lr_ratio": 0.1},
        lambda s: 0.1 + 0.9 * (s / 2 if s < 2 else 1 if s < 6 else (1 + math.cos(math.pi * (s - 6) / 4)) / 2),
    ),
}


@pytest.mark.parametrize("name", COURSES)
def test_every_course_has_its_shape_by_hand_and_resumes_in_the_middle(name: str) -> None:
    options, by_hand = COURSES[name]
    optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
    course = scheduled(optimizer, lr_scheduler=name, **options)
    found, kept = [], {}
    for step in range(10):
        if step == 4:
            kept = {"course": course.state_dict(), "optimizer": optimizer.state_dict()}
        found.append(course.get_last_lr()[0])
        optimizer.step()
        course.step()
    assert found == pytest.approx([by_hand(step) for step in range(10)], abs=1e-6)
    other = torch.optim.SGD(net().parameters(), lr=1.0)
    again = scheduled(other, lr_scheduler=name, **options)
    file = io.BytesIO()
    torch.save(kept, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again.load_state_dict(saved["course"])
    other.load_state_dict(saved["optimizer"])
    rest = []
    for _ in range(4, 10):
        rest.append(again.get_last_lr()[0])
        other.step()
        again.step()
    assert rest == found[4:]


def test_adafactors_course_shows_the_rate_that_it_found() -> None:
    """Relative step: min(0.01, 1 / sqrt(t)) x max(eps, RMS of the weights)."""
    network = net()
    optimizer = built(network, "AdaFactor")
    course = scheduled(optimizer, lr_scheduler="adafactor")
    rms = next(iter(network.parameters())).detach().square().mean().sqrt().item()
    network(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    course.step()
    assert course.get_last_lr()[0] == pytest.approx(0.01 * rms, rel=1e-3)


@pytest.mark.parametrize("name", ["AdaFactor", "AdamWScheduleFree"])
def test_optimizers_that_find_their_own_rate_say_that_a_course_is_not_used(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = built(net(), name)
    with caplog.at_level(logging.WARNING, "library"):
        course = scheduled(optimizer, lr_scheduler="cosine", lr_warmup_steps=3.0)
    assert "lr_scheduler cosine and lr_warmup_steps 3 are not used" in caplog.text
    before = course.get_last_lr()
    for _ in range(5):
        optimizer.step()
        course.step()
    assert course.get_last_lr() == before


def test_a_scheduler_class_is_taken_by_path_and_by_torchs_name() -> None:
    for given in ("torch.optim.lr_scheduler.StepLR", "StepLR"):
        optimizer = torch.optim.SGD(net().parameters(), lr=1.0)
        course = scheduled(optimizer, lr_scheduler_type=given, lr_scheduler_args=["step_size=2", "gamma=0.5"])
        rates = []
        for _ in range(4):
            rates.append(course.get_last_lr()[0])
            optimizer.step()
            course.step()
        assert rates == [1, 1, 0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("SGD", {"lr_scheduler_type": "StepLL"}, "cannot be found.*did you mean 'StepLR'"),
        ("SGD", {"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_sise=2"]}, "no 'step_sise'; did you mean"),
        ("SGD", {"lr_scheduler_type": "StepLR"}, "does not take these lr_scheduler_args"),
        ("SGD", {"lr_scheduler_type": "ReduceLROnPlateau"}, "needs metrics at each step"),
        (
            "SGD",
            {"lr_scheduler": "cosine", "lr_decay_steps": 3.0},
            "lr_decay_steps is not used by .* cosine",
        ),
        ("SGD", {"lr_scheduler": "cosine", "lr_scheduler_timescale": 3}, "it is for inverse_sqrt"),
        ("SGD", {"lr_scheduler": "cosine_with_min_lr"}, "set lr_scheduler_min_lr_ratio"),
        ("SGD", {"lr_scheduler": "piecewise_constant"}, "needs lr_scheduler_args"),
        (
            "SGD",
            {"lr_scheduler": "cosine", "lr_warmup_steps": 10.0},
            "leave no steps at the full rate: the run has 10 steps",
        ),
        ("SGD", {"lr_scheduler": "adafactor"}, "belongs to optimizer_type AdaFactor"),
    ],
)
def test_courses_that_would_pass_in_silence_or_fail_later_are_refused(name: str, options: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        scheduled(built(net(), name), **options)


@pytest.mark.parametrize("path", ["builtins.print", "os.system", "subprocess.Popen", "library.errors.Faults"])
def test_a_dotted_path_into_what_is_no_installed_package_is_refused_unread(path: str) -> None:
    with pytest.raises(InputError, match=f"optimizer_type '{path}' is not imported: the module .* installed packages"):
        check_optimizer(pick(dataclasses.replace(Config(), optimizer_type=path), OptimizerRules))


@pytest.mark.parametrize("path", ["torch.save", "numpy.ndarray", "torch.nn.Linear"])
def test_a_dotted_path_to_something_that_is_no_optimizer_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=f"optimizer_type '{path}' is not a subclass of torch.optim.Optimizer"):
        check_optimizer(pick(dataclasses.replace(Config(), optimizer_type=path), OptimizerRules))


@pytest.mark.parametrize("path", ["torch.save", "numpy.ndarray", "transformers.optimization.get_wsd_schedule"])
def test_a_dotted_path_to_something_that_is_no_scheduler_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=f"lr_scheduler_type '{path}' is not a subclass of torch.optim.lr_scheduler"):
        scheduled(built(net(), "SGD"), lr_scheduler_type=path)


@pytest.mark.parametrize(("name", "told"), [("cosine", True), ("cosine_with_restarts", False)])
def test_cycles_that_a_course_does_not_read_are_told(name: str, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    rules = pick(dataclasses.replace(Config(), lr_scheduler=name, lr_scheduler_num_cycles=3), ScheduleRules)
    build_schedule(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), rules, 10)
    assert ("lr_scheduler_num_cycles 3 has no effect with lr_scheduler cosine" in caplog.text) == told
