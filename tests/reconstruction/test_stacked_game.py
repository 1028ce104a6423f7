"""Many games of PLoRA and SPLoRA at once are the same games as one by one."""

import dataclasses
from pathlib import Path

import pytest
import torch

from library.audit.reconstruction.shadow_corpus import make_corpus
from library.audit.reconstruction.stacked_game import PLORA, SPLORA, GameRecipe, open_game
from library.audit.reconstruction.stacked_lora import Factors, fresh_factors
from library.audit.reconstruction.stacked_training import drawn_batch, train_stack
from library.errors import InputError
from library.privacy.attackers.build import AttackerRules, build_attacker
from library.privacy.attackers.calibrated import calibrated_evidence, log_errors
from library.privacy.attackers.losses import attacker_losses, member_cross_entropy
from library.seeding import stream, stream_seed
from tests.helpers.stacked_toy import STEP, own_modules, stacked_toy, toy_persons, toy_recipe, toy_states

KEYS, STEPS, SEED = ["a", "b", "c"], 5, 5


def game_recipe(objective: str = PLORA, alpha: float = 0.5, proxy_input: str = "calibrated", **changes) -> GameRecipe:
    rules = AttackerRules(attack_lr=1e-2, attack_weight_decay=1e-4, attack_dropout=0.0, proxy_input=proxy_input)
    return GameRecipe(**{"objective": objective, "alpha": alpha, "beta": 1.0, "gain_limit": None, "turns": 1,
                         "batch": 2, "attacker": rules, **changes})  # fmt: skip


def trained(recipe: GameRecipe | None, keys: list[str] = KEYS) -> Factors:
    model, rows = stacked_toy(), [KEYS.index(key) for key in keys]
    members, contexts = toy_persons(3).latents[rows], toy_states(keys)
    start = fresh_factors(model.layers, 2, 1.5, [stream(0, "A0", key) for key in keys])
    strangers = toy_persons(2, first=3).latents.flatten(0, 1)
    objective = recipe and open_game(model, recipe, members, strangers, contexts, keys, SEED).objective
    return train_stack(model, start, members, contexts, STEPS, STEP, keys, seed=SEED, objective=objective)[STEPS]


def assert_close(one: Factors, other: Factors) -> None:
    for name, value in one.state().items():
        torch.testing.assert_close(value, other.state()[name], rtol=2e-3, atol=3e-5)


@pytest.mark.parametrize("objective", [PLORA, SPLORA])
@pytest.mark.parametrize("proxy_input", ["calibrated", "error_map"])
def test_a_game_of_weight_zero_is_the_undefended_training_and_one_with_weight_is_not(objective, proxy_input) -> None:
    plain = trained(None)
    assert_close(trained(game_recipe(objective, 0.0, proxy_input)), plain)
    played = trained(game_recipe(objective, 1.0, proxy_input))
    assert max(float((value - plain.state()[name]).abs().max()) for name, value in played.state().items()) > 3e-3


@pytest.mark.parametrize("objective", [PLORA, SPLORA])
@pytest.mark.parametrize("proxy_input", ["calibrated", "error_map"])
def test_a_lora_and_its_proxy_do_not_depend_on_their_neighbours(objective, proxy_input) -> None:
    recipe = game_recipe(objective, 0.5, proxy_input)
    assert_close(trained(recipe, ["b"]), trained(recipe).rows([1]))


def attack_rows(step: int, members, strangers):
    """Four pictures, noise and timesteps of the toy's one turn, drawn as the stack draws those of LoRA "a"."""
    chance = stream(SEED, "shadow attack", "a", step, 0)
    rows = torch.cat([side[torch.randperm(len(side), generator=chance)[:2]] for side in (members, strangers)])
    return rows, torch.randn(rows.shape, generator=chance), torch.randint(0, 1000, (4,), generator=chance)


