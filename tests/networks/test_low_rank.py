"""The arithmetic of the tools on LoRA files: against values by hand and slow naive twins."""

import math

import pytest
import torch
from torch import Tensor

from library.errors import InputError
from library.seeding import stream
from networks.low_rank import (
    Factors,
    RankChoice,
    clamped,
    concatenated,
    decomposed,
    decomposed_factors,
    factors_of,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=stream(seed, "low rank", shape))


def conv_module(rank: int, seed: int = 0, alpha: float = 3.0) -> dict[str, Tensor]:
    """A LoCon module of a 3 x 3 convolution from 5 to 6 channels."""
    return {"lora_down.weight": drawn(rank, 5, 3, 3, seed=seed), "lora_up.weight": drawn(6, rank, 1, 1, seed=seed),
            "alpha": torch.tensor(alpha)}  # fmt: skip


def looped(parts: dict[str, Tensor]) -> Tensor:
    """alpha/r up (core) down, number by number."""
    up, down, core = parts["lora_up.weight"], parts["lora_down.weight"], parts.get("lora_mid.weight")
    scale = float(parts["alpha"]) / down.shape[0]
    kernel = core.shape[2:] if core is not None else down.shape[2:]
    change = torch.zeros(up.shape[0], down.shape[1], *kernel)
    for o in range(up.shape[0]):
        for c in range(down.shape[1]):
            for h in range(kernel[0]):
                for w in range(kernel[1]):
                    for i in range(up.shape[1]):
                        if core is None:
                            change[o, c, h, w] += up[o, i, 0, 0] * down[i, c, h, w] * scale
                        else:
                            for j in range(down.shape[0]):
                                change[o, c, h, w] += up[o, i, 0, 0] * core[i, j, h, w] * down[j, c, 0, 0] * scale
    return change


def test_the_factors_of_a_convolution_and_of_one_with_a_core_are_its_change_number_by_number() -> None:
    plain = conv_module(2)
    core = {"lora_down.weight": drawn(2, 5, 1, 1), "lora_mid.weight": drawn(3, 2, 3, 3),
            "lora_up.weight": drawn(6, 3, 1, 1), "alpha": torch.tensor(4.0)}  # fmt: skip
    for parts in (plain, core):
        factors = factors_of(parts)
        assert factors is not None and factors.is_wide
        torch.testing.assert_close(factors.product(), looped(parts))
        again = factors_of(factors.parts())
        assert again is not None
        torch.testing.assert_close(again.product(), looped(parts))


@pytest.mark.parametrize("part", ["dora_scale", "hada_w1_a"])
def test_other_kinds_have_no_factors(part: str) -> None:
    assert factors_of({**conv_module(2), part: torch.ones(6)}) is None


def test_a_sum_by_concatenation_is_the_sum_of_the_changes() -> None:
    modules = [conv_module(2, 1), conv_module(3, 2, alpha=7.0), conv_module(1, 3)]
    ratios = [0.5, -1.25, 2.0]
    terms = [(factors_of(parts), ratio) for parts, ratio in zip(modules, ratios, strict=True)]
    merged = concatenated([(factors, ratio) for factors, ratio in terms if factors is not None])
    wanted = sum(ratio * looped(parts) for parts, ratio in zip(modules, ratios, strict=True))
    assert merged.rank == 6 and merged.shape == (6, 5, 3, 3)
    torch.testing.assert_close(merged.product(), wanted)


def test_factors_of_one_strength_are_kept_bit_for_bit_and_the_ratio_goes_into_alpha() -> None:
    first, second = (factors_of({key: value.half() for key, value in conv_module(2, seed).items()}) for seed in (1, 2))
    assert first is not None and second is not None
    merged = concatenated([(first, 0.3), (second, 0.3)])
    assert torch.equal(merged.up, torch.cat([first.up, second.up], 1)) and merged.up.dtype == torch.float16
    assert float(merged.parts()["alpha"]) == pytest.approx(0.3 * 3.0 / 2 * 4)  # ratio * alpha / r * total rank


