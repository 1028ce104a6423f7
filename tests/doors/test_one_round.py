"""All faults in one round, whatever layer finds them: each once, with its file and line."""

import json
from pathlib import Path

import pytest

import SPLoRA
from library.errors import InputError
from tests.helpers import tiny


def told(folder: Path, text: str, arguments: list[str]) -> list[str]:
    """What a door says of a config, one fault a line; nothing may be left in the output folder."""
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        SPLoRA.main(["--config_file", str(folder / "mine.toml"), *arguments])
    return str(caught.value).splitlines()


def assert_told(faults: list[str], expected: list[str]) -> None:
    """Each expected text stands in one fault of its own, and there is no other fault."""
    for words in expected:
        assert sum(words in fault for fault in faults) == 1, (words, faults)
    assert len(faults) == len(expected), faults


def test_faults_of_nine_layers_are_told_in_one_round(tmp_path: Path, flags, pictures: Path, model_folder: Path) -> None:
    """Option, network argument, prompts, optimizer, output folder, tracker, pictures, captions, base model."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "split.json").write_text('{"secret": "00"}')
    (tmp_path / "prompts.txt").write_text("a cat --w 64\na dog --s many\n")
    (tmp_path / "tracker.toml").write_text("[wandb]\ncode_dir = 1\n")
    place = pictures / "1_zebrafolder"
    (place / "quokka000.png").write_bytes(b"no picture")
    (place / "quokka001.txt").write_text("")
    base = tiny.write_model(tmp_path / "base")
    (base / "unet/diffusion_pytorch_model.safetensors").unlink()
    text = f"""[model]
pretrained_model_name_or_path = "{base}"
clip_skp = 2
[network]
network_args = ["conv_dmi=4"]
[saving]
output_dir = "{out}"
sample_prompts = "{tmp_path / "prompts.txt"}"
log_with = "wandb"
log_tracker_config = "{tmp_path / "tracker.toml"}"
[optimizer]
optimizer_type = "Adamm"
"""
    faults = told(tmp_path, text, flags(pretrained_model_name_or_path=None, output_dir=None))
    assert_told(
        faults,
        [
            "mine.toml line 3, [model]: unknown option 'clip_skp'",
            "network_args: networks.lora has no 'conv_dmi'",
            "optimizer_type 'Adamm' is neither",
            f"output_dir '{out}' already holds a run",
            "log_with wandb needs the package wandb",
            "wandb.init's 'code_dir' is not supported",
            "quokka000.png' cannot be decoded",
            "quokka001.txt' is empty",
            "prompts.txt' line 2: --s (sample_steps) takes a whole number",
            "not looked at yet, because of what stands above: the base model, the split, the network, sizes and steps, "
            "the learning rates",
        ],
    )
    for words, line in (("conv_dmi", 5), ("Adamm", 12), ("already holds", 7), ("needs the package wandb", 9)):
        (fault,) = (one for one in faults if words in one)
        assert f"mine.toml line {line}, [" in fault, "file and line"
    assert sorted(file.name for file in out.iterdir()) == ["split.json"], "the lock is gone again"

    (tmp_path / "lora.safetensors").write_bytes(b"x" * 100)
    text = text.replace("clip_skp", "aux_shar").replace("network_args", "network_dim = 2 #")
    faults = told(
        tmp_path,
        text,
        flags(pretrained_model_name_or_path=None, output_dir=None, network_weights=tmp_path / "lora.safetensors"),
    )
    assert any("unet" in fault and "mine.toml line 2, [model])" in fault for fault in faults), faults
    assert any(fault.startswith("network_weights ") for fault in faults), "its file is read without a model"


def test_what_would_be_fetched_waits_for_a_round_without_faults(tmp_path: Path, flags) -> None:
    arguments = flags(pretrained_model_name_or_path="nobody/nothing", dataset_name="nobody/none", train_data_dir=None)
    *_, last = told(tmp_path, "clip_skp = 2\n", arguments)
    assert "not looked at yet" in last
    assert "the pictures and captions ('nobody/none' is fetched for a run without faults)" in last
    assert "the base model" in last  # its clip_skip is in doubt


def test_a_config_that_cannot_be_read_is_the_only_fault(tmp_path: Path) -> None:
    (fault,) = told(tmp_path, "a = = 1\n", [])
    assert "is not valid TOML" in fault


def test_a_split_file_and_a_state_that_do_not_fit_are_told_beside_a_wrong_option(tmp_path: Path, flags) -> None:
    (tmp_path / "split.json").write_text("{}")
    (tmp_path / "x-state").mkdir()
    faults = told(tmp_path, "network_dim = 0\n", flags(network_dim=None, split_file=tmp_path / "split.json"))
    assert any("split.json' is not a split.json of this suite" in fault for fault in faults), faults
    assert any("network_dim must be at least 1, got 0" in fault and "mine.toml line 1" in fault for fault in faults)
    faults = told(tmp_path, "network_dim = 0\n", flags(network_dim=None, resume=tmp_path / "x-state"))
    assert any("is not a state folder of this suite" in fault for fault in faults), faults


def test_a_dataset_file_and_prompts_in_json_are_told_by_their_lines(tmp_path: Path, flags, pictures: Path) -> None:
    subset = {"image_dir": str(pictures / "1_zebrafolder"), "num_repeat": 2}
    dataset = {"datasets": [{"resolution": 16, "subsets": [{**subset, "num_repeat": 1}, subset]}]}
    (tmp_path / "data.json").write_text(json.dumps(dataset, indent=1))
    (tmp_path / "prompts.json").write_text('[\n "a cat",\n {"prompt": "a",\n  "sample_steps": "x"}\n]\n')
    arguments = flags(
        train_data_dir=None, dataset_config=tmp_path / "data.json", sample_prompts=tmp_path / "prompts.json"
    )
    faults = told(tmp_path, "", arguments)
    lines = (tmp_path / "data.json").read_text().splitlines()
    first, second = (number for number, line in enumerate(lines, 1) if "num_repeat" in line)
    for place, line in ((0, first), (1, second)):
        assert any(
            f"data.json' line {line}: datasets[0].subsets[{place}]: unknown 'num_repeat'" in one for one in faults
        )
    assert any("prompts.json' line 4: --s (sample_steps) takes a whole number" in one for one in faults), faults


def test_prompts_in_toml_are_told_by_their_lines(tmp_path: Path, flags) -> None:
    (tmp_path / "prompts.toml").write_text(
        '[prompt]\nprompt = "a"\nscale = "x"\n[[prompt.subset]]\n[[prompt.subset]]\nseed = -1\n'
    )
    faults = told(tmp_path, "", flags(sample_prompts=tmp_path / "prompts.toml"))
    for words in (
        "line 6: --d (seed) must be at least 0",
        "line 3: --l (scale) takes a number",
    ):
        assert sum(words in fault for fault in faults) == 1, faults
