"""Options: every fault at once, with its place; flags beat files; shipped configs load."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import toml

from library.errors import MOST_OF_A_KIND, Faults, InputError
from library.options.declarations import Config, fields_of
from library.options.kohya import REFUSED, REFUSED_VALUES, RENAMED, WITHOUT_EFFECT, ZERO_IS_UNSET
from library.options.resolve import help_text, read_config
from library.options.write import explained_toml, resolved_toml
from tests.helpers.kohya_flags import FLAGS

FOLDER = Path(__file__).parent.parent.parent / "configs"
CONFIGS = [
    (file, "SPLoRA" if "splora" in file.name else "DPLoRA" if "dplora" in file.name else "PLoRA")
    for file in sorted(FOLDER.glob("*lora*.toml"))
]
CONFIGS += [(FOLDER / f"{name}.toml", door) for name in ("pokemon", "celeba", "afhq") for door in ("PLoRA", "SPLoRA")]


def message(door: str, arguments: list[str]) -> str:
    """What the person reads."""
    with pytest.raises(InputError) as caught:
        read_config(door, arguments)
    return str(caught.value)


def config_file(folder: Path, text: str) -> str:
    """A TOML file of this text."""
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return str(folder / "run.toml")


def test_three_faults_in_one_file_are_all_reported(tmp_path: Path, flags) -> None:
    file = config_file(tmp_path, "[privacy]\nparam_aplha = 1\n[network]\nnetwork_dim = 0\n[data]\nflat_data_dir = 3\n")
    text = message("SPLoRA", ["--config_file", file, *flags(network_dim=None)])
    assert "[privacy]: unknown option 'param_aplha'; did you mean 'param_alpha'?" in text
    assert "network_dim must be at least 1, got 0" in text and "[network]" in text
    assert "flat_data_dir must be true or false, got 3" in text


@pytest.mark.parametrize(
    ("name", "most"), [("resolution", 8192), ("max_bucket_reso", 8192), ("max_train_steps", 2147483647)]
)
@pytest.mark.parametrize("value", ["1e308", "10" + "0" * 17, '"' + "9" * 30 + '"'])
def test_a_number_beyond_use_is_refused_with_its_bound(tmp_path: Path, flags, name: str, most: int, value: str) -> None:
    text = message("SPLoRA", flags(config_file=config_file(tmp_path, f"{name} = {value}\n"), **{name: None}))
    assert f"{name} must be at most {most}" in text


def test_an_unknown_flag_is_refused_with_a_hint(flags) -> None:
    assert "unknown option 'gain_limt'; did you mean 'gain_limit'?" in message("SPLoRA", [*flags(), "--gain_limt", "1"])


def test_an_option_of_the_other_door_is_refused_with_the_reason(flags) -> None:
    assert "'param_beta' has no meaning for PLoRA; it belongs to SPLoRA" in message("PLoRA", flags(param_beta=1))


def test_alpha_and_beta_both_zero_are_refused(flags) -> None:
    assert "both 0" in message("SPLoRA", flags(param_alpha=0, param_beta=0))


def test_a_gain_without_an_attacker_is_refused(flags) -> None:
    assert "k_steps 0" in message("PLoRA", flags(k_steps=0))


def test_dashes_switches_and_their_negation_are_read(flags) -> None:
    config = read_config(
        "SPLoRA", [*flags(), "--attack-lr=0.5", "--enable-bucket", "--separate_noise", "--no-separate_noise"]
    )
    assert (config.attack_lr, config.enable_bucket, config.separate_noise) == (0.5, True, False)


def test_a_flag_for_steps_beats_epochs_of_the_file(tmp_path: Path, flags) -> None:
    file = config_file(tmp_path, "max_train_epochs = 9\n")
    assert read_config("SPLoRA", ["--config_file", file, *flags(max_train_steps=5)]).max_train_epochs is None
    assert read_config("SPLoRA", ["--config_file", file, *flags(max_train_steps=None)]).max_train_epochs == 9


def test_the_same_key_in_two_sections_is_refused(tmp_path: Path, flags) -> None:
    file = config_file(tmp_path, "[a]\nclip_skip = 1\n[b]\nclip_skip = 2\n")
    assert "is given twice" in message("SPLoRA", ["--config_file", file, *flags()])


def test_kohya_options_are_taken_without_effect_or_refused_with_a_reason(flags) -> None:
    heard: list[str] = []
    read_config("SPLoRA", [*flags(), "--xformers", "--max_data_loader_n_workers", "8"], heard.append)
    assert len(heard) == 2 and "scaled-dot-product" in heard[0]
    assert "a secret must not reach config.toml" in message("SPLoRA", flags(wandb_api_key="x"))
    assert not (set(REFUSED) | set(WITHOUT_EFFECT)) & set(Config.__dataclass_fields__)
    assert all(name in Config.__dataclass_fields__ for name in RENAMED.values())


def test_a_byte_order_mark_and_crlf_do_not_disturb(tmp_path: Path, flags) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xef\xbb\xbfclip_skip = 2\r\n")
    assert read_config("SPLoRA", ["--config_file", str(file), *flags()]).clip_skip == 2


def test_the_resolved_options_read_back_as_the_same_run(tmp_path: Path, flags) -> None:
    config = read_config("SPLoRA", flags(optimizer_args="betas=0.9,0.99", gain_limit=0.69))
    file = config_file(tmp_path, resolved_toml("SPLoRA", config))
    assert read_config("SPLoRA", ["--config_file", file]) == config


def test_a_seed_that_asks_for_chance_is_taken_with_a_word_since_the_secret_is_chance(flags) -> None:
    told: list[str] = []
    assert read_config("SPLoRA", flags(seed=-1), told.append).seed == 0
    assert "seed = '-1' changes nothing here: random draws depend on the split's secret" in "".join(told)


@pytest.mark.parametrize(("file", "door"), CONFIGS, ids=lambda value: getattr(value, "name", value))
def test_every_shipped_config_loads_for_its_door(file: Path, door: str) -> None:
    """Only what this machine lacks (weights, pictures, a GPU) may be missing; the first lines name the command."""
    head = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"bash {door}.sh" in head
    try:
        read_config(door, ["--config_file", str(file)], lambda text: None)
    except InputError as error:
        assert all("does not exist" in line or "needs a CUDA GPU" in line for line in str(error).splitlines()), error


SD15 = {  # spec/kohya.md section 10
    "network_dim": 16, "network_alpha": 16, "unet_lr": 1e-4, "text_encoder_lr": 5e-5, "lr_scheduler": "cosine",
    "lr_warmup_steps": 0.05, "optimizer_args": ["weight_decay=0.01"], "mixed_precision": "bf16", "train_batch_size": 4,
    "min_snr_gamma": 5, "enable_bucket": True, "save_precision": "fp16",
}  # fmt: skip
PAPER = {  # arXiv 2402.11989 table 5
    "network_dim": 64, "network_alpha": 32, "unet_lr": 1e-4, "text_encoder_lr": 1e-5, "lr_scheduler": "constant",
    "train_batch_size": 1, "max_train_epochs": 400, "attack_lr": 1e-5, "resolution": "512", "k_steps": 1,
}  # fmt: skip
RELEASED = {  # the launch scripts
    **PAPER, "param_alpha": 1.0, "separate_noise": True, "update_order": "lora_first", "proxy_mode": "train",
    "clip_skip": 2, "max_token_length": 225, "optimizer_type": "AdamW8bit", "mixed_precision": "fp16", "seed": 1337,
    "shuffle_caption": True, "keep_tokens": 0, "cache_latents_mode": "sample", "enable_bucket": True,
    "attack_batch_size": 1, "attack_weight_decay": 1e-4, "attack_dropout": 0.5, "save_every_n_epochs": 50,
    "max_grad_norm": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("names", "values"),
    [
        (("lora", "plora", "splora"), SD15),
        (("pokemon", "celeba", "afhq"), {**PAPER, "param_alpha": 0.05}),
        (("released_plora", "released_splora"), RELEASED),
    ],
    ids=["SD 1.5", "paper", "release"],
)
def test_shipped_configs_carry_the_values_that_they_claim(names: tuple[str, ...], values: dict) -> None:
    for name in names:
        options: dict = {}
        for section in toml.load(FOLDER / f"{name}.toml").values():
            options |= section
        assert {key: options.get(key) for key in values} == values, name
        assert "max_train_epochs" in options and "split_secret_file" not in options, name
        assert "gain_limit" not in options, "the published objective"


def test_the_two_demo_configs_agree_in_all_that_the_doors_share() -> None:
    splora, plora = (
        toml.load(Path(__file__).parent.parent.parent / f"configs/{name}_demo.toml") for name in ("splora", "plora")
    )
    for content in (splora, plora):
        content["saving"].pop("output_name")
        content["privacy"].pop("param_beta", None)
    assert splora == plora


def test_every_option_has_help_and_stands_in_the_help_text() -> None:
    text = help_text("SPLoRA")
    for name, field in fields_of("SPLoRA").items():
        assert field.metadata["help"] and re.search(rf"^  --{name}( VALUE)?$", text, re.MULTILINE)


@pytest.mark.parametrize("door", ["SPLoRA", "audit"])
def test_help_comes_in_groups_that_fit_the_terminal_and_names_no_empty_default(door: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = help_text(door)
    assert max(map(len, text.splitlines())) <= 80 and "(default )" not in text and "default None" not in text
    headings = [line for line in text.splitlines() if line.isupper()]
    assert len(headings) == len({field.metadata["section"] for field in fields_of(door).values()})
    assert headings[0] == {"SPLoRA": "THE BASE MODEL", "audit": "THE AUDIT"}[door]
    assert "--resolution VALUE" in text and "default 512)" in text


def test_faults_name_the_line_of_the_key(tmp_path: Path, flags) -> None:
    text = '"clip_skip" = 99\n\n[saving]\ntraining_comment = """\nseed = 3\n"""\nseed = "x"  # a comment\n'
    text += '[network]\nnetwork_args = [\n  "a=1",\n]\nnetwork_dim = 0\n'
    told = message("SPLoRA", ["--config_file", config_file(tmp_path, text), *flags(seed=None, network_dim=None)])
    assert "clip_skip must be at most 12, got 99" in told and "run.toml line 1)" in told
    assert "seed must be a whole number, got 'x'" in told and "run.toml line 7, [saving])" in told
    assert "network_dim must be at least 1, got 0" in told and "run.toml line 12, [network])" in told


def test_steps_and_epochs_of_one_source_and_of_two(tmp_path: Path, flags) -> None:
    """Within one source epochs win, as in kohya; a flag beats the file whichever of the two it is."""
    file = ["--config_file", config_file(tmp_path, "max_train_steps = 100\nmax_train_epochs = 9\n")]
    read = {
        "file": read_config("SPLoRA", [*file, *flags(max_train_steps=None)]),
        "flags": read_config("SPLoRA", flags(max_train_steps=5, max_train_epochs=2)),
        "steps as a flag": read_config("SPLoRA", [*file, *flags(max_train_steps=5)]),
        "epochs as a flag": read_config("SPLoRA", [*file, *flags(max_train_steps=None, max_train_epochs=3)]),
    }
    assert [config.max_train_epochs for config in read.values()] == [9, 2, None, 3]
    assert read["steps as a flag"].max_train_steps == 5


def test_a_switch_of_the_file_is_undone_and_the_ending_of_the_file_may_be_left_out(tmp_path: Path, flags) -> None:
    file = config_file(tmp_path, "enable_bucket = true\nflip_aug = true\n").removesuffix(".toml")
    config = read_config("SPLoRA", ["--config-file", file, "--no-flip-aug", *flags()])
    assert (config.enable_bucket, config.flip_aug) == (True, False)
    assert "config_file '" in message("SPLoRA", ["--config_file", str(tmp_path / "nothing"), *flags()])


def test_no_flag_may_be_abbreviated(flags) -> None:
    assert "unknown option 'train_batch'; did you mean 'train_batch_size'?" in message(
        "SPLoRA", flags(train_batch=4, train_batch_size=None)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('train_data_dir = "C:\\pics\\me"', "in a Windows path write / or double every backslash"),
        ("flip_aug = True", "not valid TOML"),
        ("seed = 1\nseed = 2", "not valid TOML"),
        ("vae =", "not valid TOML"),
    ],
)
def test_what_toml_cannot_read_is_said_with_the_file(tmp_path: Path, flags, text: str, expected: str) -> None:
    told = message("SPLoRA", ["--config_file", config_file(tmp_path, text), *flags()])
    assert "run.toml is not valid TOML" in told and expected in told


def test_a_windows_path_that_toml_has_spoiled_is_noticed(tmp_path: Path, flags) -> None:
    """In double quotes, backslash n and t are a line break and a tab."""
    file = config_file(tmp_path, "[data]\nvae = \"C:\\new\\table\"\ncache_dir = 'D:\\new\\table'\n")
    (told,) = message("SPLoRA", ["--config_file", file, *flags()]).splitlines()
    assert (
        "run.toml line 2, [data]: vae = 'C:\\new\\table' is not a path: TOML reads its "
        "backslash as a control character; in a Windows path write /" in told
    )


def test_a_dump_of_kohyas_own_defaults_asks_for_nothing(tmp_path: Path, flags) -> None:
    """What --output_config of kohya writes: every flag that is not unset, with its default."""
    dump = {name: value for name, value in FLAGS.items() if value is not None}
    file = config_file(tmp_path, toml.dumps(dump))
    heard: list[str] = []
    config = read_config("SPLoRA", ["--config_file", file, *flags()], heard.append)
    given = {name.removeprefix("--") for name in flags()}
    for name, value in dump.items():
        if name in Config.__dataclass_fields__ and name not in given:
            assert getattr(config, name) == value or (name, value) == ("optimizer_type", "")
    assert all("nothing here" in text for text in heard) and any("zero_stage" in text for text in heard)


def test_float_lists_paths_of_windows_and_odd_texts_survive_the_round_trip(tmp_path: Path, flags) -> None:
    """``toml.dumps`` spoils a backslash in front of an x, and a list like [0.9, 1] cannot be read back."""
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).touch()
    config = dataclasses.replace(
        read_config("SPLoRA", flags()),
        base_weights=[str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")],
        base_weights_multiplier=["0.9", "1"],
        cache_dir="D:\\pics\\xmas",
        caption_prefix='she said "hi\\x41" # no comment, ünïcode\t',
        optimizer_args=["betas=0.9,0.99", "weight_decay=1e-2"],
        min_snr_gamma=5.0,
        learning_rate=1e-7,
    )
    file = config_file(tmp_path, resolved_toml("SPLoRA", config))
    again = read_config("SPLoRA", ["--config_file", file])
    assert again == dataclasses.replace(config, cache_dir="D:/pics/xmas")


def test_dry_run_prints_every_value_with_its_origin(tmp_path: Path, flags) -> None:
    file = config_file(tmp_path, "[network]\nnetwork_alpha = 2\nuse_lion_optimizer = true\n")
    arguments = ["--config_file", file, *flags(seed=None)]
    config = read_config("SPLoRA", arguments, lambda text: None)
    text = explained_toml("SPLoRA", config, arguments)
    assert f"network_alpha = 2.0  # {file} line 2, [network]\n" in text
    assert f'optimizer_type = "Lion"  # {file} line 3, [network], as use_lion_optimizer\n' in text
    assert "network_dim = 2  # command line\n" in text and "clip_skip = 1  # default\n" in text
    assert "seed = 0  # default\n" in text
    assert read_config("SPLoRA", ["--config_file", config_file(tmp_path, text)]) == config, "and it is a TOML file"


def test_values_that_kohya_has_and_this_suite_has_not_are_refused_with_the_reason(flags) -> None:
    assert "a pickle runs code" in message("SPLoRA", flags(save_model_as="pt"))
    assert "no longer has this backend" in message("SPLoRA", flags(dynamo_backend="ofi"))
    for name, reasons in REFUSED_VALUES.items():
        assert not set(reasons) & set(Config.__dataclass_fields__[name].metadata["choices"] or ())


def test_a_zero_of_kohya_means_off(flags) -> None:
    for name in ZERO_IS_UNSET:
        assert getattr(read_config("SPLoRA", flags(**{name: 0})), name) == Config.__dataclass_fields__[name].default
    assert "huber_c must be above 0" in message("SPLoRA", flags(huber_c=0))


def test_a_ratio_without_beta_is_refused_where_batches_may_hold_no_member(flags, tmp_path: Path) -> None:
    """Such a batch has no attacker's loss: L would be divided by 1e-5."""
    text = message("SPLoRA", flags(param_beta=0, reg_data_dir=tmp_path))
    assert "param_beta is 0, but a batch that holds only regularisation images" in text
    assert read_config("SPLoRA", flags(param_beta=0.1, reg_data_dir=tmp_path)).param_beta == 0.1


