"""Differentially private runs: gradients of units, noise once a step, the accounting in files and on the way."""

import ast
import dataclasses
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from safetensors import safe_open
from safetensors.torch import load_file

import audit
import DPLoRA
from library.assembly.private_steps import PrivateSteps
from library.assembly.run import open_run
from library.assembly.training import Training, open_training
from library.diffusion.loss import adaptation_losses
from library.diffusion.noise import Draw
from library.errors import InputError
from library.options import resolve
from library.options.resolve import read_config
from library.privacy.dp.accounting import Spending, epsilon_pld
from library.privacy.dp.mechanism import noise
from tests.helpers import tiny
from tests.helpers.runs import assert_same_tensors, records

PRIVATE: dict[str, Any] = {
    "attack_lr": None, "dp_noise_multiplier": 1.0, "dp_batch_size": 3, "dp_draws": 2, "dp_max_grad_norm": 0.01,
    "train_batch_size": 4, "group_by": "groups.json",
}  # fmt: skip


@pytest.fixture
def private_flags(flags, pictures: Path, tmp_path: Path):
    """Flags of a run on 16 pictures, in groups of one and of two by turns."""
    groups = {f"quokka{number:03d}": f"person{number * 2 // 3}" for number in range(16)}
    (tmp_path / "groups.json").write_text(json.dumps(groups))

    def make(**changed: object) -> list[str]:
        return flags(**{**PRIVATE, "group_by": tmp_path / "groups.json", **changed})

    return make


def opened(arguments: list[str]) -> tuple[Training, PrivateSteps]:
    """A run before its first step."""
    training = open_training(open_run(resolve.read_options("DPLoRA", arguments)))
    training.run.lock.release()
    return training, training.private()


def moved(training: Training) -> None:
    """Give the up factors values, so that the down factors have gradients too."""
    with torch.no_grad():
        for number, one in enumerate(training.run.network.modules_of_both()):
            torch.manual_seed(number)
            one.lora_up.weight.normal_(std=0.1)


def looped(private: PrivateSteps, unit: int, step: int) -> torch.Tensor:
    """[P] gradient of one unit by a loop: a pass with its own backward for each picture and draw."""
    game, draws = private.game, private.plan.rules.dp_draws
    indices = private.plan.units.indices[unit]
    total = private.zeros()
    for index in indices:
        (batch,) = game.pictures.batches_by_shape([index], 1, step, "private")
        scaled, draw = private.draws_of(batch, step)
        for place in range(draws):
            one = slice(place, place + 1)
            extra = None if draw.perturbation is None else draw.perturbation[one]
            alone = Draw(draw.timesteps[one], draw.noise[one], extra)
            difference = game.denoiser.difference(scaled[one], game.contexts.of(batch), alone)
            loss = adaptation_losses(
                difference, alone.timesteps, game.denoiser.scheduler, game.loss, batch.weights, batch.mask
            ).sum()
            gradients = torch.autograd.grad(loss, list(private.parameters), allow_unused=True)
            flat = [torch.zeros_like(one) if got is None else got
                    for one, got in zip(private.parameters, gradients, strict=True)]  # fmt: skip
            total += torch.cat([one.flatten() for one in flat]) / (len(indices) * draws)
    return total


@pytest.mark.parametrize(
    "options",
    [
        {"network_train_unet_only": True, "dp_draws": 1},
        {"network_args": "conv_dim=2", "dp_draws": 3, "max_token_length": 150, "min_snr_gamma": 5, "noise_offset": 0.1},
        {"enable_bucket": True, "min_bucket_reso": 16, "bucket_reso_steps": 8, "ip_noise_gamma": 0.1,
         "loss_type": "huber"},
    ],
    ids=["UNet", "text encoder, convolutions, caption pieces", "sizes"],
)  # fmt: skip
def test_gradients_of_units_are_those_of_a_loop_over_single_passes(options, private_flags, tmp_path: Path) -> None:
    """Within 1e-5 of their norm, for units of one and of two pictures, with K draws each."""
    sizes = ((16, 16), (24, 16)) if "enable_bucket" in options else ((16, 16),)
    folder = tiny.write_pictures(tmp_path / "more", 16, sizes=sizes)
    training, private = opened(private_flags(train_data_dir=folder, **options))
    moved(training)
    units = list(range(len(private.plan.units.indices)))
    assert {1, 2} <= set(private.plan.units.sizes()) and len(units) > 2
    training.before_pass(0, 0)
    found = private.gradients(units, 0)
    for unit in units:
        expected = looped(private, unit, 0)
        assert expected.norm() > 0
        assert (found.gradients[unit] - expected).norm() < 1e-5 * expected.norm()
    again = private.gradients(units[1:2], 0)
    assert torch.allclose(again.gradients[0], found.gradients[1], atol=1e-6), "whoever else is in the pass"


