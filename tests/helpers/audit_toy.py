"""A tiny latent diffusion model with a switchable adapter, for the audit's tests."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from library.audit.queries.audited_model import AuditedModel
from library.audit.targets.candidate_table import Picture
from library.diffusion.conditioning import Conditioning, uncropped
from networks.per_sample_gradients import AdapterLayer

WIDTH = 8  # of text states


class ToyAdapter:
    """Low-rank factors beside every attention projection and one convolution; ``scale`` 0 is the base alone."""

    def __init__(self, unet: UNet2DConditionModel, seed: int = 0, strength: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.scale, self.layers, self.trained = 1.0, [], {}
        for name, module in unet.named_modules():
            is_projection = isinstance(module, nn.Linear) and name.split(".")[-1] in ("to_q", "to_k", "to_v")
            if is_projection or name == "conv_in":
                self.layers.append(self._beside(name, module))
        for layer in self.layers:
            for factor in (layer.down, layer.up):
                drawn = torch.randn(factor.weight.shape, generator=generator) * strength
                factor.weight.data.copy_(drawn / factor.weight[0].numel() ** 0.5)

    def _beside(self, name: str, module: nn.Module) -> AdapterLayer:
        if isinstance(module, nn.Linear):
            down, up = nn.Linear(module.in_features, 2, bias=False), nn.Linear(2, module.out_features, bias=False)
        else:
            down = nn.Conv2d(module.in_channels, 2, 3, padding=1, bias=False)
            up = nn.Conv2d(2, module.out_channels, 1, bias=False)
        before = module.forward
        module.forward = lambda x: before(x) if self.scale == 0 else before(x) + self.scale * up(down(x))
        return AdapterLayer(name, down, up)

    def switch(self, state: str) -> None:
        """on, off or fresh (up factors zero)."""
        if not self.trained:
            self.trained = {layer.name: layer.up.weight.data.clone() for layer in self.layers}
        self.scale = 0.0 if state == "off" else 1.0
        for layer in self.layers:
            layer.up.weight.data.copy_(self.trained[layer.name] * (state != "fresh"))


def toy_unet(seed: int = 0) -> UNet2DConditionModel:
    """About 20 thousand parameters on latents of 4 x 8 x 8."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return unet.requires_grad_(False).eval()


def alphas_cumprod() -> Tensor:
    """Stable Diffusion's scaled-linear schedule."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)


def toy_text_states(captions: Sequence[str]) -> Conditioning:
    """[B, 3, WIDTH] states that depend on the words alone."""
    rows = []
    for caption in captions:
        generator = torch.Generator().manual_seed(
            sum(ord(letter) * 31**place for place, letter in enumerate(caption[:9]))
        )
        rows.append(torch.randn(3, WIDTH, generator=generator))
    return Conditioning(torch.stack(rows))


def toy_model(seed: int = 0, strength: float = 0.3) -> AuditedModel:
    """The model with its adapter on."""
    unet = toy_unet(seed)
    adapter = ToyAdapter(unet, seed, strength)
    adapter.switch("on")
    return AuditedModel(
        predict_noise=lambda latents, timesteps, states: states.predicted(unet, latents, timesteps),
        encode_text=toy_text_states,
        switch=adapter.switch,
        layers=adapter.layers,
        alphas_cumprod=alphas_cumprod(),
        device=torch.device("cpu"),
    )


def toy_pictures(count: int, seed: int = 0) -> list[Picture]:
    """Random latents with captions of five words."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, 2, 4, 8, 8, generator=generator)
    return [
        Picture(
            f"key{seed}-{row}",
            f"pixels{seed}-{row}",
            latents[row, 0],
            latents[row, 1],
            f"{row} two three four five",
            uncropped((16, 16)),
            uncropped((16, 16)),
        )
        for row in range(count)
    ]
