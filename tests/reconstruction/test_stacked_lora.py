"""Many LoRAs at once are the same LoRAs as one by one."""

import dataclasses

import pytest
import torch

from library.audit.reconstruction.stacked_lora import (
    Factors,
    StackedLoRA,
    factors_from_state,
    factors_of_file,
    fresh_factors,
    joined,
    padded,
    stackable_layers,
)
from library.audit.reconstruction.stacked_training import (
    Batch,
    clipped_gradients,
    drawn_batch,
    losses_of,
    mean_losses,
    private_gradients,
    squared_errors,
    train_stack,
)
from library.audit.reconstruction.weight_defences import regauged
from library.errors import InputError
from library.seeding import stream
from tests.helpers.stacked_toy import STEP, own_modules, random_factors, stacked_toy, toy_persons, toy_states

KEYS = ["a", "b", "c"]


def started(model, keys=KEYS, rank=2) -> Factors:
    return fresh_factors(model.layers, rank, 1.5, [stream(0, "A0", key) for key in keys])


def asked_inputs(rows: int):
    chance = stream(1, "inputs")
    return (
        torch.randn(rows, 4, 8, 8, generator=chance),
        torch.randint(0, 1000, (rows,), generator=chance),
        torch.randn(rows, 5, 16, generator=chance),
    )


def test_a_stack_of_one_trains_as_the_trees_own_lora_module_with_torchs_adamw() -> None:
    model, person = stacked_toy(), toy_persons(1)
    start, context = started(model, ["a"]), toy_states(["one"])
    stacked = train_stack(model, start, person.latents, context, 6, STEP, ["a"], seed=5)[6]

    loras, weights, optimizer = own_modules(model, start)
    for step in range(1, 7):
        batch = drawn_batch(person.latents, 1000, STEP, ["a"], 5, step)
        noisy = model.noised(batch.latents, batch.noise, batch.timesteps)
        answer = model.unet(noisy, batch.timesteps, context.expand(2, -1, -1)).sample
        optimizer.zero_grad()
        ((answer - batch.noise) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, STEP.clip)
        optimizer.step()
    for lora in loras:
        lora.remove()
        torch.testing.assert_close(stacked.down[lora.lora_name][0], lora.lora_down.weight.data, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(stacked.up[lora.lora_name][0], lora.lora_up.weight.data, rtol=1e-3, atol=2e-5)
    assert all(float(value.abs().max()) > 1e-3 for value in stacked.up.values())


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_lora_does_not_depend_on_its_neighbours(noise: float) -> None:
    model, persons = stacked_toy(), toy_persons(3)
    recipe = dataclasses.replace(STEP, noise_multiplier=noise)
    together = train_stack(
        model, started(model), persons.latents, toy_states(KEYS), 5, recipe, KEYS, seed=5, snapshots=[2]
    )
    alone = train_stack(
        model, started(model, ["c"]), persons.latents[2:], toy_states(["c"]), 5, recipe, ["c"], seed=5, snapshots=[2]
    )
    for step in (2, 5):
        for name, value in together[step].rows([2]).state().items():
            torch.testing.assert_close(value, alone[step].state()[name], rtol=1e-3, atol=2e-5)


def test_gradients_are_clipped_for_every_lora_on_its_own() -> None:
    """Clipping the norm of the whole stack is the obvious mistake."""
    model, persons = stacked_toy(), toy_persons(3)
    factors = random_factors(model, 3).changed(lambda value: value.requires_grad_())
    batch = drawn_batch(persons.latents, 1000, STEP, KEYS, 5, 1)
    free, tight = (
        clipped_gradients(mean_losses(squared_errors(model, factors, batch, toy_states(KEYS)), 3), factors, clip)
        for clip in (1e9, 0.01)
    )
    norms = torch.stack([one.flatten(1).square().sum(1) for one in free]).sum(0).sqrt()
    after = torch.stack([one.flatten(1).square().sum(1) for one in tight]).sum(0).sqrt()
    assert (norms > 0.01).all() and norms.max() / norms.min() > 1.05
    torch.testing.assert_close(after, torch.full((3,), 0.01), rtol=1e-4, atol=0)
    for one, other in zip(free, tight, strict=True):
        torch.testing.assert_close(other, one * (0.01 / norms)[:, None, None], rtol=1e-4, atol=1e-8)


def test_private_gradients_are_those_of_a_loop_over_single_pictures() -> None:
    model, persons = stacked_toy(), toy_persons(2)
    factors = random_factors(model, 2).changed(lambda value: value.requires_grad_())
    chance = stream(2, "batch")
    owner = torch.tensor([0, 0, 0, 1])  # Poisson batches differ in size
    batch = Batch(
        owner,
        persons.latents.flatten(0, 1)[[0, 1, 2, 5]],
        torch.randn(4, 4, 8, 8, generator=chance),
        torch.tensor([10, 500, 700, 300]),
    )
    recipe = dataclasses.replace(STEP, clip=0.02, noise_multiplier=1e-12)
    contexts = toy_states(["a", "b"])
    found = private_gradients(model, factors, batch, contexts, recipe, [stream(0), stream(1)])
    expected = [torch.zeros_like(value) for value in factors.tensors()]
    for row in range(4):
        one = factors.rows([int(owner[row])]).changed(lambda value: value.detach().requires_grad_())
        parts = (batch.latents, batch.noise, batch.timesteps)
        single = Batch(torch.tensor([0]), *(part[row : row + 1] for part in parts))
        loss = losses_of(model, one, single, contexts[owner[row]][None]).sum()
        gradients = torch.autograd.grad(loss, one.tensors())
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients))
        assert norm > 0.02
        for place, gradient in enumerate(gradients):
            expected[place][owner[row]] += gradient[0] * (0.02 / norm) / recipe.batch
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


