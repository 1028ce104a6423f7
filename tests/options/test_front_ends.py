"""Configs in the manner of front-ends and notebooks: what changes nothing is told, what would change the run stops."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toml
import torch
from safetensors.torch import save_file

import SPLoRA
from library.data.picture_sources import find_parts, pick_rules
from library.data.read_pictures import read_sources
from library.errors import InputError
from library.options.declarations import Config
from library.options.front_ends import NOT_KOHYAS
from library.options.resolve import read_config
from library.options.write import resolved_toml

FLAT = """
LoRA_type = "Standard"
additional_parameters = ""
adaptive_noise_scale = 0
async_upload = false
bucket_no_upscale = true
cache_latents = true
caption_dropout_every_n_epochs = 0
clip_l = ""
color_aug = false
ddp_timeout = 0
discrete_flow_shift = 3
dynamo_backend = "no"
dynamo_mode = "default"
epoch = 2
face_crop_aug_range = ""
fp8_base = false
full_bf16 = false
gpu_ids = ""
highvram = true
huggingface_repo_id = ""
huggingface_repo_type = ""
huggingface_repo_visibility = "private"
log_tracker_config = "nowhere.toml"
log_tracker_name = "mine"
log_with = ""
logit_std = 1
lowram = true
lr_scheduler = "constant"
lr_scheduler_num_cycles = 0
lr_scheduler_power = 1
lr_scheduler_type = ""
lr_warmup_steps = 0
main_process_port = 0
max_train_epochs = 0
max_train_steps = 40
min_snr_gamma = 0
network_args = ["rank_dropout_scale=False", "use_tucker=False", "use_tucker=False", "decompose_both=False"]
network_dropout = 0
network_weights = ""
noise_offset = 0.05
multires_noise_iterations = 6
num_processes = 1
sample_every_n_epochs = 0
sample_every_n_steps = 0
sample_prompts = "absent.txt"
save_every_n_steps = 0
save_n_epoch_ratio = 0
sdxl = false
sdxl_no_half_vae = false
stop_text_encoder_training = 0
text_encoder_lr = [5e-5, 5e-5]
training_comment = "a trigger word"
tomorrows_switch = false
tomorrows_number = 0
tomorrows_text = ""
tomorrows_list = []
unet_lr = 1e-4
vae = ""
vae_batch_size = 0
wandb_run_name = "first"
weighted_captions = false
xformers = "xformers"
"""


def read(folder: Path, text: str, flags: list[str]) -> tuple[Config, list[str]]:
    """The config of a file beside the flags, and the lines that were told."""
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    heard: list[str] = []
    return read_config("SPLoRA", ["--config_file", str(folder / "mine.toml"), *flags], heard.append), heard


def refused(folder: Path, text: str, flags: list[str]) -> list[str]:
    """The faults of a file, one a line."""
    with pytest.raises(InputError) as caught:
        read(folder, text, flags)
    return str(caught.value).splitlines()


def refused_by_the_door(folder: Path, text: str, flags: list[str]) -> list[str]:
    """The faults of a file and of what it names, one a line."""
    (folder / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        SPLoRA.main(["--config_file", str(folder / "mine.toml"), *flags])
    return str(caught.value).splitlines()


def test_a_flat_file_with_every_option_named_and_off_trains_what_it_asks_for(tmp_path: Path, flags) -> None:
    config, heard = read(tmp_path, FLAT, flags(max_train_steps=None))
    assert (config.max_train_steps, config.max_train_epochs) == (40, None), "named steps decide, as in kohya"
    assert (config.noise_offset, config.multires_noise_iterations) == (0.05, 6), "kohya adds both kinds of noise"
    assert (config.text_encoder_lr, config.lr_scheduler_num_cycles, config.vae_batch_size) == (5e-5, 1, 1)
    assert config.sample_prompts is None and config.training_comment is None and config.log_tracker_config is None
    told = "\n".join(heard)
    for name in ("epoch", "lowram", "highvram", "wandb_run_name", "log_tracker_name", "log_tracker_config",
                 "training_comment", "sample_prompts", "lr_scheduler_num_cycles", "lr_scheduler_power", "xformers",
                 "tomorrows_switch", "tomorrows_number", "tomorrows_text", "tomorrows_list", "LoRA_type",
                 "discrete_flow_shift", "num_processes", "network_args"):  # fmt: skip
        assert f"'{name}'" in told, name
    assert 'metadata = "full" writes it' in told and "rank_dropout_scale, use_tucker, decompose_both" in told
    assert len(heard) <= 15, "keys with one reason share a line"


def test_a_sectioned_file_with_constants_of_its_machine_is_told_only_what_is_missing(tmp_path: Path, flags) -> None:
    text = """[model_arguments]