def test_layers_of_two_sizes_are_not_added() -> None:
    one, other = Factors(drawn(6, 2), drawn(2, 5), 1.0, (6, 5)), Factors(drawn(6, 2), drawn(2, 4), 1.0, (6, 4))
    with pytest.raises(InputError, match=r"different sizes, \(6, 4\) and \(6, 5\)"):
        concatenated([(one, 1.0), (other, 1.0)])


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (7, 7), (1, 5)])
def test_singular_values_are_those_of_torch_and_the_error_is_the_norm_of_the_discarded(shape: tuple[int, int]) -> None:
    matrix = drawn(*shape)
    found, twin = decomposed(matrix), torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(found.values, twin)
    for rank in range(1, len(twin) + 1):
        error = (found.cut(rank, shape).product() - matrix).norm()
        assert float(error) == pytest.approx(float(twin[rank:].norm()), abs=2e-6)
        assert found.lost(rank) == pytest.approx(float(twin[rank:].norm()), abs=1e-9)
        assert found.kept_energy(rank) == pytest.approx(1 - float(twin[rank:].norm() / twin.norm()) ** 2)


@pytest.mark.parametrize("rank", [3, 9])
def test_a_product_is_taken_apart_like_its_matrix(rank: int) -> None:
    """Also where the rank is above that of the matrix."""
    factors = Factors(drawn(8, rank), drawn(rank, 6), 0.7, (8, 6))
    of_factors, of_matrix = decomposed_factors(factors), decomposed(factors.product())
    kept = min(rank, 6)
    torch.testing.assert_close(of_factors.values[:kept], of_matrix.values[:kept], rtol=1e-5, atol=1e-5)
    for cut in (1, 2, kept):
        torch.testing.assert_close(of_factors.cut(cut, (8, 6)).product(), of_matrix.cut(cut, (8, 6)).product(),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip


def test_a_matrix_of_zeros_has_no_directions_and_no_nan() -> None:
    found = decomposed(torch.zeros(4, 3))
    assert torch.equal(found.cut(2, (4, 3)).product(), torch.zeros(4, 3)) and found.kept_energy(1) == 1.0
    assert RankChoice(3, "sv_fro", 0.9).of(found.values) == 1


def test_exact_low_rank_is_recovered_from_a_matrix_with_tiny_directions() -> None:
    """1e-5 of the largest, which a Gram matrix in single precision would lose."""
    left, right = torch.linalg.qr(drawn(9, 3).double())[0], torch.linalg.qr(drawn(20, 3, seed=1).double())[0]
    values = torch.tensor([1.0, 1e-3, 1e-5]).double()
    found = decomposed(left * values @ right.T)
    torch.testing.assert_close(found.values[:3], values, rtol=1e-6, atol=0)


SORTED = torch.tensor([4.0, 2.0, 1.0, 1.0])  # sum 8, squares 16 4 1 1


@pytest.mark.parametrize(
    ("method", "param", "rank"),
    [("sv_ratio", 3.0, 2), ("sv_ratio", 4.0, 2), ("sv_ratio", 5.0, 4), ("sv_cumulative", 0.5, 1),
     ("sv_cumulative", 0.6, 2), ("sv_cumulative", 0.875, 3), ("sv_cumulative", 1.0, 4), ("sv_fro", 0.85, 1),
     ("sv_fro", math.sqrt(20 / 22), 2), ("sv_fro", 0.97, 3), (None, None, 4)],
)  # fmt: skip
def test_dynamic_ranks_by_hand(method: str | None, param: float | None, rank: int) -> None:
    assert RankChoice(9, method, param).of(SORTED) == rank
    assert RankChoice(2, method, param).of(SORTED) == min(rank, 2)


def test_a_clamp_holds_the_factors_within_the_quantile() -> None:
    factors = Factors(torch.tensor([[1.0], [-9.0]]), torch.tensor([[2.0, 3.0]]), 1.0, (2, 2))
    held = clamped(factors, 0.5)
    assert held.up.tolist() == [[1.0], [-3.0]] and held.down.tolist() == [[2.0, 3.0]]
