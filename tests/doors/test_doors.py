"""The doors as a user runs them: what they write, what they leave out, how they stop and go on."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import PLoRA
import SPLoRA
from library.errors import InputError
from tests.helpers import tiny
from tests.helpers.keys import secret_of
from tests.helpers.runs import assert_same_tensors, records

ROOT = Path(__file__).parent.parent.parent
DOORS = [PLoRA, SPLoRA]


def test_the_two_doors_differ_in_the_objective_and_nothing_else() -> None:
    """Their bodies as trees, with the one call replaced; and each is one page."""
    trees = []
    for door, call in (("PLoRA", "sum_objective"), ("SPLoRA", "ratio_objective")):
        text = (ROOT / f"{door}.py").read_text()
        assert text.count("\n") <= 70
        (tree,) = [part for part in ast.parse(text).body if isinstance(part, ast.FunctionDef)]
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and call in ast.dump(node.func)]
        assert len(calls) == 1
        calls[0].func, calls[0].args = ast.Name("objective"), []
        trees.append(ast.dump(tree))
    assert trees[0] == trees[1]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.DOOR)
def test_a_run_leaves_what_the_design_names(door, flags, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("walrus001 --s 3\n")
    assert (
        door.main(
            flags(
                sample_prompts=tmp_path / "prompts.txt",
                sample_at_first=True,
                save_every_n_epochs=1,
                max_train_steps=None,
                max_train_epochs=2,
                save_state=True,
                aux_loss_every_n_epochs=1,
            )
        )
        == 0
    )
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "last.safetensors",
        "last-000001.safetensors",
        "config.toml",
        "split.json",
        "log.jsonl",
        "proxy.safetensors",
        "training.png",
        "sample",
        "state",
        "tensorboard",
    }
    assert {path.name for path in (out / "sample").iterdir()} == {
        "last_base_00.png",
        "last_final_00.png",
        "last_sheet.png",
    }
    assert {path.name for path in (out / "state").iterdir()} == {"last-000001-state", "last-state"}
    steps = [record for record in records(out) if "loss" in record]
    epochs = [record for record in records(out) if "proxy_balanced_accuracy" in record]
    assert [record["step"] for record in steps] == list(range(1, 9)) and [record["epoch"] for record in epochs] == [
        0,
        1,
        2,
    ]
    assert {"adaptation_loss", "attack_loss", "proxy_loss_members", "gradient_norm"} <= set(steps[0])
    assert epochs[0]["images_members_aux"] == 4


def test_no_caption_and_no_file_name_reaches_anything_but_the_split_and_caches(flags, tmp_path: Path) -> None:
    """Caption words, file names and, in the LoRA, folder names: searched in every byte that a run writes."""
    (tmp_path / "prompts.txt").write_text("walrus001 --s 2\n")
    assert (
        SPLoRA.main(
            flags(
                sample_prompts=tmp_path / "prompts.txt",
                sample_at_first=True,
                save_every_n_steps=2,
                save_state=True,
                cache_latents_to_disk=True,
                cache_dir=tmp_path / "out" / ".cache",
                shuffle_caption=True,
            )
        )
        == 0
    )
    searched = 0
    for file in (tmp_path / "out").rglob("*"):
        if file.is_dir() or file.name == "split.json":
            continue
        content = file.read_bytes().lower()
        assert not re.search(rb"walrus|ocelot|quokka", content), file
        if file.suffix == ".safetensors":
            assert not re.search(rb"zebrafolder|pictures|" + str(tmp_path).encode().lower(), content), file
        searched += 1
    assert searched > 15
    for name in ("split.json", "config.toml"):
        assert os.stat(tmp_path / "out" / name).st_mode & 0o777 == 0o600
    states = list((tmp_path / "out" / "state").iterdir())  # their state.json names the folders too
    assert states and all(os.stat(state).st_mode & 0o777 == 0o700 for state in states)


def plain_loop(arguments: list[str]) -> dict[str, torch.Tensor]:
    """A LoRA trained without any proxy: the pieces of the library in the order of a textbook."""
    from library.assembly.pictures import EncodingRules, encode_pictures
    from library.data import batches, read_pictures, split, training_set
    from library.diffusion import denoising, model_files, noise
    from library.options.resolve import read_config
    from library.rules import pick
    from library.seeding import seed_published, stream
    from networks.lora import create_network

    config = read_config("PLoRA", arguments)
    examples = read_pictures.read_sources(*read_pictures.pick_rules(config)).candidates
    sides = split.draw_split(examples, [], nonmember_share=0.5, aux_share=0.5, inclusion="fixed", secret=secret_of(7))
    model = model_files.load_model(config.pretrained_model_name_or_path)
    key = sides.key(config.seed)
    seed_published(key, "network")
    network = create_network(1.0, config.network_dim, config.network_alpha, model.vae, model.text_encoder, model.unet)
    network.apply_to(model.text_encoder, model.unet, True, True)
    rows = training_set.build_training_set(sides, [], 1.0, model.side_multiple())
    pictures = encode_pictures(rows, model, pick(config, EncodingRules), steps_per_epoch=4, total_steps=6,
                               key=key)  # fmt: skip
    members = batches.MemberBatches(pictures, accumulation=1, key=key)
    denoiser = denoising.Denoiser(
        model.unet, model.text_encoder, model.scheduler, latent_scale=model.vae.config.scaling_factor, clip_skip=1
    )
    optimizer = torch.optim.AdamW(network.prepare_optimizer_params(None, None, config.learning_rate), fused=True)
    for step in range(config.max_train_steps):
        (batch,) = members.of_step(step)
        generator = stream(key, "noise", "members", step, 0, 0)
        scaled = denoiser.scaled(batch.latents(generator))
        draw = noise.draw_noise(pick(config, noise.NoiseRules), scaled, 1000, generator)
        difference = denoiser.difference(scaled, denoiser.context(batch.tokens, None), draw)
        difference.square().mean(dim=(1, 2, 3)).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return network.state_dict()


@pytest.mark.parametrize("k_steps", [0, 1])
def test_alpha_zero_is_plain_lora_bit_for_bit(flags, tmp_path: Path, k_steps: int) -> None:
    arguments = flags(param_alpha=0, k_steps=k_steps, max_train_steps=6)
    assert PLoRA.main(arguments) == 0
    expected, written = plain_loop(arguments), load_file(tmp_path / "out" / "last.safetensors")
    assert all(torch.equal(expected[name], written[name]) for name in expected)
    assert any(written[name].abs().sum() > 0 for name in written if "lora_up" in name)


@pytest.mark.slow
def test_the_gain_reaches_the_lora_in_both_objectives(flags, tmp_path: Path) -> None:
    """R18: another param_alpha gives another LoRA."""
    for door in DOORS:
        outs = []
        for alpha in (0.05, 5.0):
            outs.append(tmp_path / f"{door.DOOR}{alpha}")
            assert door.main(flags(param_alpha=alpha, output_dir=outs[-1])) == 0
        left, right = (load_file(out / "last.safetensors") for out in outs)
        assert any(not torch.equal(left[name], right[name]) for name in left)


RESUMED = {
    "end of an epoch": {"save_every_n_steps": 4},
    "inside an epoch, with accumulation, shuffled captions and a warm-up": {
        "save_every_n_steps": 5,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 3,
        "shuffle_caption": True,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 3,
    },
    "released order, noise and proxy mode": {
        "save_every_n_steps": 5,
        "update_order": "lora_first",
        "separate_noise": True,
        "proxy_mode": "train",
        "network_dropout": 0.3,
        "k_steps": 2,
        "cache_latents_mode": "sample",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("changed", RESUMED.values(), ids=RESUMED.keys())
def test_ten_straight_steps_equal_five_resume_and_five_bit_for_bit(flags, tmp_path: Path, changed: dict) -> None:
    cut = changed["save_every_n_steps"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run = {**changed, "max_train_steps": 10, "save_state": True}
    assert SPLoRA.main(flags(**run, output_dir=straight)) == 0
    state = straight / "state" / f"last-step{cut:08d}-state"
    assert SPLoRA.main(flags(**run, output_dir=resumed, resume=state)) == 0
    assert_same_tensors(straight / "last.safetensors", resumed / "last.safetensors")
    assert_same_tensors(straight / "proxy.safetensors", resumed / "proxy.safetensors")
    kept = [record for record in records(straight) if record["step"] > cut]
    assert [record for record in records(resumed) if record["step"] > cut] == kept


@pytest.mark.slow
def test_resuming_in_the_same_folder_leaves_one_straight_log(flags, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert SPLoRA.main(flags(max_train_steps=6, save_every_n_steps=3, save_state=True)) == 0
    before = records(out)
    assert (
        SPLoRA.main(
            flags(
                max_train_steps=6,
                save_every_n_steps=3,
                save_state=True,
                output_dir=None,
                resume=out / "state" / "last-step00000003-state",
            )
        )
        == 0
    )
    assert records(out) == before


def test_resuming_with_other_options_or_pictures_is_refused(flags, tmp_path: Path, pictures: Path) -> None:
    assert SPLoRA.main(flags(save_state=True)) == 0
    state = tmp_path / "out" / "state" / "last-state"
    with pytest.raises(InputError) as caught:
        SPLoRA.main(flags(resume=state, param_alpha=0.5, network_dim=4))
    assert "param_alpha was 0.05 and is 0.5 now" in str(caught.value) and "network_dim was 2 and is 4 now" in str(
        caught.value
    )
    tiny.write_picture(pictures / "1_zebrafolder" / "quokka000.png", 77)
    with pytest.raises(InputError, match="1 of its 16 images are missing or changed: 'quokka000.png'"):
        SPLoRA.main(flags(resume=state))


@pytest.mark.parametrize("what", ["secret", "side"])
def test_resuming_with_another_secret_or_other_sides_is_refused(flags, tmp_path: Path, what: str) -> None:
    assert SPLoRA.main(flags(save_state=True)) == 0
    content = json.loads((tmp_path / "out" / "split.json").read_text())
    if what == "secret":
        content["secret"] = secret_of(99).hex()
    else:
        content["images"][0]["side"] = "members-test"
    (tmp_path / "out" / "split.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="their sides, the split's secret or the dataset_config have changed"):
        SPLoRA.main(flags(resume=tmp_path / "out" / "state" / "last-state", split_secret_file=None))


def test_a_state_of_an_earlier_version_is_refused_with_the_reason(flags, tmp_path: Path) -> None:
    assert SPLoRA.main(flags(save_state=True)) == 0
    state = tmp_path / "out" / "state" / "last-state"
    content = json.loads((state / "state.json").read_text()) | {"format": 1}
    (state / "state.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="of an earlier version, whose random draws depended only on the seed"):
        SPLoRA.main(flags(resume=state))


def test_a_run_that_would_overwrite_another_is_refused_and_overwrite_clears_it(flags, tmp_path: Path) -> None:
    assert SPLoRA.main(flags(save_every_n_steps=1)) == 0
    with pytest.raises(InputError, match="already holds a run.*--resume STATE.*--overwrite"):
        SPLoRA.main(flags())
    assert SPLoRA.main(flags(overwrite=True)) == 0
    assert not list((tmp_path / "out").glob("last-step*"))


def test_an_output_folder_that_cannot_be_written_is_named_before_the_first_step(flags, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output_dir '.*file/out' cannot be written"):
        SPLoRA.main(flags(output_dir=tmp_path / "file" / "out"))
    assert not (tmp_path / "out").exists()


def test_faults_of_output_data_and_model_are_reported_together(flags, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError) as caught:
        SPLoRA.main(
            flags(
                output_dir=tmp_path / "file" / "out",
                train_data_dir=tmp_path / "empty",
                pretrained_model_name_or_path=tmp_path / "model",
            )
        )
    text = str(caught.value)
    assert "cannot be written" in text and "holds no pictures" in text and "not a diffusers folder" in text


def test_faults_of_data_previews_network_and_optimizer_are_reported_together(flags, tmp_path: Path) -> None:
    (tmp_path / "prompts.toml").write_text("[prompt]\nwidht = 16\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        PLoRA.main(flags(
            train_data_dir=tmp_path / "empty", sample_prompts=tmp_path / "prompts.toml",
            network_args="convdim=4", optimizer_args="weight_decai=1",
        ))  # fmt: skip
    for part in ("holds no pictures", "widht", "did you mean 'conv_dim'", "did you mean 'weight_decay'"):
        assert part in str(caught.value)


def test_losses_that_are_not_finite_are_skipped_counted_and_end_the_run(
    flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """From the fourth step on the loss is NaN: the LoRA stays as it was after three, five bad steps stop the run."""
    from library.assembly.game import Game

    honest = Game.member_losses
    monkeypatch.setattr(
        Game,
        "member_losses",
        lambda self, batch, step, part: tuple(
            value * (float("nan") if step >= 3 else 1) for value in honest(self, batch, step, part)
        ),
    )
    assert SPLoRA.main(flags(max_train_steps=20, save_every_n_steps=3)) == 1
    assert "5 steps in a row" in capsys.readouterr().out
    out = tmp_path / "out"
    assert not (out / "last.safetensors").exists() and len([r for r in records(out) if "loss" in r]) == 8
    assert_same_tensors(
        out / "last-step00000003.safetensors", out / "state" / "last-stopped-state" / "lora.safetensors"
    )


def test_one_bad_step_is_skipped_and_the_run_goes_on(flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from library.assembly.game import Game

    honest = Game.member_losses
    monkeypatch.setattr(
        Game,
        "member_losses",
        lambda self, batch, step, part: tuple(
            value * (float("inf") if step == 1 else 1) for value in honest(self, batch, step, part)
        ),
    )
    assert SPLoRA.main(flags(max_train_steps=4)) == 0
    assert (tmp_path / "out" / "last.safetensors").exists()
    assert [r["loss"] for r in records(tmp_path / "out") if r["step"] == 2 and "loss" in r][0] in ("inf", "nan")


@pytest.mark.slow
def test_mixed_bucket_shapes_train_with_a_pooled_attacker(flags, tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path / "mixed", 24, sizes=((16, 16), (32, 8), (8, 32)))
    assert (
        SPLoRA.main(
            flags(
                train_data_dir=folder,
                enable_bucket=True,
                min_bucket_reso=8,
                max_bucket_reso=32,
                bucket_reso_steps=8,
                attack_batch_size=3,
                max_train_steps=6,
            )
        )
        == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True, "mixed_precision": "bf16"},
        {"network_train_unet_only": True, "clip_skip": 2},
        {"network_train_text_encoder_only": True, "max_token_length": 225},
        {"gain_limit": 0.6931, "cache_latents_mode": "mean"},
    ],
    ids=str,
)
def test_other_ways_to_train_run_and_move_the_lora(flags, tmp_path: Path, options: dict) -> None:
    assert SPLoRA.main(flags(**options)) == 0
    written = load_file(tmp_path / "out" / "last.safetensors")
    assert any(written[name].abs().sum() > 0 for name in written if "lora_up" in name)


@pytest.mark.slow
def test_a_split_file_gives_two_methods_the_same_sides(flags, tmp_path: Path) -> None:
    assert SPLoRA.main(flags(output_dir=tmp_path / "one", inclusion="bernoulli", seed=3)) == 0
    assert PLoRA.main(flags(output_dir=tmp_path / "two", seed=99, split_file=tmp_path / "one" / "split.json")) == 0
    sides = [
        {entry["pixels"]: entry["side"] for entry in json.loads((tmp_path / name / "split.json").read_text())["images"]}
        for name in ("one", "two")
    ]
    assert sides[0] == sides[1]


@pytest.mark.slow
def test_non_members_may_come_from_a_folder_of_their_own(flags, tmp_path: Path) -> None:
    others = tiny.write_pictures(tmp_path / "others", 8, first=500)
    assert SPLoRA.main(flags(nonmember_data_dir=others)) == 0
    content = json.loads((tmp_path / "out" / "split.json").read_text())
    members = {Path(entry["path"]).name for entry in content["images"] if entry["side"].startswith("members")}
    assert len(members) == 16 and not any("quokka50" in name for name in members) and content["inclusion"] == "folders"


def test_dry_run_prints_the_plan_and_writes_nothing(flags, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert SPLoRA.main([*flags(max_train_epochs=3), "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "4 members-aux, 4 members-test" in text and "12 optimizer steps = 3 epochs" in text
    assert "memory of a step, estimated" in text and "network_dim = 2" in text
    assert "the run will draw its own" not in text  # a secret file draws these sides again
    assert SPLoRA.main([*flags(split_secret_file=None, aux_share=0.5), "--dry_run"]) == 0
    assert "the sides above are one draw; the run will draw its own" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_keep_last_removes_older_files_and_states(flags, tmp_path: Path) -> None:
    """save_last_n_steps 2 with files every 2 steps keeps what is less than 2 steps old: as in kohya, one file."""
    assert SPLoRA.main(flags(max_train_steps=9, save_every_n_steps=2, save_last_n_steps=2, save_state=True)) == 0
    files = {path.name.removesuffix(".safetensors") for path in (tmp_path / "out").glob("*-step*")}
    states = {path.name.removesuffix("-state") for path in (tmp_path / "out" / "state").iterdir()}
    assert files == {"last-step00000008"} and states == {"last-step00000008", "last"}


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_exits_130_and_the_run_can_go_on(flags, tmp_path: Path) -> None:
    arguments = flags(max_train_steps=100000)
    process = subprocess.Popen(
        [sys.executable, "SPLoRA.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "out" / "log.jsonl"
    for _ in range(600):
        if log.exists() and log.read_text().count("\n") > 5:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "\ncontinue with: bash SPLoRA.sh" in output
    (state,) = (tmp_path / "out" / "state").iterdir()
    done = json.loads((state / "state.json").read_text())["done"]
    assert load_file(tmp_path / "out" / "last.safetensors")
    assert SPLoRA.main(flags(max_train_steps=done + 2, resume=state)) == 0
    assert records(tmp_path / "out")[-1]["step"] == done + 2


@pytest.mark.slow
def test_an_input_error_ends_the_script_with_status_2_and_no_traceback(flags, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "SPLoRA.py", *flags(network_dim=0)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2 and "network_dim must be at least 1, got 0" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()
