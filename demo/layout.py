"""The folder demo/base: the parts of the model as a StableDiffusionPipeline in half precision."""

import copy
import json
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTokenizer

PREFIX = "text_model."  # transformers 5.6 and later leave this level out when saving; earlier ones need it


def restore_text_encoder(folder: Path) -> None:
    """Gives a saved text encoder the tensor names and the dtype entry that Stable Diffusion 1.x has.

    The entry is float32, because transformers 5 loads in the dtype it names and diffusers loads the rest in float32.
    """
    file = folder / "model.safetensors"
    tensors = load_file(file)
    named = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    save_file(named, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("dtype", None)
    config["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def forget_origin(config_file: Path) -> None:
    """Removes the path that a part was loaded from."""
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def move_files(source: Path, target: Path) -> None:
    """Puts every file of ``source`` in its place in ``target``, each whole, and removes what is not among them."""
    names = {file.relative_to(source) for file in source.rglob("*") if file.is_file()}
    for name in sorted(names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).chmod(0o644)
        os.replace(source / name, target / name)
    for file in [file for file in target.rglob("*") if file.is_file()]:
        if file.relative_to(target) not in names:
            file.unlink()
    shutil.rmtree(source)


def export_base(
    work: Path, target: Path, parts: dict[str, nn.Module], scheduler: DDIMScheduler, facts: dict[str, float]
) -> None:
    """Writes the folder ``target``, with the VAE and the tokenizer of ``work``; work/base.json keeps the facts."""
    vae = AutoencoderKL.from_pretrained(work / "vae")
    parts = {name: copy.deepcopy(part).to(torch.float16) for name, part in {**parts, "vae": vae}.items()}
    pipeline = StableDiffusionPipeline(
        **parts,
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    restore_text_encoder(partial / "text_encoder")
    for config_file in (partial / "unet" / "config.json", partial / "vae" / "config.json"):
        forget_origin(config_file)
    shutil.rmtree(partial / "tokenizer")
    shutil.copytree(work / "tokenizer", partial / "tokenizer")
    move_files(partial, target)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    (work / "base.json").write_text(json.dumps(facts | {"parameters": sizes}) + "\n", encoding="utf-8")