def test_a_random_gauge_leaves_the_models_answer_unchanged() -> None:
    model, factors = stacked_toy(), random_factors(stacked_toy(), 2)
    turned = regauged(factors, ["a", "b"], seed=1)
    assert all((turned.up[name] - factors.up[name]).abs().max() > 0.01 for name in factors.up)
    with torch.no_grad():
        torch.testing.assert_close(
            model.predict(turned, *asked_inputs(4)), model.predict(factors, *asked_inputs(4)), rtol=0, atol=1e-4
        )


def test_untrained_loras_and_no_loras_answer_as_the_base_and_the_layers_are_left_as_they_were() -> None:
    model = stacked_toy()
    with torch.no_grad():
        own = model.unet(*asked_inputs(4)).sample
        assert torch.equal(model.predict(None, *asked_inputs(4)), own)
        assert torch.equal(model.predict(started(model, ["a", "b"]), *asked_inputs(4)), own)
        model.predict(random_factors(model, 2), *asked_inputs(4))
        assert torch.equal(model.unet(*asked_inputs(4)).sample, own)


def test_a_gradient_reaches_the_context_and_not_the_loras_that_a_callback_sees() -> None:
    model, persons = stacked_toy(), toy_persons(2)
    context = toy_states(["x"]).expand(4, -1, -1).clone().requires_grad_()

    def encoder_step(step: int, factors: Factors, batch: Batch) -> None:
        assert not any(value.requires_grad for value in factors.tensors())
        model.predict(factors, batch.latents, batch.timesteps, context).square().mean().backward()
        for value in factors.tensors():
            value.zero_()  # whatever it does to its own copies

    arguments = (started(model, KEYS[:2]), persons.latents, toy_states(KEYS[:2]), 3, STEP, KEYS[:2])
    watched = train_stack(model, *arguments, seed=1, on_step=encoder_step)[3]
    plain = train_stack(model, *arguments, seed=1)[3]
    assert context.grad is not None and context.grad.abs().sum() > 0
    assert all(torch.equal(value, plain.state()[name]) for name, value in watched.state().items())