def test_an_empty_text_leaves_an_option_unset_and_beats_the_file(tmp_path: Path, flags) -> None:
    file = config_file(tmp_path, f'sample_prompts = "{FOLDER.parent / "demo" / "prompts.txt"}"\nnetwork_args = ""\n')
    empty = [word for name in ("sample_prompts", "vae", "resume", "optimizer_args") for word in (f"--{name}", "")]
    config = read_config("SPLoRA", ["--config_file", file, *flags(), *empty])
    assert (config.sample_prompts, config.vae, config.resume) == (None, None, None)
    assert config.network_args == [] and config.optimizer_args == []


def test_an_empty_text_is_refused_where_something_must_stand(flags) -> None:
    text = message("SPLoRA", [*flags(), "--output_name", "", "--cache_dir=", "--gain_limit", ""])
    assert "output_name must not be empty, got '' (command line); leave it out to use 'last'" in text
    assert "cache_dir must not be empty" in text and "gain_limit must be a number, got ''" in text


def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder_are_named_with_their_origin(tmp_path, flags):
    file = config_file(tmp_path, f'sample_prompts = "{tmp_path}"\n')
    text = message("SPLoRA", ["--config_file", file, *flags(train_data_dir=file)])
    assert f"sample_prompts '{tmp_path}' is a folder, and not a file ({file} line 1)" in text
    assert f"train_data_dir '{file}' is not a folder (command line)" in text


