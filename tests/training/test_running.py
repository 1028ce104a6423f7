"""How a run is planned, saved, compiled and explained when the machine says no."""

import dataclasses
import logging
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import PLoRA
import SPLoRA
from library.assembly import validation_plan
from library.assembly.game import GameRules
from library.assembly.validation_plan import ValidationPlan, ValidationRules, plan_validation, step_cost
from library.diffusion import flops, memory
from library.diffusion.compiling import CompileRules, compile_unet
from library.diffusion.latent_diffusion import vae_dtype
from library.diffusion.memory import AdviceRules, best_switches
from library.diffusion.model_files import load_model
from library.errors import InputError
from library.options.declarations import Config
from library.rules import pick
from library.training import device
from library.training.checkpoint_schedule import KeepRule, numbers_due
from library.training.interruption import FiniteGuard
from library.training.optimization.optimizer_step import take_step
from library.training.training_plan import BatchSize, TrainingPlan, Undivided
from networks.lora import create_network
from tests.helpers.runs import assert_same_tensors, records


def keep(**changed: Any) -> KeepRule:
    """As the doors make it."""
    return pick(dataclasses.replace(Config(), **changed), KeepRule)


def test_a_ratio_saves_as_many_files_as_kohya_does() -> None:
    """20 epochs / ratio 3 = every 6 epochs; more files than epochs means every epoch; the ratio beats the epochs."""
    plan = TrainingPlan(steps_per_epoch=5, total_steps=100)
    assert keep(save_n_epoch_ratio=3).every_epochs(plan) == 6
    assert keep(save_n_epoch_ratio=50, save_every_n_epochs=7).every_epochs(plan) == 1
    assert keep(save_every_n_epochs=7).every_epochs(plan) == 7
    due = [number for done in range(1, 101) for number in numbers_due(plan, keep(save_n_epoch_ratio=3), done)]
    assert due == ["-000006", "-000012", "-000018"]


def test_looks_come_by_epochs_by_steps_and_at_the_end() -> None:
    plan = TrainingPlan(steps_per_epoch=4, total_steps=13)
    assert [done for done in range(1, 14) if plan.validation_is_due(done, 2, None)] == [8, 13]
    assert [done for done in range(1, 14) if plan.validation_is_due(done, 2, 3)] == [3, 6, 8, 9, 12, 13]
    assert [done for done in range(1, 14) if plan.validation_is_due(done, None, None)] == [13]


def looks(plan: TrainingPlan, sides: tuple[int, int], cost: float, **changed: Any) -> ValidationPlan:
    """Validation with 4 draws of a picture."""
    rules = pick(dataclasses.replace(Config(), **changed), ValidationRules)
    return plan_validation(plan, rules, sides=sides, draws=4, cost=cost, one_exposure=plan.steps_per_epoch)


def test_validation_takes_a_tenth_of_the_training_by_default() -> None:
    """The Pokemon config: 433 steps of 2.15 + 2 passes an epoch, 432 x 4 passes a look: 48 % if it looks every epoch.

    400 epochs are worth 718,780 passes, a tenth of them 41.6 looks: the first, the last, and 39 between them.
    """
    game = pick(dataclasses.replace(Config(), train_batch_size=1), GameRules)
    cost = step_cost(1, game, gradient_checkpointing=False)
    assert cost == pytest.approx(4.15)
    plan = looks(TrainingPlan(433, 173200), (216, 216), cost)
    assert (plan.every_epochs, plan.members, plan.non_members) == (10, 216, 216)
    assert 0.095 < plan.share() <= 0.1 and "every 10 epochs and at the end, on 216 members-aux" in plan.summary()
    asked = looks(TrainingPlan(433, 173200), (216, 216), cost, aux_loss_every_n_epochs=1)
    assert asked.every_epochs == 1 and asked.share() == pytest.approx(401 * 1728 / (173200 * 4.15))


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("sides", [(50, 50), (700, 90), (3000, 3000)])
def test_validation_keeps_its_share_or_looks_at_32_pictures_of_a_side(epochs: int, sides: tuple[int, int]) -> None:
    plan = looks(TrainingPlan(500, 500 * epochs), sides, 4.15)
    assert plan.is_due(500 * epochs)
    assert plan.share() <= 0.1 or (plan.every_epochs is None and min(plan.members, plan.non_members) == 32)


