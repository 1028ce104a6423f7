"""Ten straight steps equal five, a state, and five, whatever optimizer, average, noise and looks a run has."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import SPLoRA
from library.errors import InputError
from tests.helpers.runs import assert_same_tensors, records

VARIANTS: dict[str, dict[str, Any]] = {
    "average, Prodigy, huber, pyramid noise and looks by steps": {
        "ema_decay": 0.9, "optimizer_type": "Prodigy", "learning_rate": "1.0", "loss_type": "huber",
        "multires_noise_iterations": 4, "multires_noise_discount": 0.5, "aux_loss_every_n_steps": 2,
        "lr_scheduler": "cosine",
    },
    "schedule-free, with looks, files and previews in between": {
        "optimizer_type": "AdamWScheduleFree", "aux_loss_every_n_steps": 3, "sample_every_n_steps": 4,
        "ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True,
    },
    "Adafactor with its own rate": {"optimizer_type": "AdaFactor", "lr_scheduler": "adafactor", "noise_offset": 0.05},
    "a scheduler by its path, min-SNR and text states made once": {
        "lr_scheduler_type": "CosineAnnealingLR", "lr_scheduler_args": "T_max=10", "min_snr_gamma": 5.0,
        "network_train_unet_only": True, "network_dropout": 0.2, "save_every_n_epochs": 1,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("changed", VARIANTS.values(), ids=VARIANTS.keys())
def test_ten_straight_steps_equal_five_resume_and_five(flags, tmp_path: Path, changed: dict[str, Any]) -> None:
    (tmp_path / "prompts.txt").write_text("walrus001 --s 2\n")
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    run = {**changed, "max_train_steps": 10, "save_every_n_steps": 5, "save_state": True,
           "sample_prompts": tmp_path / "prompts.txt"}  # fmt: skip
    assert SPLoRA.main(flags(**run, output_dir=straight)) == 0
    state = straight / "state" / "last-step00000005-state"
    assert SPLoRA.main(flags(**run, output_dir=resumed, resume=state)) == 0
    for name in ("last.safetensors", "proxy.safetensors", "state/last-state/lora.safetensors"):
        assert_same_tensors(straight / name, resumed / name)
    if "ema_decay" in changed:
        average = "state/last-state/average.safetensors"
        assert_same_tensors(straight / average, resumed / average)
    kept = [record for record in records(straight) if record["step"] > 5]
    assert [record for record in records(resumed) if record["step"] > 5] == kept and len(kept) >= 6


@pytest.mark.parametrize(
    ("what", "said"), [("captions", "captions have changed"), ("vae", r"UNet, text encoder or VAE\) have changed")]
)
def test_a_state_is_refused_once_captions_or_weights_have_changed(
    flags, pictures: Path, model_folder: Path, tmp_path: Path, what: str, said: str
) -> None:
    own = tmp_path / "model"
    shutil.copytree(model_folder, own)
    run = {"max_train_steps": 1, "save_state": True, "pretrained_model_name_or_path": own}
    assert SPLoRA.main(flags(**run)) == 0
    state = tmp_path / "out" / "state" / "last-state"
    if what == "captions":
        for caption in pictures.rglob("*.txt"):
            caption.write_text("another picture\n")
    else:
        file = own / "vae" / "diffusion_pytorch_model.safetensors"
        save_file({name: value + 0.01 for name, value in load_file(file).items()}, file)
    with pytest.raises(InputError, match=said) as caught:
        SPLoRA.main(flags(**{**run, "max_train_steps": 2}, resume=state))
    assert len(caught.value.messages) == 1
