"""One model under several LoRAs: exact cuts, and the base back bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from library.audit.robustness.ranks import Exchangeable, cut_ranks, variants_of
from library.diffusion.model_files import load_model
from library.errors import InputError
from library.lora_files.lora_file import read_lora
from library.tensor_files import state_fingerprint
from networks.command_line import factors_in
from networks.weight_change import merge_weights
from tests.helpers.lora_files import filled_lora
from tests.helpers.tiny import unet_output


@pytest.fixture(scope="module")
def lora(model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Rank 4, every module filled."""
    return read_lora(filled_lora(model_folder, tmp_path_factory.mktemp("lora") / "filled.safetensors"))


def test_a_cut_keeps_the_largest_singular_values_of_every_layer(lora) -> None:
    modules = factors_in(lora, "cut to a rank")
    cut = {one.name: one for one in variants_of(lora.tensors, modules, [2])}["rank 2"]
    kept = whole = 0.0
    for name, factors in modules.items():
        matrix = factors.product().flatten(1)
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)  # the slow twin
        by_hand = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
        up, down = (cut.tensors[f"{name}.lora_{part}.weight"].flatten(1) for part in ("up", "down"))
        assert torch.allclose((up @ down).double(), by_hand, atol=1e-4)
        kept, whole = kept + float(values[:2].square().sum()), whole + float(values.square().sum())
    assert cut.kept_energy == pytest.approx(kept / whole, abs=1e-6) and 0.3 < cut.kept_energy < 1


def test_every_variant_is_in_the_model_and_the_base_comes_back_bit_for_bit(model_folder: Path, lora) -> None:
    model = load_model(str(model_folder))
    before, wanted = state_fingerprint(model.unet.state_dict()), load_model(str(model_folder))
    base_output = unet_output(model.unet)
    merge_weights_without_gradient(wanted, lora.tensors)
    exchange = Exchangeable(model.unet, model.text_encoder, lora.tensors)
    outputs = {}
    for variant in variants_of(lora.tensors, factors_in(lora, "cut to a rank"), [2, 1]):
        exchange.put(variant)
        outputs[variant.name] = unet_output(model.unet)
    assert torch.equal(outputs["full"], unet_output(wanted.unet)) and torch.equal(outputs["base"], base_output)
    away = {name: float((output - outputs["full"]).square().mean()) for name, output in outputs.items()}
    assert 0 < away["rank 2"] < away["rank 1"] and 0 < away["half strength"] < away["base"]
    exchange.put(variants_of(lora.tensors, factors_in(lora, "cut to a rank"), [])[0])
    assert state_fingerprint(model.unet.state_dict()) == before


def merge_weights_without_gradient(model, tensors) -> None:
    """Another way to the whole LoRA."""
    merge_weights(model.unet, model.text_encoder, tensors, 1.0)


def test_half_strength_keeps_every_direction_at_half_its_size(lora) -> None:
    modules = factors_in(lora, "cut to a rank")
    *_, half = variants_of(lora.tensors, modules, [])
    halved = factors_in(replace(lora, tensors=dict(half.tensors)), "cut to a rank")
    for name, factors in modules.items():
        assert torch.allclose(halved[name].product(), 0.5 * factors.product(), atol=1e-6)
    assert half.kept_energy == 0.25


def test_ranks_are_halved_down_to_one_and_a_rank_that_cuts_nothing_is_refused(lora) -> None:
    modules = factors_in(lora, "cut to a rank")
    assert cut_ranks(modules, []) == [2, 1] and cut_ranks(modules, [1, 3, 1]) == [3, 1]
    with pytest.raises(InputError, match="robustness_ranks must be below 4, the rank of the LoRA, got 16, 4"):
        cut_ranks(modules, [16, 4, 2])
