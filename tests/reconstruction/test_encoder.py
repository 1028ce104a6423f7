"""The encoder of arXiv 2409.08482: its parts, their counts, and bad LoRAs."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from library.audit.reconstruction.encoder.matrix_encoder import (
    EqualMatrices,
    MatrixShape,
    matrices_of,
    matrix_shapes,
)
from library.audit.reconstruction.encoder.network_encoder import (
    Code,
    EncoderSize,
    NetworkEncoder,
    body_of_clip,
    paper_size,
    step_embedding,
)
from library.audit.reconstruction.stacked_lora import Factors
from library.errors import InputError
from library.seeding import stream

SIZE = EncoderSize(8, 1, 2, "gelu", False, 3, 5)
WIDTHS = {"a_to_q": (6, 9), "b_to_v": (9, 6)}  # (d_out, d_in)


def factors(count: int = 2, rank: int = 2) -> Factors:
    chance = stream(0, "factors")
    down = {name: torch.randn(count, rank, d_in, generator=chance) for name, (_, d_in) in WIDTHS.items()}
    up = {name: torch.randn(count, d_out, rank, generator=chance) for name, (d_out, _) in WIDTHS.items()}
    return Factors(down, up, 1.0)


def encoder(size: EncoderSize = SIZE) -> NetworkEncoder:
    torch.manual_seed(1)
    return NetworkEncoder(matrix_shapes(factors()), size)


def code_of(network: NetworkEncoder, given: Factors, step: int = 3) -> Code:
    with torch.no_grad():
        return network(matrices_of(given, network.shapes), torch.full((given.count,), step))


def test_both_factors_of_every_module_come_with_the_rank_first() -> None:
    assert matrix_shapes(factors())[:2] == (MatrixShape("a_to_q", "down", 2, 9), MatrixShape("a_to_q", "up", 2, 6))
    given = factors()
    up = matrices_of(given, matrix_shapes(given))[1]
    assert torch.equal(up, given.up["a_to_q"].transpose(1, 2))


def test_an_attacker_who_knows_the_start_sees_the_update() -> None:
    given = factors()
    update = matrices_of(given, matrix_shapes(given), start=given)
    assert all(not one.any() for one in update)


def test_the_convolutions_of_a_matrix_have_as_many_parameters_as_published() -> None:
    one = EqualMatrices(1, 16, 320, 8)
    assert sum(value.numel() for value in one.convolutions.parameters()) == 5537


def test_matrices_of_one_shape_share_nothing() -> None:
    torch.manual_seed(0)
    both, alone = EqualMatrices(2, 3, 7, 4), EqualMatrices(1, 3, 7, 4)
    given = torch.randn(5, 2, 3, 7, generator=stream(2))
    for whole, single in zip(both.convolutions, alone.convolutions, strict=True):
        half = len(whole.weight) // 2
        single.load_state_dict({"weight": whole.weight[half:], "bias": whole.bias[half:]})
    alone.weight.data, alone.bias.data = both.weight.data[1:], both.bias.data[1:]
    assert torch.allclose(both(given)[:, 1:], alone(given[:, 1:]), atol=1e-6)


def test_a_lora_s_code_does_not_depend_on_its_neighbours() -> None:
    network, given = encoder(), factors()
    assert torch.allclose(code_of(network, given).mean[1:], code_of(network, given.rows([1])).mean, atol=1e-6)


def test_the_code_depends_on_the_weights_and_on_the_number_of_steps() -> None:
    network, given = encoder(), factors()
    here = code_of(network, given).mean
    assert here.shape == (2, 3, 5) and not torch.allclose(here[0], here[1])
    assert not torch.allclose(here, code_of(network, given, step=30).mean)


def test_the_size_of_the_weights_is_not_seen() -> None:
    """InstanceNorm takes it away, as in the release: a finding of the spec, and not a wish."""
    network, given = encoder(), factors()
    larger = code_of(network, given.changed(lambda value: 100 * value)).mean
    assert torch.allclose(larger, code_of(network, given).mean, atol=1e-2)


def test_the_divergence_is_that_of_a_normal_by_hand() -> None:
    mean, log_variance = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[0.0, 0.0]]])
    assert Code(mean, log_variance).divergence() == pytest.approx(1.0)  # (0 + 4 / 2) / 2
    assert torch.equal(Code(mean, log_variance).drawn(torch.ones(1, 1, 2)), mean + 1)


def test_steps_are_embedded_as_cosines_and_sines() -> None:
    assert torch.equal(step_embedding(torch.tensor([0]), 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Factors({"a_to_q": factors().down["a_to_q"]}, {"a_to_q": factors().up["a_to_q"]}, 1.0), "b_to_v is missing"),
        (factors(rank=1), r"is \(1, 9\)"),
        (factors().changed(lambda value: value * torch.nan), "NaN or infinity"),
        (Factors(factors().down | {"c": torch.zeros(2, 2, 3)}, factors().up, 1.0), "unknown to this encoder"),
    ],
)
def test_a_lora_of_another_layout_or_with_nan_is_refused_by_name(given: Factors, said: str) -> None:
    with pytest.raises(InputError, match=said):
        matrices_of(given, encoder().shapes)


def test_more_context_tokens_than_positions_are_refused() -> None:
    with pytest.raises(InputError, match="77 context tokens"):
        NetworkEncoder(matrix_shapes(factors()), paper_size())


def sd_shapes() -> list[MatrixShape]:
    """The 128 matrices of SD 1.x at rank 16: to_q and to_v of 16 transformer blocks' two attentions."""
    widths = [320] * 5 + [640] * 5 + [1280] * 6  # two down and three up a level, one in the middle
    shapes = []
    for block, width in enumerate(widths):
        for attention, d_in in (("attn1", width), ("attn2", 768)):
            for module, side in ((f"{block}_{attention}_to_q", width), (f"{block}_{attention}_to_v", d_in)):
                shapes += [MatrixShape(module, "down", 16, side), MatrixShape(module, "up", 16, width)]
    return shapes


@pytest.mark.slow
def test_the_encoder_for_stable_diffusion_has_the_published_size_and_takes_a_step() -> None:
    shapes = sd_shapes()
    assert len(shapes) == 128 and sum(shape.width for shape in shapes) == 99_648
    torch.manual_seed(0)
    clip = CLIPTextModel(CLIPTextConfig())  # the dimensions of ViT-B/32's text encoder are its defaults
    inner = getattr(clip, "text_model", clip)
    unused = sum(value.numel() for value in inner.embeddings.parameters())
    network = NetworkEncoder(shapes, paper_size(), body_of_clip(clip))
    del clip, inner
    assert sum(value.numel() for value in network.parameters()) + unused == 116_274_816
    trained = network.trained_parameters()
    assert sum(value.numel() for value in trained) == 53_108_864
    matrices = [torch.randn(1, 16, shape.width, generator=stream(3)) for shape in shapes]
    code = network(matrices, torch.tensor([1000]))
    assert code.mean.shape == code.log_variance.shape == (1, 77, 768)
    before, frozen = trained[0].detach().clone(), next(network.body.parameters()).detach().clone()
    code.drawn(torch.randn(1, 77, 768, generator=stream(4))).square().mean().backward()
    torch.optim.SGD(trained, lr=0.1).step()
    assert not torch.equal(before, trained[0]) and torch.equal(frozen, next(network.body.parameters()))