def step_of(private: PrivateSteps, step: int) -> tuple[torch.Tensor, int]:
    """The noisy mean of a step, and the number of its passes."""
    passes = [private.gradients(units, step) for units in private.passes_of(step)]
    total = sum((private.clipped(found) for found in passes), private.zeros())
    return private.noisy_mean(total, step), len(passes)


def packed_by(private: PrivateSteps, pictures: int) -> PrivateSteps:
    """The same steps in passes of another size."""
    rules = dataclasses.replace(private.plan.rules, train_batch_size=pictures)
    return dataclasses.replace(private, plan=dataclasses.replace(private.plan, rules=rules))


def test_noise_is_added_once_however_many_passes_a_step_has(private_flags) -> None:
    training, private = opened(private_flags(dp_batch_size=4))
    step = next(step for step in range(50) if len(private.units_of(step)) >= 3)
    (few, one), (many, several) = step_of(packed_by(private, 100), step), step_of(packed_by(private, 2), step)
    assert one == 1 < several and torch.allclose(few, many, atol=1e-7)
    signal = sum(
        (private.clipped(private.gradients(units, step)) for units in private.passes_of(step)), private.zeros()
    )
    rest = few * 4 - signal
    assert torch.allclose(rest, noise(len(rest), 0.01, private.key, step), atol=1e-6)
    assert signal.norm() <= 0.01 * len(private.units_of(step)) * (1 + 1e-5)


def test_processes_share_the_units_and_add_the_noise_once(private_flags) -> None:
    """Each adds the same numbers after the sums of all have met; a process without a unit does so, too."""
    _, private = opened(private_flags(dp_batch_size=4))
    whole, _ = step_of(private, 0)
    totals: list[torch.Tensor] = []

    def of(rank: int, reduce: Any) -> PrivateSteps:
        accelerator = SimpleNamespace(
            process_index=rank, num_processes=8, reduce=reduce, device=torch.device("cpu"),
            autocast=private.game.accelerator.autocast,
        )  # fmt: skip
        return dataclasses.replace(private, game=dataclasses.replace(private.game, accelerator=accelerator))

    shares = [of(rank, None) for rank in range(8)]
    for share in shares:
        totals.append(sum((share.clipped(share.gradients(units, 0)) for units in share.passes_of(0)), share.zeros()))
    assert sum(not one.any() for one in totals) > 0
    for rank in (0, 7):
        found = of(rank, lambda total, how: sum(totals)).noisy_mean(totals[rank], 0)
        assert torch.allclose(found, whole, atol=1e-7)


def test_an_empty_step_is_a_step_of_noise(private_flags, tmp_path: Path) -> None:
    """With one unit of many on average, some steps have none: the weights move all the same, and the log says 0."""
    assert DPLoRA.main(private_flags(dp_batch_size=1, max_train_steps=12, save_every_n_steps=1)) == 0
    log = records(tmp_path / "out")
    empty = [record["step"] for record in log if record["units"] == 0]
    assert empty and "adaptation_loss" not in log[empty[0] - 1]
    files = {step: load_file(tmp_path / "out" / f"last-step{step:08d}.safetensors") for step in range(1, 12)}
    step = next(step for step in empty if step - 1 in files and step in files)
    assert any(not torch.equal(files[step][name], files[step - 1][name]) for name in files[step])