def test_a_negated_switch_takes_no_value(flags) -> None:
    text = message("SPLoRA", [*flags(), "--no_cache_latents", "True"])
    assert "--no_cache_latents switches cache_latents off and takes no value, got ['True']" in text


def test_a_negated_switch_of_kohyas_that_means_nothing_here_is_passed_over(flags) -> None:
    plain = flags()
    assert read_config("SPLoRA", [*plain, "--no-xformers", "--no_full_fp16"]) == read_config("SPLoRA", plain)


def test_no_metadata_and_full_metadata_exclude_each_other(flags) -> None:
    assert 'no_metadata and metadata = "full" exclude' in message("PLoRA", flags(no_metadata=True, metadata="full"))


def test_of_rates_for_two_text_encoders_the_first_is_taken_and_a_difference_is_told(tmp_path: Path, flags) -> None:
    for written, told in (("[5e-5, 5e-5]", 0), ("[5e-5, 4e-5]", 1), ("[5e-5]", 0)):
        heard: list[str] = []
        file = config_file(tmp_path, f"text_encoder_lr = {written}\n")
        assert read_config("SPLoRA", ["--config_file", file, *flags()], heard.append).text_encoder_lr == 5e-5
        assert len(heard) == told and all("is taken as 5e-05, the first rate" in text for text in heard), heard
    words = ["--text_encoder_lr", "3e-5", "3e-5"]
    assert read_config("SPLoRA", [*flags(), *words]).text_encoder_lr == 3e-5
    assert "text_encoder_lr must be a number" in message("SPLoRA", [*flags(), "--text_encoder_lr", "x", "y"])


