"""LoCon and the network_args of networks.lora: where modules go, their ranks, dropouts and learning rates."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from library.diffusion.families.sd1 import SD1
from library.diffusion.model_files import load_model
from library.errors import InputError
from library.seeding import seed_modules, stream
from networks.lora import create_network
from networks.lora_args import Dropouts
from networks.lora_module import LoRAModule
from networks.lora_targets import blocks_of, checked_targets

SHAPE = {"conv_dim": "4", "conv_alpha": "2"}


@pytest.fixture(scope="module")
def sd15() -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """SD 1.5's shape without data."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD1.settings / "unet"))
        return unet, CLIPTextModel(CLIPTextConfig.from_pretrained(SD1.settings / "text_encoder"))


def network_of(model, rank: int = 8, alpha: float = 4.0, **arguments: str):
    """A fresh network, applied."""
    unet, text_encoder = (model.unet, model.text_encoder) if hasattr(model, "unet") else model
    with torch.device(unet.device):
        network = create_network(1.0, rank, alpha, None, text_encoder, unet, **arguments)
    network.apply_to(text_encoder, unet, True, True)
    return network


def test_locon_on_sd15_has_278_and_72_modules_and_the_specs_size(sd15) -> None:
    """86 more: 44 conv1/conv2, 22 time projections, 14 shortcuts, 6 samplers; rank 16 + conv 8 is 12.46 M."""
    network = network_of(sd15, 16, 16, conv_dim="8", conv_alpha="8")
    assert (len(network.unet_loras), len(network.text_encoder_loras)) == (278, 72)
    names = [lora.lora_name for lora in network.unet_loras]
    found = [sum(name.endswith(end) for name in names) for end in ("conv1", "conv2", "time_emb_proj", "conv_shortcut")]
    assert found == [22, 22, 22, 14]
    assert sum("samplers_0_conv" in name for name in names) == 6
    assert not any(word in name for name in names for word in ("conv_in", "conv_out", "time_embedding"))
    sizes = sum(parameter.numel() for lora in network.unet_loras for parameter in lora.parameters())
    assert round(sizes / 1e6, 2) == 12.46
    for lora in network.unet_loras:
        is_wide = lora.lora_down.weight.dim() == 4 and lora.lora_down.weight.shape[2:] == (3, 3)
        assert lora.rank == (8 if is_wide else 16), lora.lora_name


def test_a_count_that_the_config_does_not_imply_is_an_error(model_folder) -> None:
    model = load_model(str(model_folder))
    model.unet.down_blocks[0].resnets[0].conv1 = torch.nn.Identity()
    with pytest.raises(InputError, match=r"UNet \(LoCon\) has 30 layers for LoRA, but its config implies 31"):
        checked_targets(model.unet, model.text_encoder, with_locon=True)


def test_a_locon_module_is_the_convolution_of_the_product(model_folder) -> None:
    """By hand: the layer's output with weight W + alpha/r up down, stride and padding included."""
    layer = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    lora = LoRAModule("x", layer, rank=2, alpha=3.0, dropouts=Dropouts(0, 0, 0), multiplier=0.5)
    torch.nn.init.normal_(lora.lora_up.weight)
    inputs = torch.randn(2, 3, 9, 9, generator=stream(1))
    weight = layer.weight + 0.75 * torch.einsum("or,rihw->oihw", lora.lora_up.weight[:, :, 0, 0], lora.lora_down.weight)
    expected = torch.nn.functional.conv2d(inputs, weight, layer.bias, 2, 1)
    lora.apply_to()
    assert torch.allclose(layer(inputs), expected, atol=1e-5)


def test_blocks_of_sd15_are_kohyas_25(sd15) -> None:
    blocks = blocks_of(sd15[0])
    assert (blocks.down, blocks.up, blocks.total) == (12, 12, 25)
    for name, index in (
        ("down_blocks_0_attentions_0_proj_in", 1), ("down_blocks_0_resnets_1_conv1", 2),
        ("down_blocks_0_downsamplers_0_conv", 3), ("down_blocks_2_attentions_1_proj_in", 8),
        ("down_blocks_3_resnets_1_conv2", 11), ("mid_block_attentions_0_proj_in", 12),
        ("mid_block_resnets_1_conv1", 12), ("up_blocks_0_resnets_0_conv1", 13), ("up_blocks_0_upsamplers_0_conv", 15),
        ("up_blocks_3_attentions_2_proj_out", 24),
    ):  # fmt: skip
        assert blocks.index_of(f"lora_unet_{name}") == index, name