def test_one_by_one_convolutions_take_stacks_too() -> None:
    model = stacked_toy()
    layers = {name: layer for name, layer in stackable_layers(model.unet).items() if name.endswith("proj_in")}
    assert layers and all(isinstance(layer, torch.nn.Conv2d) for layer in layers.values())
    name, layer = next(iter(layers.items()))
    factors = Factors({name: torch.randn(2, 3, layer.in_channels)}, {name: torch.randn(2, layer.out_channels, 3)}, 0.5)
    inputs = torch.randn(4, layer.in_channels, 4, 4)
    with torch.no_grad(), StackedLoRA(layers).using(factors):
        found = layer(inputs)
    for row in range(4):
        change = 0.5 * factors.up[name][row // 2] @ factors.down[name][row // 2]
        own = torch.nn.functional.conv2d(inputs[row : row + 1], layer.weight + change[:, :, None, None], layer.bias)
        torch.testing.assert_close(found[row : row + 1], own, rtol=1e-4, atol=1e-5)


def test_factors_survive_a_file_and_a_join() -> None:
    factors = random_factors(stacked_toy(), 3)
    again = joined([factors.rows([0]), factors.rows([1, 2])])
    assert again.count == 3
    again = factors_from_state(again.state(), again.scale)
    assert all(torch.equal(value, factors.state()[name]) for name, value in again.state().items())


def test_a_lora_file_is_read_with_its_alphas_and_what_does_not_fit_is_refused() -> None:
    model = stacked_toy()
    factors = random_factors(model, 1, rank=4)
    tensors = {}
    for name in factors.down:
        tensors |= {
            f"{name}.lora_down.weight": factors.down[name][0],
            f"{name}.lora_up.weight": factors.up[name][0],
            f"{name}.alpha": torch.tensor(2.0),
        }
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"] = torch.tensor(1.0)
    read = factors_of_file(tensors, model.layers, "x.safetensors")
    assert read.count == 1 and read.scale_of(next(iter(read.down))) == 0.5
    name = next(iter(factors.down))
    with pytest.raises(InputError, match="another base model"):
        factors_of_file({**tensors, f"{name}.lora_down.weight": torch.zeros(4, 7)}, model.layers, "x.safetensors")
    with pytest.raises(InputError, match="NaN"):
        factors_of_file({**tensors, f"{name}.lora_down.weight": torch.full((4, 16), torch.nan)}, model.layers, "x")
    with pytest.raises(InputError, match="no module"):
        factors_of_file({f"lora_unet_elsewhere.{part}": torch.zeros(1) for part in ("alpha",)}, model.layers, "x")
    with pytest.raises(InputError, match="plain LoRA"):
        factors_of_file({f"{name}.hada_w1_a": torch.zeros(2, 2)}, model.layers, "x")


def test_a_rank_above_the_layers_sides_is_refused() -> None:
    model = stacked_toy()
    with pytest.raises(InputError, match="rank must be from 1 to 16"):
        fresh_factors(model.layers, 17, 1.0, [stream(0)])
    assert fresh_factors(model.layers, 1, 1.0, [stream(0)]).count == 1


def test_padded_factors_change_the_weights_as_before_and_join_with_a_higher_rank() -> None:
    model = stacked_toy()
    low, high = random_factors(model, 2, rank=2), random_factors(model, 1, rank=5)
    wide = padded(low, 5)
    for name in model.layers:
        assert wide.down[name].shape[1] == wide.up[name].shape[2] == 5
        assert torch.equal(wide.up[name] @ wide.down[name], low.up[name] @ low.down[name])
    assert joined([wide, high]).count == 3
    with pytest.raises(ValueError, match="rank 5 do not fit into rank 3"):
        padded(high, 3)
