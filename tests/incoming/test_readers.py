"""What strangers' files did before: each is read as documented, or refused with its own name and place."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch

from library.audit.queries.answer_cache import AnswerCache
from library.audit.targets.lora_runs import find_runs
from library.data.caption_metadata import PictureIndex
from library.data.split_file import read_secret, read_split_file
from library.diffusion.model_files import load_model
from library.diffusion.prompt_files import read_prompts
from library.errors import Faults, InputError
from library.options.resolve import read_config, typed_settings
from library.tensor_files import write_tensors
from library.training.run_log import read_records
from library.training.state import load_training_state
from tests.fuzz import sound


def test_a_schedule_that_is_a_number_is_refused_without_the_network(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers asked the hub for what the number might mean, and waited 24 s."""
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: asked.append(words))
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / "scheduler" / "scheduler_config.json").write_text("5")
    with pytest.raises(InputError, match="scheduler_config.json': it must be a table, got 5"):
        load_model(str(folder))
    assert asked == []


def test_a_tokenizer_that_knows_more_words_than_the_encoder_is_refused(tmp_path: Path, model_folder: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    words = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({**words, "more": 9999}))
    with pytest.raises(InputError, match=f"numbers its words up to 9999, and the text encoder knows {len(words)}"):
        load_model(str(folder))


def test_a_tokenizers_merges_of_gigabytes_are_refused_unread(tmp_path: Path, model_folder: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    os.truncate(folder / "tokenizer" / "merges.txt", 3 << 30)
    with pytest.raises(InputError, match=r"merges.txt' has more than \d+ MiB"):
        load_model(str(folder))


def moments(path: Path) -> dict:
    """The content of a state's optimizers.pt."""
    return torch.load(path / "optimizers.pt", weights_only=True)


def test_a_moment_that_is_missing_is_found_before_the_next_step(tmp_path: Path) -> None:
    path = sound.copied(sound.state(False), tmp_path / "state")
    moving = moments(path)
    del moving["optimizer"]["state"][1]["exp_avg"]
    torch.save(moving, path / "optimizers.pt")
    with pytest.raises(InputError, match="parameter 1 has 'exp_avg_sq', 'step' and not 'exp_avg', 'exp_avg_"):
        load_training_state(str(path), sound.trained(1))


def test_a_state_does_not_replace_a_method_of_the_schedule(tmp_path: Path) -> None:
    path = sound.copied(sound.state(False), tmp_path / "state")
    moving = moments(path)
    moving["schedule"]["step"] = 5
    torch.save(moving, path / "optimizers.pt")
    with pytest.raises(InputError, match="schedule replaces 'step'"):
        load_training_state(str(path), sound.trained(1))


def test_a_setting_that_an_older_version_did_not_save_is_this_runs(tmp_path: Path) -> None:
    path, target = sound.copied(sound.state(False), tmp_path / "state"), sound.trained(1)
    moving = moments(path)
    del moving["optimizer"]["param_groups"][0]["eps"]
    torch.save(moving, path / "optimizers.pt")
    load_training_state(str(path), target)
    assert target.optimizer.param_groups[0]["eps"] == 1e-8


def test_the_end_of_a_log_that_a_kill_has_left_is_left_out_and_other_damage_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_records(log) == [{"step": 1, "loss": 0.5}]
    log.write_text('{"step": 1}\n{"step": "two"}\n')
    with pytest.raises(InputError, match=r"'\[1\].step' must be a whole number from 0, got 'two'"):
        read_records(log)


def test_a_secret_that_does_not_fit_is_not_shown(tmp_path: Path) -> None:
    content = json.loads(sound.split().read_text()) | {"secret": "cafe" * 7}
    (tmp_path / "split.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="its secret is not 32 or more hexadecimal digits") as caught:
        read_split_file(tmp_path / "split.json")
    assert "cafe" not in str(caught.value)


@pytest.mark.parametrize("reader", [read_secret, read_split_file])
def test_a_pipe_does_not_make_a_reader_wait(tmp_path: Path, reader) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe, not a file"):
        reader(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe, not a file"):
        read_prompts(str(tmp_path / "pipe"), (16, 16), 1, 8, ["ddim"])


def test_answers_with_a_row_missing_are_asked_again(tmp_path: Path) -> None:
    sound.answers(tmp_path / "store")
    (shard,) = (tmp_path / "store").glob("*.safetensors")
    write_tensors(shard, {"loss": torch.ones(2, 4)}, {"pictures": "p1 p2 p3"})
    assert AnswerCache(tmp_path / "store").missing(["p1", "p2"]) == [0, 1] and not shard.exists()


def test_what_a_strangers_config_says_is_held_to_the_options_types(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("[data]\ntrain_batch_size = {}\nclip_skip = 'many'\nunheard = 1\n")
    sound.copied(sound.split(), tmp_path / "run" / "split.json")
    sound.copied(sound.lora(), tmp_path / "run" / "last.safetensors")
    with pytest.raises(InputError) as caught:
        find_runs([str(tmp_path / "run")], "last", defaults=sound.defaults(), overrides={}, split_file=None,
                  typed=typed_settings)  # fmt: skip
    assert "train_batch_size must be a whole number, got {}" in str(caught.value)
    assert "clip_skip must be a whole number, got 'many'" in str(caught.value)
    assert typed_settings({"clip_skip": "2", "unheard": 1}, "it") == {"clip_skip": 2}


def test_a_name_that_no_file_can_have_is_refused_with_its_option() -> None:
    with pytest.raises(InputError) as caught:
        read_config("PLoRA", ["--vae", "x" * 300, "--train_data_dir", "a\x1b[2Jb"], lambda notice: None)
    said = str(caught.value)
    assert "vae has a part of more than 255 bytes" in said and "train_data_dir has control characters" in said
    assert "x" * 200 not in said and "\x1b" not in said


def test_a_name_in_a_metadata_file_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    index = PictureIndex(tmp_path)
    assert index.find(f"{tmp_path}/*") == [] == index.find(f"{tmp_path}/**") == index.find(f"/{'x' * 300}/y")
    assert index.find(f"{tmp_path}/a") == [tmp_path / "a.png"]


def test_faults_of_a_file_are_gathered_and_cut() -> None:
    faults = Faults()
    faults.add("x" * 10_000)
    assert len(faults.messages[0]) < 4_000