def test_a_target_gets_a_pass_after_one_exposure() -> None:
    plan = looks(TrainingPlan(500, 500 * 40), (50, 50), 4.15, target_auc=0.6, aux_loss_every_n_epochs=5)
    assert [done for done in range(1, 5001) if plan.is_due(done)] == [500, 2500, 5000]
    assert "after one exposure" in plan.summary()
    assert TrainingPlan(500, 500 * 40).one_exposure([2, 2, 3, 3]) == 200


def test_validation_costs_what_a_step_costs() -> None:
    """4 images: 2.15 passes each, twice with separate noise, 3.15 with checkpointing; 2 turns of 3 + 3 pictures."""
    rules = pick(dataclasses.replace(Config(), k_steps=2, attack_batch_size=3, separate_noise=True), GameRules)
    assert step_cost(4, rules, gradient_checkpointing=True) == pytest.approx(4 * 3.15 * 2 + 12)
    plain = pick(dataclasses.replace(Config(), k_steps=0), GameRules)
    assert step_cost(4, plain, gradient_checkpointing=False) == pytest.approx(8.6)


def test_fewer_pictures_are_the_same_in_every_pass_and_after_a_resume(flags, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(validation_plan, "LEAST", 2)
    arguments = {"aux_loss_share": 0, "save_state": True, "max_train_steps": 4}
    assert SPLoRA.main(flags(**arguments, save_every_n_steps=2)) == 0
    whole = records(tmp_path / "out")
    state = tmp_path / "out" / "state" / "last-step00000002-state"
    assert SPLoRA.main(flags(**arguments, resume=state)) == 0
    seen = [{k: v for k, v in one.items() if k != "seconds"} for one in records(tmp_path / "out")]
    looked = [one for one in seen if "images_members_aux" in one]
    assert [(one["step"], one["images_members_aux"], one["images_non_members_aux"]) for one in looked] == [
        (0, 2, 2), (4, 2, 2)
    ]  # fmt: skip
    assert looked == [one for one in whole if "images_members_aux" in one]


def test_kohyas_1600_steps_are_announced_with_the_formula_where_they_decide() -> None:
    size = BatchSize(per_device=2, accumulation=3, processes=4)
    text = TrainingPlan(100, 1600).summary([1] * 2400, size, None)
    assert "global batch: 2 images x 3 passes x 4 processes = 24 images per step" in text
    assert "the run has kohya's default max_train_steps = 1600" in text
    assert "1600 steps x 24 images / 2400 images per epoch = about 16 epochs" in text
    assert "no other length" not in TrainingPlan(100, 1600).summary([1] * 2400, size, 16)
    assert "decides" not in TrainingPlan(100, 1500).summary([1] * 2400, size, None)


def test_exposures_are_told_beside_those_of_kohya_where_steps_decide() -> None:
    """60 pictures of 10_x, 200 steps of 3: kohya uses each 10 times; 32 members are used 18.7 times."""
    size, members, everybody = BatchSize(3, 1, 1), [10] * 32, Undivided(60, 200, 10.0)
    plan = TrainingPlan(107, 200)
    text = plan.summary(members, size, None, everybody)
    assert "kohya would use each of 60 pictures 10 times in 200 steps; here 32 of them are members" in text
    assert "each used 18.69 times, since the others are held out; --keep_exposures shortens the run to 107" in text
    assert "kohya would use" not in plan.summary(members, size, 2, everybody)
    assert "kohya would use" not in TrainingPlan(200, 200).summary([10] * 60, size, None, everybody)
    kept = TrainingPlan(107, 107).summary(members, size, None, everybody, 200)
    assert "32 of them are members, each used 10 times in 107 steps (keep_exposures)" in kept


def test_keep_exposures_shortens_the_run_to_kohyas_exposures(flags, tmp_path: Path, capsys) -> None:
    """16 pictures in batches of 2: 8 steps are one epoch in kohya; half of them are members, which 4 steps use once."""
    assert PLoRA.main(flags(max_train_steps=8)) == 0
    assert "kohya would use each of 16 pictures 1 times in 8 steps; here 8 of them are members, each used 2 times" in (
        capsys.readouterr().out
    )
    assert PLoRA.main(flags(max_train_steps=8, keep_exposures=True, output_dir=tmp_path / "kept")) == 0
    assert "each used 1 times in 4 steps (keep_exposures)" in capsys.readouterr().out
    assert [max(record["step"] for record in records(tmp_path / name)) for name in ("out", "kept")] == [8, 4]


def test_looks_by_steps_are_logged_with_the_weights_that_were_looked_at(flags, tmp_path: Path, capsys) -> None:
    assert SPLoRA.main(flags(max_train_steps=5, aux_loss_every_n_steps=2, ema_decay=0.9)) == 0
    looks = [record for record in records(tmp_path / "out") if "adaptation_loss_members_aux" in record]
    assert [look["step"] for look in looks] == [0, 2, 4, 5] and {look["weights"] for look in looks} == {"ema"}
    output = capsys.readouterr()
    assert "members-aux" in output.out and " vs non-members-aux " in output.out and "speed: " in output.out


@pytest.mark.slow
def test_files_hold_the_average_and_states_hold_both(flags, tmp_path: Path) -> None:
    """Averaging changes what is written and nothing of what is trained."""
    from library.lora_files.metadata import PRIVACY_SETTINGS

    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    assert PLoRA.main(flags(output_dir=plain, max_train_steps=6, save_state=True)) == 0
    assert PLoRA.main(flags(output_dir=averaged, max_train_steps=6, save_state=True, ema_decay=0.9)) == 0
    state = averaged / "state" / "last-state"
    assert_same_tensors(plain / "last.safetensors", state / "lora.safetensors")
    shown, trained, average = (
        load_file(path)
        for path in (averaged / "last.safetensors", state / "lora.safetensors", state / "average.safetensors")
    )
    weights = {name for name in shown if not name.endswith("alpha")}
    assert any(not torch.equal(shown[name], trained[name]) for name in weights)
    assert int(average["steps"]) == 6 and len(average) == len(weights) + 1
    kept = {value.numpy().tobytes() for name, value in average.items() if name != "steps"}
    assert {shown[name].numpy().tobytes() for name in weights} == kept
    assert "ema_decay" in PRIVACY_SETTINGS


def test_a_schedule_free_run_writes_its_average_and_keeps_what_it_trains(flags, tmp_path: Path) -> None:
    run = flags(max_train_steps=6, save_state=True, optimizer_type="AdamWScheduleFree")
    assert PLoRA.main(run) == 0
    out = tmp_path / "out"
    shown, trained = load_file(out / "last.safetensors"), load_file(out / "state" / "last-state" / "lora.safetensors")
    assert any(not torch.equal(shown[name], trained[name]) for name in shown)
    assert {look["weights"] for look in records(out) if "weights" in look} == {"schedule-free"}


def test_the_adapted_rate_is_logged(flags, tmp_path: Path) -> None:
    assert PLoRA.main(flags(max_train_steps=3, optimizer_type="Prodigy", learning_rate="1.0")) == 0
    steps = [record for record in records(tmp_path / "out") if "loss" in record]
    assert steps[0]["adapted_learning_rate"] == pytest.approx(1e-6) and steps[0]["learning_rate"] == 1


@pytest.mark.slow
def test_compiled_blocks_train_the_same_lora(flags, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Backend eager traces and runs the same kernels: the same losses to rounding, injected LoRA included."""
    plain, compiled = tmp_path / "plain", tmp_path / "compiled"
    assert SPLoRA.main(flags(output_dir=plain)) == 0
    torch._dynamo.utils.counters.clear()
    assert SPLoRA.main(flags(output_dir=compiled, torch_compile=True, dynamo_backend="eager")) == 0
    one, other = ([r["loss"] for r in records(out) if "loss" in r] for out in (plain, compiled))
    assert one == pytest.approx(other, rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    print(dict(torch._dynamo.utils.counters["stats"]), dict(torch._dynamo.utils.counters["graph_break"]))
    assert "goes on without it" not in capsys.readouterr().err
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = False


@pytest.fixture
def tiny_model(model_folder: Path):
    """A tiny model with a LoRA in it."""
    model = load_model(str(model_folder))
    network = create_network(1.0, 2, 1.0, model.vae, model.text_encoder, model.unet)
    network.apply_to(model.text_encoder, model.unet, True, True)
    yield model, network
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = False


@pytest.mark.slow
def test_compiling_reaches_every_block_and_leaves_no_gradient_and_no_draw(tiny_model) -> None:
    model, network = tiny_model
    before = torch.get_rng_state()
    assert compile_unet(model, CompileRules(True, "eager"), (16, 16))
    blocks = [each for each in model.unet.modules() if type(each).__name__ == "BasicTransformerBlock"]
    assert blocks and all(block._compiled_call_impl is not None for block in blocks)
    assert torch.equal(before, torch.get_rng_state()) and all(each.grad is None for each in network.parameters())


def test_a_backend_that_fails_is_named_and_the_run_goes_on_without_it(
    tiny_model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = tiny_model
    with caplog.at_level(logging.WARNING, "library"):
        assert not compile_unet(model, CompileRules(True, "no_such_backend"), (16, 16))
    assert "backend no_such_backend failed, the run continues without compilation" in caplog.text
    assert all(module._compiled_call_impl is None for module in model.unet.modules())
    latents = torch.zeros(1, 4, 8, 8, requires_grad=True)
    answer = model.unet(latents, 0, torch.zeros(1, 77, 16)).sample
    assert torch.autograd.grad(answer.sum(), latents)[0].isfinite().all()  # runs, forward and backward
    assert not compile_unet(model, CompileRules(False, "inductor"), (16, 16))


def advice(**changed: Any) -> list[str]:
    """For a run with these options."""
    return best_switches(pick(dataclasses.replace(Config(), **changed), AdviceRules))


def test_the_advice_names_what_this_run_does_not_use_yet() -> None:
    first = advice(train_batch_size=4)
    assert first[0].startswith("mixed_precision") and first[1].startswith("gradient_checkpointing")
    assert "train_batch_size = 2 with gradient_accumulation_steps = 2" in first[2]
    used = advice(mixed_precision="bf16", gradient_checkpointing=True, cache_latents=False, attack_batch_size=8)
    assert used[0].startswith("cache_latents") and used[1].startswith("attack_batch_size = 4")
    assert len(advice(mixed_precision="bf16", gradient_checkpointing=True)) >= 2


def test_a_full_gpu_ends_in_three_switches_and_no_traceback(flags, monkeypatch: pytest.MonkeyPatch) -> None:
    from library.assembly.game import Game

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(Game, "member_losses", full)
    with pytest.raises(InputError) as caught:
        SPLoRA.main(flags())
    text = str(caught.value)
    assert text.startswith("the GPU is out of memory: CUDA out of memory\n") and "  3. " in text and "  4. " not in text
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 6), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_80", "sm_90", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((12, 1), ["sm_120f"], True),
        ((8, 9), [], True),
        ((9, 0), ["gfx90a", "gfx942"], True),
    ],
)
def test_a_gpu_is_compared_with_what_torch_was_built_for(capability: tuple, built: list[str], runs: bool) -> None:
    if runs:
        device.check_capability("Card", capability, built, "2.0")
        return
    with pytest.raises(InputError, match=rf"no code for this GPU: Card is sm_{capability[0]}{capability[1]}"):
        device.check_capability("Card", capability, built, "2.0")


@pytest.mark.parametrize(
    ("card", "capability", "has"),
    [("V100", (7, 0), False), ("T4", (7, 5), False), ("A100", (8, 0), True), ("RTX 40", (8, 9), True)],
)
def test_bf16_is_the_cards_own_not_emulated(
    card: str, capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # as torch says of each of them
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    chosen = vae_dtype(torch.float16, torch.device("cuda"), full_precision=False)
    assert chosen == (torch.bfloat16 if has else torch.float32), card
    assert vae_dtype(torch.float16, torch.device("cpu"), full_precision=False) == torch.float32


class FusedStep:
    """A fused optimizer behind accelerate with fp16: an overflow changes nothing, and no skipped step is reported."""

    step_was_skipped = False

    def __init__(self, gradient: float) -> None:
        self.parameter = torch.nn.Parameter(torch.zeros(2))
        self.parameter.grad = torch.full((2,), gradient)
        self.param_groups: list[dict[str, Any]] = [{"params": [self.parameter]}]
        self.moved: list[str] = []

    def step(self) -> None:
        self.moved.append("optimizer")

    def update(self) -> None:
        self.moved.append("average")

    def zero_grad(self, set_to_none: bool) -> None:
        self.parameter.grad = None


@pytest.mark.parametrize(
    ("gradient", "moved"), [(1.0, ["optimizer", "schedule", "average"]), (float("inf"), ["optimizer"])]
)
def test_an_overflow_in_a_fused_step_moves_neither_schedule_nor_average(gradient: float, moved: list[str]) -> None:
    one = FusedStep(gradient)
    schedule = SimpleNamespace(step=lambda: one.moved.append("schedule"), get_last_lr=lambda: [0.1])
    state: Any = SimpleNamespace(optimizer=one, schedule=schedule, average=one)
    accelerator: Any = SimpleNamespace(
        num_processes=1, scaler=object(), unscale_gradients=lambda _: None, reduce=lambda values, how: values
    )
    take_step(accelerator, state, 1.0, torch.zeros(3), FiniteGuard(), dict)
    assert one.moved == moved


def test_the_gpu_is_asked_before_anything_is_put_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "RTX 5090")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    with pytest.raises(InputError, match="RTX 5090 is sm_120, and the build is for sm_90"):
        device.open_accelerator("no", None)


def test_ddp_timeout_reaches_accelerate_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(device, "Accelerator", lambda **given: seen.update(given))
    device.open_accelerator("no", 90)
    assert seen["kwargs_handlers"][0].timeout == timedelta(minutes=90)
    device.open_accelerator("no", None)
    assert seen["kwargs_handlers"] == []


def test_flops_of_sd15_are_those_that_were_measured() -> None:
    """803 GFLOP for a 64 x 64 latent (spec/kohya.md 7), counted without weights."""
    from diffusers import UNet2DConditionModel

    from library.diffusion.families.sd1 import SD1

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD1.settings / "unet"))
    assert flops.forward_flops(unet, (64, 64)) == pytest.approx(803e9, rel=0.01)
    assert flops.peak_flops(torch.device("cpu"), torch.bfloat16) is None


def test_console_log_level_keeps_lighter_messages_off_the_terminal(flags, capsys: pytest.CaptureFixture) -> None:
    frozen = {"network_train_unet_only": True}
    assert SPLoRA.main(flags(**frozen, overwrite=True)) == 0
    assert "captions were encoded once" in capsys.readouterr().err
    assert SPLoRA.main(flags(**frozen, overwrite=True, console_log_level="ERROR")) == 0
    assert "captions were encoded once" not in capsys.readouterr().err


def test_advice_is_no_net_for_other_errors() -> None:
    rules = pick(Config(), AdviceRules)
    with pytest.raises(ZeroDivisionError), memory.out_of_memory_explained(rules):
        raise ZeroDivisionError
