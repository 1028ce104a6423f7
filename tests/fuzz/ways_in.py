"""Every way in for files from outside: a sound set of files, which of them is damaged, and how the suite reads it."""

import json
from pathlib import Path

import torch

import PLoRA
from library.audit.queries.answer_cache import AnswerCache
from library.audit.queries.run_queries import read_index
from library.audit.report.comparison.comparison_table import read_findings
from library.audit.targets.candidates import find_candidates, read_pictures
from library.audit.targets.lora_runs import find_runs
from library.audit.targets.provenance import read_adapter
from library.data.latents import View, encoded_views
from library.data.split_file import read_secret, reuse_split
from library.diffusion.model_files import load_model
from library.diffusion.prompt_files import read_prompts
from library.diffusion.single_file import open_single_file
from library.diffusion.text import encode_text, read_captions
from library.diffusion.vae_files import open_vae
from library.options.comparison_plan import read_plan
from library.options.resolve import read_config, typed_settings
from library.training.run_log import learning_summary
from library.training.saved_state import read_state
from library.training.state import load_training_state
from library.training.teacher_files import read_teacher
from library.training.trackers import read_tracker_config
from tests.fuzz import sound
from tests.fuzz.way_in import WayIn
from tests.fuzz.ways_of_tools import TOOL_WAYS
from tests.helpers import data_toy, keys, tiny

CONFIG = """
[model]
pretrained_model_name_or_path = "{model}"
clip_skip = 1
[data]
train_data_dir = "{pictures}"
resolution = "16"
[network]
network_dim = 2
network_args = ["conv_dim=2", "conv_alpha=1"]
[privacy]
param_alpha = 0.05
attack_lr = 1e-3
[optimizer]
unet_lr = 8e-4
optimizer_args = ["weight_decay=0.1"]
lr_scheduler = "constant_with_warmup"
lr_warmup_steps = 0.05
[schedule]
train_batch_size = 2
max_train_epochs = 2
seed = 7
[saving]
output_dir = "{folder}/written"
output_name = "last"
"""
DATASET = """
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1
[[datasets]]
resolution = [16, 16]
batch_size = 2
enable_bucket = false
[[datasets.subsets]]
image_dir = "{images}"
num_repeats = 2
caption_prefix = "a"
caption_dropout_rate = 0.1
"""
PLAN = """
[compare]
output_dir = "out"
jobs = 1
[[runs]]
name = "plain"
door = "PLoRA"
config_file = "configs/lora.toml"
[[runs]]
name = "early"
checkpoint_of = "plain"
epoch = 3
[audit]
target_fpr = 0.1
"""
LOG = [{"step": step, "epoch": 1, "loss": 0.5, "adaptation_loss_members_aux": 0.4, "images_members_aux": 3.0,
        "adaptation_loss_non_members_aux": 0.5, "images_non_members_aux": 3.0, "proxy_balanced_accuracy": 0.5}
       for step in (0, 1, 2)]  # fmt: skip


def images() -> Path:
    """The folder with the pictures themselves."""
    return sound.pictures() / "1_zebrafolder"


def write(folder: Path, name: str, text: str) -> None:
    """A text with the places of the sound files filled in."""
    places = {"model": sound.model(), "pictures": sound.pictures(), "folder": folder, "images": images()}
    for word, place in places.items():
        text = text.replace("{" + word + "}", str(place))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def read_config_file(folder: Path) -> None:
    """The options of a config, without a run."""
    read_config("SPLoRA", ["--config_file", str(folder / "run.toml")], lambda notice: None)


def dry_run(folder: Path) -> None:
    """A whole door up to the first step."""
    secret = keys.write_secret(folder / "written")
    PLoRA.main(["--config_file", str(folder / "run.toml"), "--split_secret_file", str(secret), "--dry_run"])