v2 = false
vae = "None"
[dataset_arguments]
resolution = "512,512"
train_data_dir = "/nowhere/images"
[training_arguments]
max_train_epochs = 3
lowram = true
mem_eff_attn = false
resolution = "512,512"
prior_loss_weight = 1.0
logging_dir = "/nowhere/logs"
[sample_prompt_arguments]
sample_every_n_steps = 0
[dreambooth_arguments]
lr_warmup_steps = "10%"
lr_scheduler = "cosine"
"""
    (fault,) = refused(tmp_path, text, flags(train_data_dir=None, max_train_steps=None, resolution=None))
    assert (
        "train_data_dir '/nowhere/images' does not exist" in fault and "mine.toml line 6, [dataset_arguments]" in fault
    )


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("epoch = 2", "max_train_epochs", 2),
        ("epoch = 2\nmax_train_steps = 0", "max_train_epochs", 2),
        ('lr_warmup_steps = "10%"\nlr_scheduler = "cosine"', "lr_warmup_steps", 0.1),
        ('lr_decay_steps = 0.2\nlr_scheduler = "warmup_stable_decay"', "lr_decay_steps", 0.2),
        ("resolution = 512", "resolution", "512"),
        ('resolution = "512"', "resolution", "512"),
        ('resolution = "512,512"', "resolution", "512,512"),
        ("resolution = [512, 512]", "resolution", "512,512"),
        ("resolution = 512\nresolution = 512", "resolution", "512"),
        ("max_resolution = [512, 640]", "resolution", "512,640"),
        ("face_crop_aug_range = [2.0, 4.0]\ncache_latents = false", "face_crop_aug_range", "2,4"),
        ("color_aug = true", "cache_latents", False),
        ("random_crop = true", "cache_latents", False),
        ("flip_aug = 1", "flip_aug", True),
        ("skip_image_resolution = 256", "skip_image_resolution", "256"),
        ('seed = ""', "seed", 0),
        ('network_dropout = "None"', "network_dropout", 0.0),
        ("min_snr_gamma = false", "min_snr_gamma", None),
    ],
)
def test_a_value_in_another_writers_form_is_read(tmp_path: Path, flags, text: str, name: str, value: Any) -> None:
    config, _ = read(tmp_path, text, flags(max_train_steps=None, resolution=None, seed=None))
    assert getattr(config, name) == value


def test_a_dataset_file_that_changes_pictures_at_every_use_turns_the_cache_off(tmp_path: Path, flags) -> None:
    dataset = tmp_path / "data.toml"
    tables = ("[general]\n{}[[datasets]]\n[[datasets.subsets]]\n", "[[datasets]]\n[[datasets.subsets]]\n{}")
    for key, table in zip(("color_aug", "random_crop"), tables, strict=True):
        dataset.write_text(table.format(f"{key} = true\n") + f'image_dir = "{tmp_path}"\n')
        text = f'dataset_config = "{dataset}"\n'
        config, heard = read(tmp_path, text, flags(train_data_dir=None))
        assert config.cache_latents is False
        assert f"cache_latents is off: {key} ({dataset}) changes a picture at every use" in "\n".join(heard)
        config, _ = read(tmp_path, text + "cache_latents = true\n", flags(train_data_dir=None))
        assert config.cache_latents is True
        with pytest.raises(InputError, match=f"subsets.0.: {key} changes the picture at every use, but cache_latents"):
            find_parts(*pick_rules(config))


@pytest.fixture(params=["file", "folder"])
def sdxl_base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What shows SDXL, by no name: the tensors' names of the original layout, or a second text encoder."""
    if request.param == "file":
        names = ("conditioner.embedders.1.model.ln_final.weight", "model.diffusion_model.label_emb.0.0.weight")
        save_file({name: torch.zeros(1) for name in names}, tmp_path / "plain.safetensors")
        return tmp_path / "plain.safetensors"
    for part in ("unet", "text_encoder_2"):
        (tmp_path / "folder" / part).mkdir(parents=True)
    return tmp_path / "folder"


