"""The tools on a LoRA of the demo's model, in half precision as it is shared, against slow twins on whole matrices."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from library.lora_files.lora_file import read_lora
from networks import extract_lora_from_models, merge_lora, resize_lora
from networks.checkpoints.layers import open_base_checkpoint
from tests.helpers.lora_files import expect_close, filled_lora, products

BASE = Path(__file__).parents[2] / "demo" / "base"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """LoRAs of rank 4 and 3 whose every module does something."""
    place = tmp_path_factory.mktemp("demo")
    one = filled_lora(BASE, place / "one.safetensors", precision="fp16", parts=(False, True))
    return one, filled_lora(BASE, place / "two.safetensors", seed=2, rank=3, precision="fp16", parts=(False, True))


def merged(place: Path, base: Path, *files: Path, ratios: tuple[float, ...] = (1.0,)) -> Path:
    """The base with LoRAs merged in, in full precision."""
    words = ["--sd_model", str(base), "--models", *map(str, files), "--ratios", *map(str, ratios)]
    assert merge_lora.main([*words, "--save_precision", "float", "--save_to", str(place)]) == 0
    return place


def layers_of(folder: Path, names: list[str]) -> dict[str, Tensor]:
    """The weights of layers."""
    with open_base_checkpoint(folder) as checkpoint:
        return {name: checkpoint.layer(name).double() for name in names}


def test_what_was_merged_is_the_product_and_is_extracted_again(files, tmp_path: Path) -> None:
    one, back = files[0], tmp_path / "back.safetensors"
    changes = products(one)
    tuned = merged(tmp_path / "tuned", BASE, one)
    before, after = layers_of(BASE, list(changes)), layers_of(tuned, list(changes))
    assert len(changes) == 84
    expect_close(changes, {name: after[name] - before[name] for name in changes}, 1e-4)
    words = ["--model_org", str(BASE), "--model_tuned", str(tuned), "--dim", "4", "--save_to", str(back)]
    assert extract_lora_from_models.main(words) == 0
    expect_close(changes, products(back), 1e-4)


def test_merging_one_ratio_after_another_is_merging_their_sum(files, tmp_path: Path) -> None:
    names = list(products(files[0]))
    first = merged(tmp_path / "first", BASE, files[0], ratios=(0.3,))
    twice = layers_of(merged(tmp_path / "twice", first, files[0], ratios=(0.5,)), names)
    once = layers_of(merged(tmp_path / "once", BASE, files[0], ratios=(0.8,)), names)
    base = layers_of(BASE, names)
    expect_close({name: once[name] - base[name] for name in names},
                 {name: twice[name] - base[name] for name in names}, 1e-4)  # fmt: skip


def test_a_cut_errs_by_the_norm_of_the_discarded_singular_values(files, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    words = ["--model", str(files[0]), "--new_rank", "2", "--save_precision", "float", "--save_to", str(cut)]
    assert resize_lora.main(words) == 0
    whole = products(files[0])
    for name, value in products(cut).items():
        lost = float(torch.linalg.svdvals(whole[name].flatten(1))[2:].norm())
        assert float((value - whole[name]).norm()) == pytest.approx(lost, rel=1e-4), name


def test_loras_with_each_other_are_their_sum_exactly(files, tmp_path: Path) -> None:
    total = tmp_path / "sum.safetensors"
    words = ["--models", *map(str, files), "--ratios", "0.75", "-0.5", "--save_precision", "float"]
    assert merge_lora.main([*words, "--save_to", str(total)]) == 0
    one, two = map(products, files)
    expect_close({name: 0.75 * one[name] - 0.5 * two[name] for name in one}, products(total), 1e-6)
    assert read_lora(total).metadata["ss_network_dim"] == "7"