def test_epsilon_is_in_the_log_in_the_last_lines_and_in_the_metadata(private_flags, tmp_path: Path, capsys) -> None:
    assert DPLoRA.main(private_flags(max_train_steps=4)) == 0
    units = len(json.loads((tmp_path / "groups.json").read_text()))
    log, told = records(tmp_path / "out"), capsys.readouterr().out
    rate = 3 / int(told.split("each of ")[1].split()[0])
    exact = [epsilon_pld(Spending(1.0, rate, 1e-2), done) for done in range(1, 5)]
    assert [record["epsilon"] for record in log] == pytest.approx(exact, rel=1e-6) and units == 16
    assert f"epsilon {exact[-1]:.2f}"[:10] in told and "differentially private" in told and "delta 0.01" in told
    with safe_open(tmp_path / "out" / "last.safetensors", "pt") as file:
        stated = {name: text for name, text in file.metadata().items() if name.startswith("ss_privacy_")}
    assert float(stated["ss_privacy_dp_epsilon"]) >= exact[-1]
    assert {name.removeprefix("ss_privacy_") for name in stated} == {
        "method", "dp_epsilon", "dp_delta", "dp_unit", "dp_noise_multiplier", "dp_max_grad_norm",
        "exposures_per_image", "training", "base_fingerprint",
    }  # fmt: skip
    assert stated["ss_privacy_dp_unit"] == "group" and stated["ss_privacy_dp_noise_multiplier"] == "1"


def test_a_file_states_no_figure_that_gives_the_number_of_members(private_flags, tmp_path: Path) -> None:
    """A target is stated as it was chosen; what follows from it and the number of units has one digit."""
    assert DPLoRA.main(private_flags(dp_noise_multiplier=None, dp_target_epsilon=12.5, save_every_n_steps=1)) == 0
    for name in ("last", "last-step00000001"):
        with safe_open(tmp_path / "out" / f"{name}.safetensors", "pt") as file:
            stated = file.metadata()
        assert stated["ss_privacy_dp_epsilon"] == "12.5"
        noise_multiplier = stated["ss_privacy_dp_noise_multiplier"]
        assert len(noise_multiplier.replace("0.", "")) == 1 and "rate" not in " ".join(stated)
    epsilon = records(tmp_path / "out")[-1]["epsilon"]
    assert 12.3 < epsilon <= 12.5


