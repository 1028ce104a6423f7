"""Each kind of network in a real training of two steps, and what was trained in a real audit."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import audit
import SPLoRA
from library.lora_files.format import kinds_in
from tests.helpers import tiny

LYCORIS = ["--network_module", "lycoris.kohya", "--network_args"]
BOTH, UNET, TEXT = {"lora_unet", "lora_te"}, {"lora_unet"}, {"lora_te"}
# kind -> further flags, the kinds that its file holds, the parts that have modules
NETWORKS: dict[str, tuple[list[str], set[str], set[str]]] = {
    "LoRA": ([], {"LoRA"}, BOTH),
    "LoCon": (["--network_args", "conv_dim=2", "conv_alpha=1"], {"LoRA"}, BOTH),
    "UNet only": (["--network_train_unet_only"], {"LoRA"}, UNET),
    "text encoder only": (["--network_train_text_encoder_only"], {"LoRA"}, TEXT),
    "DoRA": ([*LYCORIS, "algo=locon", "conv_dim=2", "dora_wd=True"], {"LoRA", "DoRA"}, BOTH),
    "LoHa": ([*LYCORIS, "algo=loha", "conv_dim=2"], {"LoHa"}, BOTH),
    "LoKr": ([*LYCORIS, "algo=lokr", "factor=4"], {"LoKr"}, BOTH),
    "GLoRA": ([*LYCORIS, "algo=glora"], {"GLoRA"}, BOTH),
    "OFT": ([*LYCORIS, "algo=diag-oft"], {"OFT"}, BOTH),
    "full difference": ([*LYCORIS, "algo=full"], {"full difference"}, BOTH),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_kind_trains_two_steps_and_is_audited(flags, tmp_path: Path, kind: str) -> None:
    """The factors that begin at zero have moved; every attack has a finding, those on gradients too."""
    more, kinds, parts = NETWORKS[kind]
    if "lycoris.kohya" in more:
        pytest.importorskip("lycoris.kohya")
    pictures = tiny.write_pictures(tmp_path / "many", 48)
    out = tmp_path / "out"
    assert SPLoRA.main([*flags(max_train_steps=2, train_data_dir=pictures), *more]) == 0
    tensors = load_file(out / "last.safetensors")
    assert kinds_in(out / "last.safetensors") == kinds
    assert {part for part in BOTH if any(name.startswith(part) for name in tensors)} == parts
    assert any(value.abs().max() > 0 for name, value in tensors.items() if name.endswith(
        ("lora_up.weight", "hada_w2_a", "lokr_w2", "lokr_w2_b", "b2.weight", "oft_blocks", "diff")))  # fmt: skip
    assert audit.main([str(out), "--cache_dir", str(tmp_path / "cache"), "--target_fpr", "0.1"]) == 0
    found = json.loads((out / "audit/findings.json").read_text())
    assert found["images"] == {side: 12 for side in found["images"]} and found["method"] == "SPLoRA"
    names = {one["name"] for one in found["findings"]}
    assert {"loss", "secmi", "gsa1", "gsa2"} <= names, names
    assert all(0 <= one["auc"] <= 1 for one in found["findings"])
