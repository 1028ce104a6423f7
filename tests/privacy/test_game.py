"""The game on a tiny model: what the proxy sees under every loss option, text states made once, looks."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from library.assembly import game as game_room
from library.assembly.contexts import Contexts
from library.assembly.game import Game
from library.assembly.run import open_run
from library.assembly.training import open_training
from library.assembly.validation import Side, Validation
from library.errors import Faults, InputError
from library.options.declarations import Config
from library.options.resolve import ReadOptions
from tests.helpers.keys import write_secret

KEPT = {"network_dim": 2, "train_batch_size": 2, "learning_rate": 1e-2, "seed": 7, "attack_lr": 1e-3}


class Table:
    """A tiny run up to its first step, with a LoRA that already changes something."""

    def __init__(self, model_folder: Path, pictures: Path, prediction_type: str = "epsilon", **changed: Any) -> None:
        options = {
            **KEPT,
            "pretrained_model_name_or_path": str(model_folder),
            "train_data_dir": str(pictures),
            "resolution": "16",
            "inclusion": "fixed",
            "split_secret_file": str(write_secret(pictures.parent)),
            "output_dir": str(pictures.parent / "out"),
        }
        config = dataclasses.replace(Config(), **{**options, **changed})
        run = open_run(ReadOptions("SPLoRA", config, {}, Faults()))
        run.model.scheduler.register_to_config(prediction_type=prediction_type)
        self.network = run.network
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        training = open_training(run)
        self.game, self.validation, self.training_state = training.game, training.validation, training.state


@pytest.fixture
def table(model_folder: Path, pictures: Path):
    """Makes a Table with these options."""
    return lambda **changed: Table(model_folder, pictures, **changed)


def seen_by_the_proxy(table: Table, monkeypatch: pytest.MonkeyPatch, mask: bool = False) -> tuple[torch.Tensor, Any]:
    """The map that the proxy gets for the first batch, and the losses."""
    seen: list[torch.Tensor] = []
    honest = game_room.member_cross_entropy

    def spy(proxy: Any, error_map: torch.Tensor, limit: float | None) -> torch.Tensor:
        seen.append(error_map.detach().clone())
        return honest(proxy, error_map, limit)

    monkeypatch.setattr(game_room, "member_cross_entropy", spy)
    (batch,) = table.game.members.of_step(0)
    if mask:
        batch = dataclasses.replace(batch, mask=torch.rand(2, 1, 8, 8), weights=torch.tensor([0.25, 3.0]))
    losses = table.game.member_losses(batch, 0, 0)
    return seen[0], losses


LOSS_OPTIONS: list[dict[str, Any]] = [
    {"loss_type": "l1"}, {"loss_type": "huber"}, {"loss_type": "smooth_l1"}, {"min_snr_gamma": 0.01},
    {"debiased_estimation_loss": True}, {"v_pred_like_loss": 0.5}, {"mask": True},
]  # fmt: skip


@pytest.mark.parametrize("option", LOSS_OPTIONS, ids=str)
def test_the_proxy_sees_the_plain_squared_error_whatever_the_loss_is(
    table, monkeypatch: pytest.MonkeyPatch, option: dict[str, Any]
) -> None:
    """R13 of method.md 5: weights, masks and loss types change L alone."""
    plain, (loss, _) = seen_by_the_proxy(table(), monkeypatch)
    mask = option.get("mask", False)
    changed = {name: value for name, value in option.items() if name != "mask"}
    found, (other, _) = seen_by_the_proxy(table(**changed), monkeypatch, mask)
    assert torch.equal(plain, found) and not torch.equal(loss, other)


def test_the_proxy_of_a_velocity_model_sees_the_error_against_the_velocity(
    table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without the weight made for velocity models; the map is not the noise model's."""
    plain, (loss, _) = seen_by_the_proxy(table(prediction_type="v_prediction"), monkeypatch)
    weighted = table(prediction_type="v_prediction", scale_v_pred_loss_like_noise_pred=True)
    found, (other, _) = seen_by_the_proxy(weighted, monkeypatch)
    assert torch.equal(plain, found) and not torch.equal(loss, other)
    assert not torch.equal(plain, seen_by_the_proxy(table(), monkeypatch)[0])


def test_masked_pixels_and_weightless_images_add_nothing_to_the_loss(table) -> None:
    game = table().game
    (batch,) = game.members.of_step(0)
    nothing = dataclasses.replace(batch, mask=torch.zeros(2, 1, 8, 8))
    assert game.member_losses(nothing, 0, 0)[0].item() == 0
    first = dataclasses.replace(batch, weights=torch.tensor([1.0, 0.0]))
    halves = [game.member_losses(dataclasses.replace(batch, weights=torch.eye(2)[row]), 0, 0)[0] for row in range(2)]
    assert torch.allclose(game.member_losses(first, 0, 0)[0], halves[0])
    assert torch.allclose(game.member_losses(batch, 0, 0)[0], sum(halves))


def test_a_map_that_is_not_finite_leaves_the_proxy_as_it_is(table, monkeypatch: pytest.MonkeyPatch) -> None:
    game = table().game
    before = [parameter.detach().clone() for parameter in game.proxy.parameters()]
    honest = Game._attack_maps

    def broken(self: Game, step: int, turn: int) -> Any:
        maps, is_member = honest(self, step, turn)
        return [maps[0] * float("nan"), *maps[1:]], is_member

    monkeypatch.setattr(Game, "_attack_maps", broken)
    game.attacker_turn(0)
    assert all(map(torch.equal, before, game.proxy.parameters()))
    monkeypatch.undo()
    game.attacker_turn(1)
    assert not all(map(torch.equal, before, game.proxy.parameters()))


