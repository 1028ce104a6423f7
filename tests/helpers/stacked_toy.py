"""A tiny frozen UNet that takes stacks of LoRAs, and persons whose pictures are drawn around a mean of their own."""

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from library.audit.reconstruction.persons import PersonSet
from library.audit.reconstruction.shadow_corpus import RANDOM, CorpusRecipe
from library.audit.reconstruction.stacked_lora import Factors, StackedModel, attention_layers
from library.audit.reconstruction.stacked_training import StepRecipe
from library.seeding import stream, stream_seed
from networks.lora_args import Dropouts
from networks.lora_module import LoRAModule
from tests.helpers.tiny import UNET

STEP = StepRecipe(learning_rate=1e-2, weight_decay=0.01, clip=0.05, batch=2)


def stacked_toy(seed: int = 0) -> StackedModel:
    """A tiny UNet with random weights, and the schedule of Stable Diffusion."""
    torch.manual_seed(stream_seed(seed, "stacked toy"))
    unet = UNet2DConditionModel(**UNET).eval()
    unet.requires_grad_(False)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return StackedModel(unet, attention_layers(unet), torch.cumprod(1 - betas, 0), fingerprint=f"toy {seed}")


def toy_persons(count: int, pictures: int = 4, seed: int = 0, first: int = 0, spread: float = 0.3) -> PersonSet:
    """Persons whose pictures [4, 8, 8] scatter around a smooth mean of each one's own."""
    names = [f"s{seed}p{number:03d}" for number in range(first, first + count)]
    latents = []
    for name in names:
        chance = stream(seed, "toy person", name)
        mean = torch.nn.functional.interpolate(torch.randn(1, 4, 2, 2, generator=chance), (8, 8), mode="bilinear")
        latents.append(mean + spread * torch.randn(pictures, 4, 8, 8, generator=chance))
    shown = [[f"{name} {number}" for number in range(pictures)] for name in names]
    return PersonSet(names, torch.stack(latents), shown)


def toy_states(captions: list[str] | tuple[str, ...]) -> Tensor:
    """[P, 5, 16] text states that depend on the caption alone."""
    return torch.stack([torch.randn(5, 16, generator=stream(0, "toy caption", caption)) for caption in captions])


def toy_recipe(**changes: object) -> CorpusRecipe:
    """Ten steps at rank 2."""
    values: dict = {
        "rank": 2, "scale": 1.5, "steps": 10, "pictures": 4, "step": STEP, "start": RANDOM, "class_word": "portrait",
        "triggers": 2, "seed": 3,
    }  # fmt: skip
    return CorpusRecipe(**{**values, **changes})


def random_factors(model: StackedModel, count: int, rank: int = 3, seed: int = 0, scale: float = 1.5) -> Factors:
    """LoRAs as after a training: both factors are drawn."""
    chance = stream(seed, "random factors", count, rank)
    down, up = {}, {}
    for name, layer in model.layers.items():
        d_out, d_in = layer.weight.shape
        down[name] = torch.randn(count, rank, d_in, generator=chance) / d_in**0.5
        up[name] = 0.3 * torch.randn(count, d_out, rank, generator=chance)
    return Factors(down, up, scale)


def own_modules(
    model: StackedModel, start: Factors
) -> tuple[list[LoRAModule], list[torch.nn.Parameter], torch.optim.AdamW]:
    """The suite's LoRA modules in the toy's layers, from the first LoRA of a stack (rank 2, scale 1.5), and AdamW."""
    loras = []
    for name, layer in model.layers.items():
        lora = LoRAModule(name, layer, rank=2, alpha=3.0, dropouts=Dropouts(0.0, 0.0, 0.0), multiplier=1.0)
        lora.lora_down.weight.data = start.down[name][0].clone()
        lora.apply_to()
        loras.append(lora)
    weights = [p for lora in loras for p in lora.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=STEP.learning_rate, weight_decay=STEP.weight_decay)
    return loras, weights, optimizer
