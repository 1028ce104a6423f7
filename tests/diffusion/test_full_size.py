"""A whole SD 1.5 of the published size, with random weights under the real names, through a trainer's door."""

from pathlib import Path

import pytest
import torch

import PLoRA
from library.diffusion import single_file
from library.diffusion.families.sd1 import SD1
from library.tensor_files import Slot, read_tensors, stream_tensors
from networks.lora_targets import all_text_targets, unet_targets
from tests.helpers import ldm_layout


def write_random_file(file: Path) -> set[str]:
    """1.07 billion numbers in half precision (2.1 GB), cut from one drawn stretch; returns the LoRA's module names."""
    with torch.device("meta"):
        unet, vae, *text_encoders = parts = single_file.unfilled_parts(SD1.settings, SD1)
        tensors = ldm_layout.original_tensors(*parts)
    drawn = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).half() * 0.02
    layout = {name: Slot(torch.float16, tuple(value.shape)) for name, value in tensors.items()}

    def value_of(name: str) -> torch.Tensor:
        count = torch.Size(layout[name].shape).numel()
        if count == layout[name].shape[0] and name.endswith("weight"):  # of norms, about 1
            return drawn[:count] + 1
        return drawn.repeat(-(-count // len(drawn)))[:count].reshape(layout[name].shape)

    stream_tensors(file, layout, value_of, {"format": "pt"}, private=False)
    return {*unet_targets(unet), *all_text_targets(SD1, text_encoders)}


@pytest.mark.slow
def test_a_full_size_single_file_loads_offline_trains_two_steps_and_saves_exactly_kohyas_keys(
    flags, pictures: Path, tmp_path: Path
) -> None:
    """At 64 pixels, frozen weights in bf16."""
    file = tmp_path / "v1-5-random.safetensors"
    modules = write_random_file(file)
    assert len(modules) == 192 + 72
    for picture in sorted((pictures / "1_zebrafolder").iterdir())[8:]:
        picture.unlink()  # 4 pictures with captions stay
    words = {"pretrained_model_name_or_path": file, "resolution": 64, "mixed_precision": "bf16", "max_train_steps": 2,
             "train_batch_size": 1, "param_alpha": 0, "k_steps": 0, "attack_lr": None, "attack_eval_draws": 1,
             "aux_loss_every_n_epochs": 9}  # fmt: skip
    assert PLoRA.main(flags(**words)) == 0
    file.unlink()
    tensors, metadata = read_tensors(tmp_path / "out" / "last.safetensors")
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(tensors) == {f"{module}.{part}" for module in modules for part in parts}
    assert all(tensors[f"{module}.lora_up.weight"].any() for module in modules)
    assert metadata["ss_base_model_version"] == "sd_v1" and len(metadata["ss_new_sd_model_hash"]) == 64