def test_a_validation_pass_counts_a_picture_of_two_datasets_once(table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are averaged first, in the loss as in the proxy's margin."""
    validation = table().validation
    first, *others = validation.members
    validation = dataclasses.replace(validation, members=[first, first, *others])

    def passed(self: Validation, rows: list[int], announce: Any) -> Side:
        shown = [self.pictures.examples[row] for row in rows]
        names, groups = [one.pixels for one in shown], [one.group for one in shown]
        return Side(names, groups, torch.ones(len(rows)), torch.arange(len(rows)) * 1.0, torch.ones(len(rows)))

    monkeypatch.setattr(Validation, "_fixed_pass", passed)
    look = validation.run(0, 0)
    assert look["images_members_aux"] == len(others) + 1
    expected = sum([0.5, *range(2, len(others) + 2)]) / (len(others) + 1)
    assert look["adaptation_loss_members_aux"] == pytest.approx(expected)


FROZEN = {"network_train_unet_only": True}


@pytest.mark.parametrize("changed", [FROZEN, {"text_encoder_lr": 0.0}], ids=["no LoRA in it", "its rate is 0"])
def test_text_states_made_once_give_the_same_losses_bit_for_bit(table, changed: dict[str, Any]) -> None:
    cached = table(**changed, cache_text_encoder_outputs=True)
    assert cached.game.contexts.table is not None and len(cached.game.contexts.table) == 12  # 4 wait for the audit
    again = dataclasses.replace(cached.game, contexts=Contexts(cached.game.denoiser, None, ()))
    for step in range(4):
        for batch in cached.game.members.of_step(step):
            for one, other in zip(
                cached.game.member_losses(batch, step, 0), again.member_losses(batch, step, 0), strict=True
            ):
                assert torch.equal(one, other)
    other = Validation.of(again, cached.training_state, cached.validation.plan)
    assert cached.validation.run(0, 0) == other.run(0, 0)


def test_equal_captions_share_one_entry(table, pictures: Path) -> None:
    for file in pictures.rglob("*.txt"):
        file.write_text("the same")
    cached = table(**FROZEN)
    assert len(cached.game.contexts.table) == 1 and cached.game.contexts.entries == [0] * 12


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, "the text encoder is trained"),
        ({**FROZEN, "shuffle_caption": True}, "captions change from use to use"),
    ],
)
def test_text_states_are_made_at_each_use_where_they_differ_and_insisting_is_refused(
    table, changed: dict[str, Any], reason: str
) -> None:
    assert table(**changed).game.contexts.table is None
    with pytest.raises(InputError, match=f"cache_text_encoder_outputs cannot be: .*{reason}"):
        table(**changed, cache_text_encoder_outputs=True)


def test_token_weights_multiply_the_joined_text_states(table) -> None:
    denoiser = table(**FROZEN).game.denoiser
    tokens = torch.randint(0, 500, (2, 3, 77), generator=torch.Generator().manual_seed(0))
    weights = torch.arange(2 * 3 * 77).reshape(2, 3, 77) / 100
    plain, weighted = denoiser.context(tokens, None).states, denoiser.context(tokens, weights).states
    joined = torch.cat([weights[:, 0, :-1], weights[:, 1, 1:-1], weights[:, 2, 1:]], dim=1)
    assert weighted.shape[1] == 227 and torch.allclose(weighted, plain * joined[..., None])


def test_a_look_touches_no_stream_of_chance_no_weight_and_no_test_side(table, monkeypatch: pytest.MonkeyPatch) -> None:
    seat = table(network_dropout=0.5, ema_decay=0.9)
    seat.network.train()
    looked_at: set[int] = set()
    honest = seat.game.pictures.plain_batches

    def spy(rows: list[int], most: int) -> Any:
        looked_at.update(rows)
        return honest(rows, most)

    monkeypatch.setattr(seat.game.pictures, "plain_batches", spy)
    before, weights = torch.get_rng_state(), {name: value.clone() for name, value in seat.network.state_dict().items()}
    first, second = seat.validation.run(0, 1), seat.validation.run(0, 1)  # later ones are compared with the first
    assert first == second and torch.equal(before, torch.get_rng_state()) and seat.network.training
    assert all(torch.equal(value, weights[name]) for name, value in seat.network.state_dict().items())
    assert (
        looked_at == set(seat.game.aux_members.indices) | set(seat.game.aux_non_members.indices) and len(looked_at) == 8
    )
    assert first["weights"] == "ema"


def test_looks_and_their_noise_do_not_depend_on_the_noise_options(table) -> None:
    plain = table().validation
    changed = table(noise_offset=0.5, ip_noise_gamma=0.3, max_timestep=10, min_snr_gamma=5.0, loss_type="l1")
    assert plain.run(0, 0) == changed.validation.run(0, 0)


def test_the_noise_options_reach_both_players(table) -> None:
    one, other = table().game, table(noise_offset=0.5).game
    (batch,) = one.members.of_step(0)
    assert not torch.equal(one.member_losses(batch, 0, 0)[0], other.member_losses(batch, 0, 0)[0])
    assert not torch.equal(one._attack_maps(0, 0)[0][0], other._attack_maps(0, 0)[0][0])