def test_block_dims_and_alphas_reach_their_blocks_and_a_dim_of_zero_leaves_a_block_out(sd15) -> None:
    dims = ",".join(str(index) for index in range(25))
    network = network_of(sd15, block_dims=dims, block_alphas=",".join(["2"] * 25), conv_block_dims=",".join(["3"] * 25))
    blocks = blocks_of(sd15[0])
    for lora in network.unet_loras:
        wide = lora.lora_down.weight.dim() == 4 and lora.lora_down.weight.shape[-1] == 3
        assert lora.rank == (3 if wide else blocks.index_of(lora.lora_name))
    assert {lora.rank for lora in network.text_encoder_loras} == {8}  # the text encoder keeps network_dim
    assert network.unet_loras[0].scale == 2 / network.unet_loras[0].rank
    without = network_of(sd15, block_dims=",".join(["0"] * 12 + ["4"] + ["0"] * 12))
    assert all("mid_block" in lora.lora_name for lora in without.unet_loras) and len(without.unet_loras) == 12


@pytest.mark.parametrize(
    ("course", "expected"),
    [("linear", [0, 1 / 3, 2 / 3, 1]), ("reverse_linear", [1, 2 / 3, 1 / 3, 0]), ("zeros+0.5", [0.5] * 4),
     ("sine", [0, 0.5, math.sqrt(3) / 2, 1]), ("cosine+.25", [1.25, math.sqrt(3) / 2 + 0.25, 0.75, 0.25]),
     ("1,.5,,2", [1, 0.5, 0, 2])],
)  # fmt: skip
def test_block_weights_by_name_and_by_number(model_folder, course: str, expected: list[float]) -> None:
    """The tiny UNet has 4 up blocks; blocks of weight 0 get no LoRA, the others their share of the rate."""
    model = load_model(str(model_folder))
    network = network_of(model, down_lr_weight="zeros", mid_lr_weight="0.5", up_lr_weight=course, **SHAPE)
    blocks = blocks_of(model.unet)
    used = sorted({blocks.index_of(lora.lora_name) for lora in network.unet_loras})
    assert used == [4, *(5 + place for place, weight in enumerate(expected) if weight > 0)]
    groups = network.prepare_optimizer_params(0.0, 2.0, 1.0)
    wanted = [1.0, *(2 * weight for weight in expected if weight > 0)]
    assert [group["lr"] for group in groups] == pytest.approx(wanted)


def test_the_zero_threshold_and_parts_without_weights(model_folder) -> None:
    model = load_model(str(model_folder))
    network = network_of(model, up_lr_weight="1,0.2,0.3,0.1", block_lr_zero_threshold="0.2")
    blocks = blocks_of(model.unet)
    assert {blocks.index_of(lora.lora_name) for lora in network.unet_loras} <= {1, 4, 5, 7}
    assert {1.0, 0.3} == {round(group["lr"], 6) for group in network.prepare_optimizer_params(0.0, 1.0, 1.0)}


def test_loraplus_gives_the_up_factors_their_own_rate(model_folder) -> None:
    network = network_of(load_model(str(model_folder)), loraplus_lr_ratio="4", loraplus_unet_lr_ratio="16")
    groups = network.prepare_optimizer_params(1e-4, 1e-3, 1.0)
    assert [group["lr"] for group in groups] == pytest.approx([1e-4, 4e-4, 1e-3, 1.6e-2])
    ups = {id(lora.lora_up.weight) for lora in network.modules_of_both()}
    assert [all(id(one) in ups for one in group["params"]) for group in groups] == [False, True, False, True]
    assert sum(len(group["params"]) for group in groups) == 2 * len(network.modules_of_both())