def test_a_base_model_of_sdxl_brings_its_sizes_and_keeps_two_rates(sdxl_base: Path, tmp_path: Path, flags) -> None:
    base = {"pretrained_model_name_or_path": sdxl_base, "resolution": None}
    config, heard = read(tmp_path, "text_encoder_lr = [5e-5, 1e-5]\n", flags(**base))
    assert (config.resolution, config.max_bucket_reso, config.text_encoder_lr) == ("1024", 2048, [5e-5, 1e-5])
    assert len(heard) == 1 and "the base model is SDXL, which was trained at 1024" in heard[0]
    config, heard = read(tmp_path, "resolution = 768\nmax_bucket_reso = 1536\n", flags(**base))
    assert (config.resolution, config.max_bucket_reso, config.sdxl, heard) == ("768", 1536, True, [])
    again = tmp_path / "again.toml"
    again.write_text(resolved_toml("SPLoRA", replace(config, text_encoder_lr=[5e-5, 1e-5])))
    assert read_config("SPLoRA", ["--config_file", str(again)], heard.append).text_encoder_lr == [5e-5, 1e-5]


def test_a_config_that_denies_sdxl_with_an_sdxl_base_says_so_in_one_sentence(
    sdxl_base: Path, tmp_path: Path, flags
) -> None:
    (fault,) = refused(tmp_path, "sdxl = false\nclip_skp = 1\n", flags(pretrained_model_name_or_path=sdxl_base))
    assert "sdxl = False" in fault and "mine.toml line 1" in fault and "is an SDXL model; leave sdxl out" in fault


@pytest.mark.parametrize("key", ["sdxl = true", 'model_train_type = "sdxl-lora"', "sdxl_no_half_vae = true"])
def test_a_config_of_sdxl_with_another_base_says_so_in_one_sentence(tmp_path: Path, flags, key: str) -> None:
    (fault,) = refused(tmp_path, f"{key}\nclip_skp = 1\n", flags())
    assert "this is a config for SDXL" in fault and "is no SDXL model" in fault and key.split(" ")[0] in fault


def test_the_gui_keys_of_sdxl_stand_for_the_options_that_they_switch(tmp_path: Path, flags, sdxl_base: Path) -> None:
    keys = ("sdxl", "sdxl_no_half_vae", "sdxl_cache_text_encoder_outputs", "network_train_unet_only")
    text = "".join(f"{key} = true\n" for key in keys)
    config, heard = read(tmp_path, text, flags(pretrained_model_name_or_path=sdxl_base))
    assert config.no_half_vae and config.cache_text_encoder_outputs and config.sdxl
    assert sum("is taken as" in text for text in heard) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("color_aug = true\ncache_latents = true", "cache_latents keeps one encoding"),
        ("bucket_reso_steps = 1", "bucket_reso_steps must be at least 8, got 1"),
        ("masked_loss = true", "masked_loss needs masks"),
        ('network_module = "lycoris.kohya"\nnetwork_args = ["algo=ia3"]', "finds no layer of Stable Diffusion"),
        ("full_bf16 = true", "'full_bf16' is not taken"),
        ("fp8_base = true", "'fp8_base' is not taken"),
        ('network_module = "networks.dylora"', "it trains a rank that is drawn anew"),
        ('network_args = ["conv_dim=4", "conv_dim=8"]', "network_args: 'conv_dim' is given twice, as '4' and '8'"),
        ('network_args = ["algo=loha"]', "networks.lora has no 'algo'; it belongs to network_module"),
        ('sample_prompts = "absent.txt"\nsample_every_n_epochs = 1', "sample_prompts 'absent.txt' does not exist"),
        ('lr_warmup_steps = "110%"', 'or a share of the run such as 0.1 or "10%"'),
        (
            'lr_scheduler = "cosine_with_restarts"\nlr_scheduler_num_cycles = 0',
            "lr_scheduler_num_cycles must be above 0",
        ),
        ("tomorrows_switch = true", "unknown option 'tomorrows_switch'"),
        ("stop_text_encoder_training = 50", "'stop_text_encoder_training' is not taken"),
        ("lr_decay_steps = 10", "lr_decay_steps is not used by lr_scheduler constant"),
        ("cache_text_encoder_outputs = true", "cannot be: the text encoder is trained"),
        (
            "cache_text_encoder_outputs = true\nnetwork_train_unet_only = true\nshuffle_caption = true",
            "cannot be: shuffle_caption changes captions from use to use",
        ),
    ],
)
def test_what_would_change_the_run_is_a_fault_with_its_line(tmp_path: Path, flags, text: str, words: str) -> None:
    (fault,) = refused(tmp_path, text, flags())
    assert words in fault and "mine.toml line " in fault