def test_a_resumed_run_is_the_run_itself_and_its_epsilon_goes_on(private_flags, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    same = {"save_state": True, "save_every_n_steps": 2, "max_train_steps": 5}
    assert DPLoRA.main(private_flags(output_dir=whole, **same)) == 0
    assert DPLoRA.main(private_flags(output_dir=halves, **{**same, "max_train_steps": 3})) == 0
    state = halves / "state/last-step00000002-state"
    saved = json.loads((state / "state.json").read_text())
    assert saved["done"] == 2 and saved["spending"]["noise_multiplier"] == 1.0
    assert DPLoRA.main(private_flags(output_dir=halves, resume=state, split_secret_file=None, **same)) == 0
    assert_same_tensors(whole / "last.safetensors", halves / "last.safetensors")
    for one, other in zip(records(whole), records(halves), strict=True):
        assert one["epsilon"] == pytest.approx(other["epsilon"], rel=0.05) and one["units"] == other["units"]
    assert records(whole)[-1]["epsilon"] == records(halves)[-1]["epsilon"]


@pytest.mark.parametrize(
    ("before", "changed", "named"),
    [
        ({}, {"dp_noise_multiplier": 0.9}, "dp_noise_multiplier was 1.0 and is 0.9 now"),
        ({}, {"dp_batch_size": 2}, "dp_batch_size was 3 and is 2 now"),
        ({}, {"dp_max_grad_norm": 0.1}, "dp_max_grad_norm was 0.01 and is 0.1 now"),
        ({}, {"dp_delta": 0.001}, "dp_delta was None and is 0.001 now"),
        ({"dp_noise_multiplier": None, "dp_target_epsilon": 9}, {"max_train_steps": 9},
         "noise_multiplier was .* and the accounting holds for one mechanism"),
    ],
)  # fmt: skip
def test_a_state_goes_on_only_under_its_own_mechanism(before, changed, named, private_flags, tmp_path: Path) -> None:
    assert DPLoRA.main(private_flags(save_state_on_train_end=True, **before)) == 0
    state = {"resume": tmp_path / "out/state/last-state", "split_secret_file": None, "max_train_steps": 5}
    with pytest.raises(InputError, match=named):
        open_run(resolve.read_options("DPLoRA", private_flags(**{**state, **before, **changed})))


def test_runs_that_differ_in_one_picture_or_option_share_no_noise(private_flags) -> None:
    """With the same secret and seed; else the noise would cancel out of the difference of two files."""
    keys = set()
    for changed in ({}, {"unet_lr": 1e-3}, {"dp_noise_multiplier": 2.0}, {"seed": 8}):
        keys.add(opened(private_flags(**changed))[1].key.derived("noise"))
    training, private = opened(private_flags())
    member = training.run.training_set.examples[private.plan.units.indices[0][0]]
    member.path.with_suffix(".txt").write_text("another word\n")
    keys.add(opened(private_flags())[1].key.derived("noise"))
    assert len(keys) == 5


def test_a_flag_of_the_noise_leaves_out_the_files_epsilon_and_says_so(private_flags, tmp_path: Path) -> None:
    """Clipping alone, or another epsilon, is one flag away from a config; both in one place still stop the run."""

    def read(file: str, **changed: object) -> resolve.Config:
        (tmp_path / "run.toml").write_text(file)
        given = private_flags(**{"dp_noise_multiplier": None, **changed})
        return resolve.read_config("DPLoRA", ["--config_file", str(tmp_path / "run.toml"), *given], told.append)

    told: list[str] = []
    alone = read("dp_target_epsilon = 8\n", dp_noise_multiplier=0)
    assert (alone.dp_target_epsilon, alone.dp_noise_multiplier) == (None, 0)
    assert any(
        "dp_target_epsilon 8" in line and "run.toml" in line and "gives way to --dp_noise_multiplier 0" in line
        for line in told
    )
    other = read("dp_noise_multiplier = 1.5\n", dp_target_epsilon=4)
    assert (other.dp_target_epsilon, other.dp_noise_multiplier) == (4, None)
    for file, flags in (
        ("dp_noise_multiplier = 1.5\n", {"dp_target_epsilon": 4, "dp_noise_multiplier": 1.0}),
        ("dp_target_epsilon = 8\ndp_noise_multiplier = 1\n", {}),
    ):
        with pytest.raises(InputError, match="exclude each other"):
            read(file, **flags)


def refused(arguments: list[str]) -> str:
    """Every fault of a run's opening."""
    with pytest.raises(InputError) as told:
        open_run(resolve.read_options("DPLoRA", arguments))
    return str(told.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dp_noise_multiplier": None}, "dp_target_epsilon or dp_noise_multiplier is needed"),
        ({"dp_target_epsilon": 8}, "dp_target_epsilon 8 and dp_noise_multiplier 1 exclude each other"),
        ({"dp_draws": 0}, "dp_draws must be at least 1, got 0"),
        ({"dp_max_grad_norm": 0}, "dp_max_grad_norm must be above 0"),
        ({"dp_delta": 0.3}, "dp_delta must be below 1 / "),
        ({"dp_batch_size": 100}, "dp_batch_size 100 is more than the "),
        ({"train_batch_size": 1}, "groups have more pictures than train_batch_size 1, up to 2"),
        ({"dp_noise_multiplier": None, "dp_target_epsilon": 1e-4, "dp_delta": 1e-9}, "cannot be reached in 3 steps"),
        ({"network_module": "lycoris.kohya"}, "network_module lycoris.kohya: DPLoRA reads"),
        ({"mixed_precision": "fp16"}, "mixed_precision fp16 leaves steps out"),
        ({"ema_decay": 0.99}, "option 'ema_decay' has no meaning for DPLoRA; it belongs to PLoRA, SPLoRA (to choose"),
        ({"target_auc": 0.7}, "'target_auc' has no meaning for DPLoRA; it belongs to PLoRA, SPLoRA (its figures of"),
        ({"aux_loss_every_n_steps": 1}, "(a validation pass asks about private pictures outside the accounting"),
        ({"max_grad_norm": 0.5}, "set dp_max_grad_norm"),
        ({"gradient_accumulation_steps": 2}, "dp_batch_size units on average"),
        ({"gradient_checkpointing": True}, "lower train_batch_size or dp_draws"),
        ({"torch_compile": True}, "which compiled blocks do not allow"),
        ({"param_alpha": 0.1}, "option 'param_alpha' has no meaning for DPLoRA"),
        ({"k_steps": 1}, "option 'k_steps' has no meaning for DPLoRA"),
        ({"proxy_input": "calibrated"}, "option 'proxy_input' has no meaning for DPLoRA"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_would_break_the_accounting_is_refused_with_its_reason(changed, said, private_flags) -> None:
    told = refused(private_flags(**changed))
    assert said in told and sum(said in line for line in told.splitlines()) == 1


def test_regularisation_images_of_a_dataset_file_are_refused(private_flags, pictures: Path, tmp_path: Path) -> None:
    public = tiny.write_pictures(tmp_path / "reg", 3, first=60) / "1_zebrafolder"
    (tmp_path / "data.toml").write_text(f"""
        [[datasets]]
        resolution = 16
          [[datasets.subsets]]
          image_dir = "{pictures / "1_zebrafolder"}"
          [[datasets.subsets]]
          image_dir = "{public}"
          is_reg = true
        """)
    told = refused(private_flags(dataset_config=tmp_path / "data.toml", train_data_dir=None, resolution=None))
    assert "trains on members alone: take the regularisation images" in told


def test_repeats_give_no_picture_more_weight(private_flags, tmp_path: Path, caplog) -> None:
    folder = tiny.write_pictures(tmp_path / "often", 16, repeats=5)
    with caplog.at_level("INFO", "library"):
        _, private = opened(private_flags(train_data_dir=folder))
    assert sum(private.plan.units.sizes()) == 8 and "repeats are not used" in caplog.text


def test_the_shipped_configs_are_read() -> None:
    root = Path(__file__).parent.parent.parent
    config = read_config("DPLoRA", ["--config_file", str(root / "configs/dplora_demo.toml")], lambda text: None)
    assert config.dp_target_epsilon == 8 and config.k_steps == 0 and config.param_alpha == 0


@pytest.mark.slow
def test_an_audit_knows_a_private_lora_and_lets_it_be_stamped(private_flags, tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path / "many", 48)
    alone = {"train_data_dir": folder, "group_by": "none"}
    assert DPLoRA.main(private_flags(max_train_steps=2, output_name="anna", **alone)) == 0
    flags = ["--cache_dir", str(tmp_path / "cache"), "--target_fpr", "0.4", "--stamp"]
    assert audit.main([str(tmp_path / "out"), *flags]) == 0
    findings = json.loads((tmp_path / "out/audit/findings.json").read_text())
    assert findings["method"] == "DPLoRA" and findings["settings"]["dp_unit"] == "picture"
    with safe_open(tmp_path / "out" / "anna.safetensors", "pt") as file:
        assert file.metadata()["ss_privacy_dp_delta"] == "0.001"


def run_in_process(rank: int, arguments: list[str], port: int) -> None:
    """One of two processes that train one LoRA."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()}, ACCELERATE_USE_CPU="true")
    torch.set_num_threads(1)
    assert DPLoRA.main(arguments) == 0
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_the_lora_of_one(private_flags, tmp_path: Path) -> None:
    """Noise of its own in each process, or noise that was averaged, would give another LoRA."""
    assert DPLoRA.main(private_flags(output_dir=tmp_path / "one", optimizer_type="SGD", max_train_steps=4)) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = private_flags(output_dir=tmp_path / "two", optimizer_type="SGD", max_train_steps=4)
    processes.spawn(run_in_process, (arguments, port), nprocs=2)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        assert torch.allclose(two[name], value, atol=1e-6), name
    logs = [records(tmp_path / name) for name in ("one", "two")]
    assert [record["units"] for record in logs[0]] == [record["units"] for record in logs[1]]


def test_the_door_is_one_page_and_has_the_shape_of_the_others() -> None:
    """Beside what a step is, and the attacker's absence, its statements are those of PLoRA.py."""
    root = Path(__file__).parent.parent.parent

    def statements(door: str) -> list[str]:
        text = (root / f"{door}.py").read_text()
        assert text.count("\n") <= 70
        (main,) = [part for part in ast.parse(text).body if isinstance(part, ast.FunctionDef)]
        (outputs,) = [part for part in main.body if isinstance(part, ast.With)]
        outputs.body = outputs.body[1:]
        return [ast.dump(part) for part in main.body[1:]]

    one, other = statements("PLoRA"), statements("DPLoRA")
    assert len(one) == len(other) and sum(left != right for left, right in zip(one, other, strict=True)) == 1