def write_metadata(folder: Path, name: str) -> None:
    """Captions of the pictures in one file."""
    entries = {file.stem: {"caption": "a walrus", "tags": ["sea", "grey"]} for file in sorted(images().glob("*.png"))}
    if name.endswith("l"):
        lines = [json.dumps({"file_name": f"{stem}.png", "text": "a walrus", "group": "g"}) for stem in entries]
        (folder / name).write_text("\n".join(lines) + "\n")
    else:
        (folder / name).write_text(json.dumps(entries))


def load_state(path: Path) -> None:
    """As a resumed run does, with the next step of both optimizers."""
    target = sound.trained(1)
    read_state(str(path))
    load_training_state(str(path), target)
    for module, moving in ((target.network, target.optimizer), (target.proxy, target.attacker)):
        moving.zero_grad()
        module(torch.ones(4, 2)).square().sum().backward()
        moving.step()
    target.schedule.step()


def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of a VAE."""
    small = pixels.mean(1, keepdim=True)[:, :, ::2, ::2].expand(-1, 4, -1, -1)
    return small, small.abs()


def latents(folder: Path) -> None:
    """Latents of one picture, from the cache if it has them."""
    views = [View(sound.examples()[0], (16, 16), False)]
    encoded_views(views, encode, vae_fingerprint="v", batch_size=1, cache_dir=folder / "written", rebuild=False)


def write_latents(folder: Path) -> None:
    """A filled cache, its file under a name that is known."""
    latents(folder)
    (file,) = (folder / "written" / "latents").glob("*.safetensors")
    (folder / "name").write_text(file.name)
    file.rename(folder / "latents.safetensors")


def read_latents(folder: Path) -> None:
    """The damaged file lies in the cache again."""
    target = folder / "written" / "latents" / (folder / "name").read_text()
    if (folder / "latents.safetensors").is_file():
        target.unlink(missing_ok=True)
        target.symlink_to(folder / "latents.safetensors")
    latents(folder)


def read_answers(folder: Path) -> None:
    """The answers of an audit, from a copy, since a damaged shard is removed."""
    store = folder / "written" / "store"
    store.mkdir(parents=True, exist_ok=True)
    (store / "shard.safetensors").symlink_to(folder / "shard.safetensors")
    names = list(AnswerCache(store).row_of)
    AnswerCache(store).gather(names)


def write_answers(folder: Path) -> None:
    """One shard."""
    sound.answers(folder / "made")
    (shard,) = (folder / "made").glob("*.safetensors")
    shard.rename(folder / "shard.safetensors")


def write_run(folder: Path) -> None:
    """An output folder with a config, a split and a LoRA."""
    write(folder, "run/config.toml", CONFIG)
    sound.copied(sound.split(), folder / "run" / "split.json")
    sound.copied(sound.lora(), folder / "run" / "last.safetensors")


def read_run(folder: Path) -> None:
    """As audit.py does before it opens the model."""
    runs = find_runs([str(folder / "run")], "last", defaults=sound.defaults(), overrides={}, split_file=None,
                     typed=typed_settings)  # fmt: skip
    for run in runs:
        read_adapter(run.lora)
        find_candidates(run.split, read_pictures(run.settings))


def open_model(folder: Path) -> None:
    """The whole model, and one caption through tokenizer and text encoder."""
    model = load_model(str(folder / "model"))
    tokens, _ = read_captions(model.tokenizer, ["a walrus, sea"], 75, weighted=False)
    with torch.no_grad():
        encode_text(model.text_encoder, tokens, 1)


def way_of_model(part: str, form: str) -> WayIn:
    """One file of a diffusers folder."""
    return WayIn(f"diffusers {part}", f"model/{part}", form,
                 lambda folder: sound.copied(sound.model(), folder / "model"), open_model)  # fmt: skip


def way_of_state(name: str, form: str) -> WayIn:
    """One file of a state."""
    checked = name == "state.json"
    return WayIn(f"state {name}", f"state/{name}", form,
                 lambda folder: sound.copied(sound.state(checked), folder / "state"),
                 lambda folder: load_state(folder / "state"))  # fmt: skip


def way_of_prompts(ending: str, form: str, text: str) -> WayIn:
    """Prompts of one format."""
    name = f"prompts.{ending}"
    return WayIn(f"prompts {ending}", name, form, lambda folder: write(folder, name, text),
                 lambda folder: read_prompts(str(folder / name), (16, 16), 1, 8, ["ddim", "euler_a"]))  # fmt: skip


def way_of_metadata(name: str, form: str) -> WayIn:
    """Captions in one file."""
    return WayIn(f"metadata {name}", name, form, lambda folder: write_metadata(folder, name),
                 lambda folder: data_toy.read(images(), in_json=str(folder / name)))  # fmt: skip


def way_of_pictures(name: str, file: str, form: str, **options: object) -> WayIn:
    """A folder of pictures with captions, masks and groups."""

    def prepare(folder: Path) -> None:
        tiny.write_pictures(folder / "pictures", 3)
        tiny.write_picture(folder / "mask.png", 1)
        for number in range(3):
            sound.copied(folder / "mask.png", folder / f"masks-{number}.png")
        (folder / "masks").mkdir()
        for number in range(3):
            (folder / f"masks-{number}.png").rename(folder / "masks" / f"quokka{number:03d}.png")
        groups = {f"quokka{number:03d}": "one" for number in range(3)}
        (folder / "pictures" / "groups.json").write_text(json.dumps(groups))

    def read(folder: Path) -> None:
        given = {key: str(value).replace("{folder}", str(folder)) if isinstance(value, str) else value
                 for key, value in options.items()}  # fmt: skip
        data_toy.read(folder / "pictures", **given)

    return WayIn(name, file, form, prepare, read)


FIRST = "pictures/1_zebrafolder/quokka000"
TABLE = '[prompt]\nwidth = 16\nscale = 7.5\n[[prompt.subset]]\nprompt = "a walrus"\nseed = 3\n'
LIST = json.dumps([{"prompt": "a walrus", "width": 16, "seed": 3, "scale": 7.5}, "a seal --n cat --s 5"])
WAYS = [
    WayIn("config", "run.toml", "toml", lambda folder: write(folder, "run.toml", CONFIG), read_config_file),
    WayIn("config in a dry run", "run.toml", "toml", lambda folder: write(folder, "run.toml", CONFIG), dry_run),
    WayIn("dataset toml", "data.toml", "toml", lambda folder: write(folder, "data.toml", DATASET),
          lambda folder: data_toy.read(sound.pictures(), dataset_config=str(folder / "data.toml"))),
    WayIn("plan of a comparison", "plan.toml", "toml", lambda folder: write(folder, "plan.toml", PLAN),
          lambda folder: read_plan(["--config_file", str(folder / "plan.toml")])),
    WayIn("tracker", "t.toml", "toml", lambda folder: write(folder, "t.toml", '[wandb]\nentity = "me"\ntags = ["a"]\n'),
          lambda folder: read_tracker_config(str(folder / "t.toml"))),
    way_of_metadata("captions.json", "json"),
    way_of_metadata("captions.jsonl", "jsonl"),
    way_of_prompts("txt", "text", "a walrus --w 16 --h 16 --s 5 --n cat\n# a comment\na seal\n"),
    way_of_prompts("toml", "toml", TABLE),
    way_of_prompts("json", "json", LIST),
    WayIn("split", "split.json", "json", lambda folder: sound.copied(sound.split(), folder / "split.json"),
          lambda folder: reuse_split(folder / "split.json", sound.examples(), b"0" * 32)),
    WayIn("split's secret", "secret.hex", "text", lambda folder: keys.write_secret(folder),
          lambda folder: read_secret(folder / "secret.hex")),
    way_of_state("state.json", "json"),
    way_of_state("optimizers.pt", "pickle"),
    way_of_state("lora.safetensors", "tensors"),
    way_of_state("proxy.safetensors", "tensors"),
    WayIn("teacher", "teacher-1.safetensors", "tensors",
          lambda folder: sound.copied(sound.teacher(), folder / "teacher-1.safetensors"),
          lambda folder: read_teacher(folder / "teacher-1.safetensors", sound.trained(1).network, "run")),
    WayIn("log", "log.jsonl", "jsonl",
          lambda folder: write(folder, "log.jsonl", "".join(json.dumps(line) + "\n" for line in LOG)),
          lambda folder: learning_summary(folder / "log.jsonl")),
    WayIn("latent cache", "latents.safetensors", "tensors", write_latents, read_latents),
    WayIn("audit index", "audit/sweep.json", "json", lambda folder: sound.index(folder / "audit" / "sweep.json"),
          lambda folder: read_index(folder / "audit" / "sweep.json", sound.SHELF, sound.ADAPTER)),
    WayIn("audit records", "shard.safetensors", "tensors", write_answers, read_answers),
    WayIn("audited run", "run/config.toml", "toml", write_run, read_run),
    WayIn("findings", "audit/findings.json", "json", lambda folder: write(folder, "audit/findings.json", '{"a": 1}'),
          read_findings),
    WayIn("LoRA", "lora.safetensors", "tensors", lambda folder: sound.copied(sound.lora(), folder / "lora.safetensors"),
          lambda folder: read_adapter(folder / "lora.safetensors")),
    WayIn("peft's settings", "peft/adapter_config.json", "json",
          lambda folder: sound.copied(sound.peft(), folder / "peft"), lambda folder: read_adapter(folder / "peft")),
    WayIn("peft's tensors", "peft/adapter_model.safetensors", "tensors",
          lambda folder: sound.copied(sound.peft(), folder / "peft"), lambda folder: read_adapter(folder / "peft")),
    WayIn("checkpoint", "model.safetensors", "tensors",
          lambda folder: sound.copied(sound.single()[1] / "model.safetensors", folder / "model.safetensors"),
          lambda folder: open_single_file(folder / "model.safetensors", torch.float32, sound.single()[0])),
    WayIn("checkpoint ckpt", "model.ckpt", "pickle",
          lambda folder: sound.copied(sound.single()[1] / "model.ckpt", folder / "model.ckpt"),
          lambda folder: open_single_file(folder / "model.ckpt", torch.float32, sound.single()[0])),
    WayIn("checkpoint of old torch", "model.ckpt", "bytes",
          lambda folder: sound.copied(sound.single()[1] / "old.ckpt", folder / "model.ckpt"),
          lambda folder: open_single_file(folder / "model.ckpt", torch.float32, sound.single()[0])),
    WayIn("vae", "vae/diffusion_pytorch_model.safetensors", "tensors",
          lambda folder: sound.copied(sound.model() / "vae", folder / "vae"),
          lambda folder: open_vae(str(folder / "vae"), load_model(str(sound.model())).vae, 4)),
    *(way_of_model(part, "json") for part in (
        "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json", "tokenizer/vocab.json", "tokenizer/special_tokens_map.json")),
    way_of_model("tokenizer/merges.txt", "text"),
    way_of_model("unet/diffusion_pytorch_model.safetensors", "tensors"),
    way_of_model("text_encoder/model.safetensors", "tensors"),
    way_of_pictures("picture", f"{FIRST}.png", "bytes"),
    way_of_pictures("caption", f"{FIRST}.txt", "text"),
    way_of_pictures("mask", "masks/quokka000.png", "bytes", masked_loss=True, conditioning_data_dir="{folder}/masks"),
    way_of_pictures("groups", "pictures/groups.json", "json"),
    WayIn("parquet", "train.parquet", "bytes", lambda folder: sound.copied(sound.parquet(), folder / "train.parquet"),
          lambda folder: data_toy.from_dataset(folder / "train.parquet", folder / "written", image_column="image",
                                               caption_column="text", group_column="person")),
    *TOOL_WAYS,
]  # fmt: skip