def misspelt(name: str) -> list[str]:
    """The name with a letter left out, two exchanged, and one doubled, at each place."""
    places = range(1, len(name) - 1)
    dropped = [name[:place] + name[place + 1 :] for place in places]
    swapped = [name[:place] + name[place + 1] + name[place] + name[place + 2 :] for place in places]
    return [other for other in (*dropped, *swapped, name + name[-1]) if other not in Config.__dataclass_fields__]


def test_a_misspelt_option_of_defence_or_split_stops_the_run_even_where_it_is_off(tmp_path: Path, flags) -> None:
    names = [name for name, field in Config.__dataclass_fields__.items() if field.metadata["section"] in NOT_KOHYAS[:2]]
    wrong = list(dict.fromkeys(other for name in names for other in misspelt(name)))
    faults = refused(tmp_path, toml.dumps({other: False for other in wrong}), flags())
    assert len(wrong) > 300 and len(faults) == len(wrong)
    for value in ('""', "0", "[]"):
        assert "did you mean 'param_alpha'?" in refused(tmp_path, f"param_aplha = {value}\n", flags())[0]
    assert "did you mean 'cache_latents'?" in refused(tmp_path, "cache_latent = false\n", flags())[0], "it is on"


def test_equal_keys_are_told_once_and_unequal_ones_are_a_fault(tmp_path: Path, flags) -> None:
    _, heard = read(tmp_path, "[a]\nclip_skip = 2\nclip_skip = 2\n[b]\nclip_skip = 2\n", flags())
    assert [text.rpartition("mine.toml ")[2].partition(",")[0] for text in heard] == [
        "line 3: 'clip_skip' is given twice with one value", "line 2"]  # fmt: skip
    assert "line 5, [b]: 'clip_skip' is given twice with one value, also in" in heard[1]
    assert "not valid TOML" in refused(tmp_path, 'seed = "a#1"\nseed = "a#2"\n', flags(seed=None))[0]


@pytest.mark.parametrize(
    ("name", "one", "other", "read_as"),
    [("resolution", "512", '"512,512"', "512,512"), ("resolution", "[512, 640]", '"512, 640"', "512, 640"),
     ("text_encoder_lr", "5e-5", "[5e-5, 5e-5]", 5e-5), ("clip_skip", "2", '"2"', 2)],
)  # fmt: skip
def test_a_key_given_twice_with_one_value_in_two_forms_is_one_key(
    tmp_path: Path, flags, name: str, one: str, other: str, read_as: Any
) -> None:
    config, heard = read(tmp_path, f"[a]\n{name} = {one}\n[b]\n{name} = {other}\n", flags(**{name: None}))
    assert getattr(config, name) == read_as
    assert f"line 4, [b]: '{name}' is given twice with one value" in heard[0]


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [("resolution", "512", '"512,640"'), ("output_name", '"01"', '"1"'), ("optimizer_args", '["1"]', '["1", "1"]')],
)  # fmt: skip
def test_a_key_given_twice_with_two_values_is_a_fault(tmp_path: Path, flags, name: str, one: str, other: str) -> None:
    faults = refused(tmp_path, f"[a]\n{name} = {one}\n[b]\n{name} = {other}\n", flags(**{name: None}))
    assert f"line 4, [b]: option '{name}' is given twice" in faults[0]


@pytest.mark.parametrize(
    ("file", "text"), [("p.txt", ""), ("p.txt", "\n  \n# a comment\n"), ("p.json", "[]\n"), ("p.toml", "# none\n")]
)
def test_a_file_without_a_prompt_is_passed_over_where_no_preview_is_asked_for(
    tmp_path: Path, flags, file: str, text: str
) -> None:
    (tmp_path / file).write_text(text)
    named = f'sample_prompts = "{tmp_path / file}"\n'
    config, (told,) = read(tmp_path, named, flags())
    assert config.sample_prompts is None
    assert f"'{tmp_path / file}' holds no prompt, and no sample_every_* asks for a preview" in told
    assert read(tmp_path, f"{named}sample_every_n_epochs = 1\n", flags())[0].sample_prompts is not None
    (tmp_path / file).write_text("a walrus")
    assert read(tmp_path, named, flags())[0].sample_prompts is not None


