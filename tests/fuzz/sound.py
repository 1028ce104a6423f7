"""Sound files of every kind, made once a process, which the cases copy and damage."""

import dataclasses
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from library.audit.queries.answer_cache import AnswerCache, cache_key
from library.audit.queries.run_queries import AnswerFolders, Shelf, write_index
from library.data.examples import Example
from library.data.split import draw_split
from library.data.split_file import write_split
from library.options.declarations import Config
from library.training.state import TrainingState, copied_tensors, save_state
from library.training.teacher_files import teacher_file, write_teacher
from networks import merge_lora
from tests.helpers import data_toy, ldm_layout, tiny
from tests.helpers.keys import secret_of
from tests.helpers.lora_files import filled_lora

SHELF = Shelf(Path("shared"), "5" * 64)
ADAPTER = "a" * 64
MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SCRATCH = Path(tempfile.mkdtemp(prefix="fuzz-"))
SCRATCH.chmod(0o755)  # another user reads what is not readable


def fresh_case() -> Path:
    """An empty folder for one case."""
    folder = SCRATCH / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@cache
def model() -> Path:
    """A tiny model in diffusers layout."""
    return tiny.write_model(SCRATCH / "model")


@cache
def single() -> tuple[Path, Path]:
    """A narrow SD 1.x: its config folder, and the folder of its one file as .safetensors and .ckpt."""
    folder, *parts = ldm_layout.build(SCRATCH / "narrow")
    tensors = ldm_layout.original_tensors(*parts)
    files = SCRATCH / "single"
    files.mkdir()
    save_file(tensors, files / "model.safetensors")
    torch.save({"state_dict": tensors, "global_step": 7}, files / "model.ckpt")
    torch.save({"state_dict": tensors}, files / "old.ckpt", _use_new_zipfile_serialization=False)
    return folder, files


@cache
def pictures() -> Path:
    """A kohya folder of 12 captioned pictures."""
    return tiny.write_pictures(SCRATCH / "pictures", 12)


@cache
def examples() -> list[Example]:
    """Its pictures, read."""
    return data_toy.read(pictures()).candidates


@cache
def split() -> Path:
    """A split of these pictures."""
    drawn = draw_split(examples(), [], nonmember_share=0.5, aux_share=0.5, inclusion="fixed", secret=secret_of(1))
    write_split(drawn, SCRATCH / "split.json")
    return SCRATCH / "split.json"


def trained(seed: int) -> TrainingState:
    """Two layers of two shapes after one step."""
    torch.manual_seed(seed)
    network, proxy = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    attacker = torch.optim.AdamW(proxy.parameters(), lr=0.1)
    for module, moving in ((network, optimizer), (proxy, attacker)):
        module(torch.randn(4, 2)).square().sum().backward()
        moving.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return TrainingState(network, optimizer, schedule, proxy, attacker, None, None)


@cache
def state(with_checksums: bool) -> Path:
    """A state; without checksums a damaged file is opened."""
    path = SCRATCH / f"run-{with_checksums}" / "state" / "last-state"
    checks = [{"epoch": 1, "balanced_accuracy": 0.5, "members": 3, "non_members": 3}]
    save_state(path, trained(0), done=1, options={"seed": 1}, inputs={"split": "s"}, checks=checks)
    if not with_checksums:
        content = json.loads((path / "state.json").read_text())
        rest = {name: value for name, value in content.items() if name not in ("files", "checksum")}
        (path / "state.json").write_text(json.dumps(rest))
    return path


@cache
def teacher() -> Path:
    """A teacher of a distillation."""
    file = teacher_file(SCRATCH / "state" / "last-teachers", 0)
    write_teacher(file, copied_tensors(trained(0).network), "run", {"teacher_steps": 3.0})
    return file


@cache
def lora() -> Path:
    """A LoRA of one module, with metadata of this suite."""
    file = SCRATCH / "lora.safetensors"
    tensors = {f"{MODULE}.lora_down.weight": torch.ones(2, 16), f"{MODULE}.lora_up.weight": torch.ones(16, 2),
               f"{MODULE}.alpha": torch.tensor(2.0)}  # fmt: skip
    facts = {"ss_privacy_method": "SPLoRA", "ss_privacy_param_alpha": "0.1", "ss_privacy_exposures_per_image": "8",
             "ss_network_dim": "2"}  # fmt: skip
    save_file(tensors, file, facts)
    return file


@cache
def whole_lora() -> Path:
    """A LoRA of every layer of the tiny model."""
    return filled_lora(model(), SCRATCH / "whole.safetensors", rank=2)


@cache
def tuned() -> Path:
    """The tiny model with this LoRA merged into it."""
    folder = SCRATCH / "tuned"
    words = ["--sd_model", str(model()), "--models", str(whole_lora()), "--save_to", str(folder)]
    merge_lora.main([*words, "--save_precision", "float"])
    return folder


@cache
def peft() -> Path:
    """An adapter as peft writes it."""
    folder = SCRATCH / "peft"
    folder.mkdir()
    name = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 16), f"{name}.lora_B.weight": torch.ones(16, 2)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"to_k": 3}, "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def answers(folder: Path) -> list[str]:
    """A store with the answers about three pictures."""
    names = ["p1", "p2", "p3"]
    AnswerCache(folder).add(names, {"loss": torch.rand(3, 4), "map": torch.rand(3, 4, 2, 2)})
    return names


def index(file: Path) -> None:
    """The index of an audit's answers."""
    fields = {field.name: cache_key(field.name) for field in dataclasses.fields(AnswerFolders)}
    write_index(file, AnswerFolders(**fields), ["p1", "p2"], ADAPTER, SHELF.split)


@cache
def parquet() -> Path:
    """A table of four pictures."""
    return data_toy.write_parquet(SCRATCH / "train.parquet")


def defaults() -> dict[str, object]:
    """The options' defaults by name."""
    return dataclasses.asdict(Config())


def copied(source: Path, target: Path) -> Path:
    """A copy of a file or folder."""
    return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target))