@pytest.mark.parametrize("objective", [PLORA, SPLORA])
@pytest.mark.parametrize("proxy_input", ["calibrated", "error_map"])
@pytest.mark.parametrize("limit", [None, 0.7])
def test_a_stack_of_one_plays_as_the_trees_own_modules_do(objective, proxy_input, limit) -> None:
    """The formulas of arXiv 2402.11989 written out, on the suite's LoRA module, proxies and Adam."""
    recipe = game_recipe(objective, 0.5, proxy_input, gain_limit=limit)
    stacked = trained(recipe, ["a"])
    model, members, context = stacked_toy(), toy_persons(1).latents[0], toy_states(["a"])
    strangers = toy_persons(2, first=3).latents.flatten(0, 1)
    loras, weights, optimizer = own_modules(model, fresh_factors(model.layers, 2, 1.5, [stream(0, "A0", "a")]))
    torch.manual_seed(stream_seed(SEED, "shadow proxy", "a"))
    proxy, attacker = build_attacker((4, 8, 8), recipe.attacker, pooled=False, device=torch.device("cpu"))

    def errors(clean, noise, times, multiplier=1.0):
        for lora in loras:
            lora.multiplier = multiplier
        noisy = model.noised(clean, noise, times)
        return (model.unet(noisy, times, context.expand(len(clean), -1, -1)).sample - noise) ** 2

    def seen(own, *asked):
        if proxy_input == "error_map":
            return own
        with torch.no_grad():
            off = log_errors(errors(*asked, multiplier=0.0))
        return calibrated_evidence(log_errors(own), off, asked[2], 1000)[:, None]

    for step in range(1, STEPS + 1):
        turn = attack_rows(step, members, strangers)
        with torch.no_grad():
            shown = seen(errors(*turn), *turn)
        attacker.zero_grad()
        (sum(attacker_losses(proxy, [shown], [torch.tensor([True, True, False, False])])) / 2).backward()
        attacker.step()
        batch = drawn_batch(members[None], 1000, STEP, ["a"], SEED, step)
        asked = (batch.latents, batch.noise, batch.timesteps)
        own = errors(*asked)
        ce = member_cross_entropy(proxy, seen(own, *asked), limit)
        loss = own.mean() - 0.5 * ce if objective == PLORA else own.mean() / (1.0 + 0.5 * ce + 1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, STEP.clip)
        optimizer.step()
    for lora in loras:
        lora.remove()
        for found, expected in ((stacked.down, lora.lora_down), (stacked.up, lora.lora_up)):
            torch.testing.assert_close(found[lora.lora_name][0], expected.weight.data, rtol=2e-3, atol=5e-5)


def test_a_corpus_with_a_game_is_kept_apart_and_its_non_members_are_nobody_in_it(tmp_path: Path) -> None:
    recipe, persons, others = toy_recipe(game=game_recipe()), toy_persons(3), toy_persons(2, first=3)

    def made(given, **more):
        return make_corpus(stacked_toy(), toy_states, persons, given, tmp_path, together=2, **more)

    plain, played = made(toy_recipe()), made(recipe, non_members=others)
    assert played.fingerprint != plain.fingerprint and len(list(tmp_path.iterdir())) == 2
    steps: list[int] = []
    again = made(recipe, non_members=others, on_step=lambda step, factors, batch: steps.append(step))
    assert not steps and all(torch.equal(v, again.last.state()[n]) for n, v in played.last.state().items())
    assert made(recipe, non_members=toy_persons(2, first=4)).fingerprint != played.fingerprint
    with pytest.raises(InputError, match="a game need non-members as well"):
        made(recipe)
    with pytest.raises(InputError, match="non-members need a game as well"):
        made(toy_recipe(), non_members=others)
    with pytest.raises(InputError, match="share 1 persons"):
        made(recipe, non_members=toy_persons(2, first=2))
    private = dataclasses.replace(recipe, step=dataclasses.replace(STEP, noise_multiplier=1.0))
    with pytest.raises(InputError, match="with a game or with DP-SGD"):
        made(private, non_members=others)


def test_wrong_games_are_refused() -> None:
    with pytest.raises(InputError, match="'PLoRA' or 'SPLoRA', got 'LoRA'"):
        game_recipe("LoRA")
    with pytest.raises(InputError, match="attack_dropout must be 0 in a stacked game, got 0.1"):
        game_recipe(attacker=AttackerRules(1e-3, 0.0, 0.1, "calibrated"))
    with pytest.raises(InputError, match="takes 5 pictures of each side, and one side has 4"):
        trained(game_recipe(batch=5))
    with pytest.raises(ValueError, match="single pictures"):
        private = dataclasses.replace(STEP, noise_multiplier=1.0)
        model = stacked_toy()
        start = fresh_factors(model.layers, 2, 1.5, [stream(0)])
        train_stack(model, start, toy_persons(1).latents, toy_states(["a"]), 1, private, ["a"], seed=0,
                    objective=lambda step, factors, batch: torch.zeros(1))  # fmt: skip
