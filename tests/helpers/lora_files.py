"""LoRA files of the tiny model with every factor away from zero, and files of another trainer's metadata."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from library.diffusion.model_files import load_model
from library.lora_files.format import modules_of, write_lora
from library.lora_files.lora_file import read_lora
from library.seeding import stream
from networks.lora import create_network

CAPTION, FOLDER, PERSON = "walrus at dusk", "10_zebrafolder", "Quokka Wombat"
LEAKING = {
    "ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora", "ss_network_dim": "4",
    "ss_network_alpha": "3.0", "ss_network_args": "{}", "ss_learning_rate": "0.0001", "ss_lr_scheduler": "cosine",
    "ss_tag_frequency": json.dumps({FOLDER: {CAPTION: 3}}),
    "ss_dataset_dirs": json.dumps({FOLDER: {"n_repeats": 10, "img_count": 7}}),
    "ss_datasets": json.dumps([{"subsets": [{"image_dir": f"/home/me/{FOLDER}"}]}]),
    "ss_output_name": "quokka", "ss_sd_model_name": "v1-5.safetensors", "ss_training_started_at": "1700000000.25",
    "ss_session_id": "1234", "ss_seed": "42", "ss_num_train_images": "7", "ss_training_comment": PERSON,
    "modelspec.title": PERSON, "modelspec.author": PERSON, "modelspec.date": "2026-11-29T10:11:12",
    "modelspec.trigger_phrase": CAPTION, "modelspec.thumbnail": "data:image/jpeg;base64,AAAA",
    "ot_config": json.dumps({"concepts": [{"path": f"C:\\pictures\\{FOLDER}"}]}),
    "prompt": CAPTION, "ssmd_keywords": CAPTION, "ss_extra": f"D:\\{FOLDER}\\a.png", "ss_person": PERSON,
    "software": json.dumps({"repo": "https://example.org/quokka"}), "modelspec.sai_model_spec": "1.0.1",
    "ss_privacy_note": PERSON, "ss_privacy_method": "PLoRA",
}  # fmt: skip


def filled_lora(
    model_folder: Path, file: Path, *, seed: int = 1, rank: int = 4, alpha: float = 3.0, precision: str = "float",
    parts: tuple[bool, bool] = (True, True), **arguments: str,
) -> Path:  # fmt: skip
    """A LoRA whose every module does something.

    Args:
        parts: whether it has a text encoder, and a UNet.
    """
    model = load_model(str(model_folder))
    network = create_network(1.0, rank, alpha, None, model.text_encoder, model.unet, **arguments)
    network.apply_to(model.text_encoder, model.unet, *parts)
    with torch.no_grad():
        for index, lora in enumerate(network.modules_of_both()):
            lora.lora_up.weight.copy_(0.3 * torch.randn(lora.lora_up.weight.shape, generator=stream(seed, index)))
            down = lora.lora_down.weight
            down.copy_(0.3 * torch.randn(down.shape, generator=stream(seed, index, "down")))
    write_lora(file, network.state_dict(), {"modelspec.sai_model_spec": "1.0.1", "ss_v2": "False"}, precision)
    return file


def with_metadata(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """A file as another trainer leaves it."""
    save_file(dict(tensors), file, metadata=dict(metadata))
    return file


def moved(module: nn.Module) -> None:
    """Push every factor of peft's modules away from where it starts."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(module.named_parameters()):
            if re.search("lora_|hada_|lokr_", name):
                drawn = torch.randn(parameter.shape, generator=stream(4, index)) * 0.2
                parameter.copy_(parameter.abs() * (1 + drawn) if "magnitude" in name else parameter + drawn)


def products(file: Path) -> dict[str, Tensor]:
    """The change of every module, by the slow way: one direction after the other."""
    found = {}
    for name, parts in modules_of(read_lora(file).tensors).items():
        up, down = parts["lora_up.weight"].double().flatten(1), parts["lora_down.weight"].double()
        change = torch.zeros(up.shape[0], down[0].numel(), dtype=torch.float64)
        for index in range(down.shape[0]):
            change += torch.outer(up[:, index], down[index].flatten())
        found[name] = (change * float(parts["alpha"]) / down.shape[0]).reshape(up.shape[0], *down.shape[1:])
    return found


def expect_close(one: dict[str, Tensor], other: dict[str, Tensor], most: float) -> None:
    """Every change to a relative error of its norm."""
    assert set(one) == set(other) and one
    for name, value in one.items():
        assert float((value - other[name].reshape(value.shape)).norm()) <= most * float(value.norm()) + 1e-9, name
