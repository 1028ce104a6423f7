"""Everything at once: datasets, resolutions, public images, LoCon or LoKr, average, Prodigy, looks and previews."""

from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import SPLoRA
from tests.helpers.runs import assert_same_tensors, records, two_datasets

NETWORKS = {
    "LoCon": ["--network_module", "networks.lora", "--network_args", "conv_dim=2", "conv_alpha=1"],
    "LoKr": ["--network_module", "lycoris.kohya", "--network_args", "algo=lokr", "factor=4"],
}
RUN = {
    "prior_loss_weight": 0.5, "gradient_accumulation_steps": 2, "ema_decay": 0.9, "optimizer_type": "Prodigy",
    "learning_rate": "1.0", "lr_scheduler": "cosine", "loss_type": "smooth_l1", "min_snr_gamma": 5.0,
    "noise_offset": 0.05, "aux_loss_every_n_steps": 3, "sample_every_n_steps": 4, "sample_at_first": True,
    "max_train_steps": 10, "save_state": True, "save_every_n_steps": 5,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_a_run_with_everything_on_resumed_in_the_middle_equals_the_straight_run(
    flags, tmp_path: Path, pictures: Path, network: list[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("walrus001 --s 2\n")
    run = {
        **RUN, "train_data_dir": None, "dataset_config": two_datasets(tmp_path, pictures),
        "sample_prompts": tmp_path / "prompts.txt",
    }  # fmt: skip
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert SPLoRA.main([*flags(**run, output_dir=straight), *network]) == 0
    state = straight / "state" / "last-step00000005-state"
    assert SPLoRA.main([*flags(**run, output_dir=resumed, resume=state), *network]) == 0
    for name in ("last.safetensors", "proxy.safetensors", "state/last-state/average.safetensors"):
        assert_same_tensors(straight / name, resumed / name)
    kept = [record for record in records(straight) if record["step"] > 5]
    assert [record for record in records(resumed) if record["step"] > 5] == kept and len(kept) >= 7
    for stage in ("step00000008", "final"):
        one, other = (folder / "sample" / f"last_{stage}_00.png" for folder in (straight, resumed))
        assert one.read_bytes() == other.read_bytes()
    assert any(
        value.abs().sum() > 0 for name, value in load_file(resumed / "last.safetensors").items() if "conv" in name
    )
    with safe_open(str(resumed / "last.safetensors"), framework="pt") as file:
        assert file.metadata()["ss_privacy_ema_decay"] == "0.9" and "walrus" not in str(file.metadata())