def test_of_faults_of_one_kind_the_first_are_shown_and_the_rest_is_counted() -> None:
    faults = Faults()
    for number in range(13):
        faults.add(f"picture {number}", kind="pictures without a mask")
    faults.add("another fault")
    with pytest.raises(InputError) as caught:
        faults.raise_if_any()
    lines = str(caught.value).splitlines()
    assert lines[:2] == ["picture 0", "picture 1"] and len(lines) == MOST_OF_A_KIND + 2
    assert lines[-2:] == ["and 3 more pictures without a mask", "another fault"]


def test_a_tilde_in_a_toml_file_is_the_home_folder_and_makes_no_folder_of_that_name(tmp_path, flags, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = config_file(tmp_path, 'output_dir = "~/run"\ncaption_prefix = "~/run"\n')
    config = read_config("SPLoRA", ["--config_file", file, *flags(output_dir=None)])
    assert (config.output_dir, config.caption_prefix) == (str(tmp_path / "home" / "run"), "~/run")


@pytest.mark.slow
def test_help_cut_short_by_a_pipe_leaves_no_traceback() -> None:
    words = f"{sys.executable} PLoRA.py --help | head -1"
    ran = subprocess.run(words, shell=True, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    assert "PLoRA.sh" in ran.stdout and ran.stderr == ""