def test_faults_of_option_network_argument_dataset_file_and_prompts_are_told_in_one_round(tmp_path, flags) -> None:
    dataset, prompts = tmp_path / "data.toml", tmp_path / "p.txt"
    dataset.write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "nowhere"\nnum_repeat = 2\n')
    prompts.write_text("a cat --w 64\na dog --s many\n")
    text = f'clip_skp = 2\nnetwork_args = ["conv_dmi=4"]\ndataset_config = "{dataset}"\nsample_prompts = "{prompts}"\n'
    faults = refused_by_the_door(tmp_path, text + 'optimizer_type = "Adamm"\n', flags(train_data_dir=None))
    for number, words in enumerate((
        "mine.toml line 1: unknown option 'clip_skp'",
        "network_args: networks.lora has no 'conv_dmi'; did you mean 'conv_dim'?",
        "optimizer_type 'Adamm' is neither",
        "data.toml' line 3: datasets[0].subsets[0]: image_dir 'nowhere' is not a folder",
        "data.toml' line 4: datasets[0].subsets[0]: unknown 'num_repeat'",
        "p.txt' line 2: --s (sample_steps) takes a whole number",
        "not looked at yet, because of what stands above: the base model, the split",
    )):  # fmt: skip
        assert words in faults[number], faults
    assert "mine.toml line 2)" in faults[1] and len(faults) == 7


def test_a_training_config_given_as_dataset_config_is_told_which_is_which(tmp_path: Path, flags) -> None:
    (tmp_path / "train.toml").write_text("[a]\nnetwork_dim = 4\nmax_train_steps = 10\n")
    faults = refused_by_the_door(
        tmp_path, f'dataset_config = "{tmp_path / "train.toml"}"\nx = 1\n', flags(train_data_dir=None)
    )
    assert "is a training config (network_dim, max_train_steps): give it as config_file" in faults[1]


def test_subset_folders_without_pictures_are_passed_over_unless_none_is_left(tmp_path: Path, pictures, caplog) -> None:
    (tmp_path / "deep/inner").mkdir(parents=True)
    next(pictures.rglob("*.png")).rename(tmp_path / "deep/inner/a.png")
    full = next(pictures.rglob("*.png")).parent
    file = tmp_path / "data.toml"
    subset = '[[datasets.subsets]]\nimage_dir = "{}"\nclass_tokens = "x"\n'
    file.write_text("[[datasets]]\n" + subset.format(tmp_path / "deep") + subset.format(full))
    rules = pick_rules({**vars(Config()), "dataset_config": str(file)})
    assert [part.folder for part in find_parts(*rules)] == [full]
    assert (
        "datasets[0].subsets[0]" in caplog.text and "one level deeper, in 'inner', so it is passed over" in caplog.text
    )
    file.write_text("[[datasets]]\n" + subset.format(tmp_path / "deep"))
    with pytest.raises(InputError, match="no pictures directly in it; they are one level deeper, in 'inner'"):
        read_sources(*rules)


def test_prompts_of_another_script_are_rounded_down_and_their_other_flags_told(tmp_path: Path, caplog) -> None:
    from library.diffusion.prompt_files import read_prompts

    (tmp_path / "p.txt").write_text("a --w 600 --h 800 --am 0.8 --fs 3 --ctr x\nb\n")
    caplog.set_level("INFO")
    first, second = read_prompts(str(tmp_path / "p.txt"), (520, 512), 0, 64, ["ddim"])
    assert (first.width, first.height, second.width, second.height) == (576, 768, 512, 512)
    for words in ("--w 600 is painted as 576", "--am changes nothing", "--fs changes nothing", "--ctr changes nothing"):
        assert f"line 1: {words}" in caplog.text
    assert "line 2: resolution 520 is painted as 512" in caplog.text, (
        "not blamed on --w, which the prompt does not have"
    )


def test_the_plan_says_how_often_a_trainer_without_a_split_would_use_each_picture(flags, capsys) -> None:
    """3 steps of 2 pictures are 6 uses: of 8 members here, of all 16 pictures there."""
    assert SPLoRA.main([*flags(), "--dry_run"]) == 0
    told = capsys.readouterr().out
    assert "each member is used 0.75 times in total" in told
    assert "kohya would use each of 16 pictures 0.375 times in 3 steps; here 8 of them are members" in told