def test_every_fault_is_reported_at_once_with_the_counts_of_this_model(model_folder) -> None:
    model = load_model(str(model_folder))
    arguments = {
        "conv_dmi": "4", "conv_alpha": "1", "block_dims": ",".join(["4"] * 25), "rank_dropout": "1.5",
        "up_lr_weight": "cosin", "down_lr_weight": "1,2,3", "mid_lr_weight": "a,b", "block_alphas": "-1",
        "module_dropout": "often", "conv_block_alphas": "1", "loraplus_lr_ratio": "0",
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        create_network(1.0, 4, 1.0, None, model.text_encoder, model.unet, **arguments)
    text = str(caught.value)
    for words in (
        "no 'conv_dmi'; did you mean 'conv_dim'?",
        "block_dims needs 9 values for this UNet (4 down, 1 mid, 4 up), got 25",
        "rank_dropout must be numbers of at least 0 and at most 0.95, got '1.5'",
        "up_lr_weight must be one of sine, cosine",
        "did you mean 'cosine'?",
        "down_lr_weight needs 4 values for this UNet, got 3",
        "mid_lr_weight must be numbers",
        "block_alphas must be numbers of at least 0",
        "module_dropout must be numbers",
        "conv_alpha scales the convolutions' LoRA; give conv_dim as well",
        "conv_block_alphas scales",
        "loraplus_lr_ratio must be",
    ):
        assert words in text, words
    assert len(text.splitlines()) == 12  # conv_block_alphas has two faults
    with pytest.raises(InputError, match="dropout 0.2 and network_dropout 0.1 set the same probability"):
        create_network(1.0, 4, 1.0, None, model.text_encoder, model.unet, neuron_dropout=0.1, dropout="0.2")
    with pytest.raises(InputError, match="block_lr_zero_threshold acts on block weights"):
        create_network(1.0, 4, 1.0, None, model.text_encoder, model.unet, block_lr_zero_threshold="0.1")


def naive_forward(lora: LoRAModule, layer: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """kohya's order of draws: module, neuron, rank; a slow twin that loops over pictures and ranks."""
    base = layer(inputs)
    if lora.dropouts.module and torch.rand(1).item() < lora.dropouts.module:
        return base
    low = lora.lora_down(inputs)
    if lora.dropouts.neuron:
        low = torch.nn.functional.dropout(low, lora.dropouts.neuron, training=True)
    drawn = torch.rand(low.shape[0], lora.rank)
    for picture in range(low.shape[0]):
        for rank in range(lora.rank):
            keep = 1 / (1 - lora.dropouts.rank) if drawn[picture, rank] > lora.dropouts.rank else 0.0
            where = (picture, ..., rank) if low.dim() < 4 else (picture, rank)
            low = low.clone()
            low[where] = low[where] * keep
    return base + lora.lora_up(low) * lora.scale * lora.multiplier


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(torch.nn.Linear(5, 7), (4, 5)), (torch.nn.Linear(5, 7), (4, 3, 5)), (torch.nn.Conv2d(5, 7, 3), (4, 5, 6, 6))],
    ids=["rows", "tokens", "picture"],
)
def test_dropouts_are_kohyas_and_their_draws_depend_on_the_step_alone(layer, shape) -> None:
    lora = LoRAModule("x", layer, rank=4, alpha=2.0, dropouts=Dropouts(0.3, 0.4, 0.3), multiplier=1.0)
    torch.nn.init.normal_(lora.lora_up.weight)
    inputs = torch.randn(shape, generator=stream(2))
    outputs = []
    for step in range(8):
        seed_modules(1, step)
        ours = lora(inputs)
        seed_modules(1, step)
        assert torch.allclose(ours, naive_forward(lora, layer, inputs), atol=1e-5)
        outputs.append(ours)
    assert len({round(float(one.sum().detach()), 4) for one in outputs}) > 3
    lora.eval()
    assert torch.allclose(lora(inputs), layer(inputs) + lora.lora_up(lora.lora_down(inputs)) * 0.5, atol=1e-5)


def test_rank_dropout_keeps_the_expected_change() -> None:
    """Mean over many draws = the change without dropout: ranks that stay are scaled by 1 / (1 - p)."""
    layer = torch.nn.Linear(6, 6)
    lora = LoRAModule("x", layer, rank=8, alpha=8.0, dropouts=Dropouts(0.0, 0.25, 0.0), multiplier=1.0)
    torch.nn.init.normal_(lora.lora_up.weight)
    inputs = torch.randn(1, 6, generator=stream(4))
    seed_modules(0, 0)
    with torch.no_grad():
        many = lora(inputs.expand(20000, 6)).mean(0)
        whole = lora.eval()(inputs)[0]
    assert torch.allclose(many, whole, atol=0.06)


def test_max_norm_scales_the_long_modules_and_leaves_the_others(model_folder) -> None:
    """Against the dense product; K's figures: how many, mean and largest norm after scaling."""
    network = network_of(load_model(str(model_folder)), 3, 1.5, **SHAPE)
    with torch.no_grad():
        for index, lora in enumerate(network.modules_of_both()):
            lora.lora_up.weight.copy_(0.4 * torch.randn(lora.lora_up.weight.shape, generator=stream(1, index)))

    def dense(lora: LoRAModule) -> torch.Tensor:
        return lora.lora_up.weight.flatten(1) @ lora.lora_down.weight.flatten(1) * lora.scale

    before = [float(dense(lora).norm().detach()) for lora in network.modules_of_both()]
    limit = sorted(before)[len(before) // 2]
    expected = [dense(lora).detach() * min(1, limit / norm) for lora, norm in zip(network.modules_of_both(), before,
                                                                                 strict=True)]  # fmt: skip
    scaled, mean, largest = network.apply_max_norm_regularization(limit, None)
    assert scaled == sum(norm > limit * (1 + 1e-6) for norm in before) > 0
    after = [dense(lora).detach() for lora in network.modules_of_both()]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(after, expected, strict=True))
    assert largest == pytest.approx(limit) and mean == pytest.approx(
        sum(float(one.norm()) for one in after) / len(after)
    )
