"""What is kept of a noise residual instead of the tensor: norms, radial band energies, products."""

import torch
from torch import Tensor

from library.seeding import stream

BAND_EDGES = (0.0, 2.0, 5.0, 8.0, 12.0, 16.0, 22.0, 28.0)  # radius in cycles per 64 latent pixels; last band open
BANDS = len(BAND_EDGES)
LOW_BANDS = 2  # bands whose radius stays within 5: kept whole by the frequency filter (arXiv 2505.20955)
COLUMNS = ("square", "absolute", "fourth", *(f"band{band}" for band in range(BANDS)), "norm2", "norm4", "with_noise")
SQUARE, ABSOLUTE, FOURTH, FIRST_BAND = 0, 1, 2, 3
NORM2, NORM4, WITH_NOISE = FIRST_BAND + BANDS, FIRST_BAND + BANDS + 1, FIRST_BAND + BANDS + 2


def noise_for(identity: str, timestep: int, draw: int, shape: tuple[int, ...]) -> Tensor:
    """The noise of one picture at one timestep: depends on nothing else, and odd draws negate the draw before."""
    noise = torch.randn(shape, generator=stream(identity, timestep, draw // 2))
    return -noise if draw % 2 else noise


def band_of_frequency(height: int, width: int) -> Tensor:
    """[h, w] band number of each cell of a 2-D FFT; the radius is measured on a 64-pixel latent."""
    radius = 64 * (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.fftfreq(width)[None] ** 2).sqrt()
    inner = torch.tensor(BAND_EDGES[1:])
    return torch.bucketize(radius, inner, right=False)


def band_energies(residual: Tensor) -> Tensor:
    """[B, bands] mean energy per element in each band; by Parseval the bands add up to the mean square."""
    batch, _, height, width = residual.shape
    spectrum = torch.fft.fft2(residual.float(), norm="ortho").abs().square().sum(1).flatten(1)  # [B, h*w]
    bands = band_of_frequency(height, width).to(residual.device).flatten().expand(batch, -1)
    energies = torch.zeros(batch, BANDS, device=residual.device).scatter_add_(1, bands, spectrum)
    return energies / residual[0].numel()


def difference_statistics(difference: Tensor) -> Tensor:
    """[B, 3 + bands]: mean square, mean absolute, mean fourth power, band energies of [B, 4, h, w]."""
    flat = difference.float().flatten(1)
    norms = torch.stack([flat.square().mean(1), flat.abs().mean(1), flat.pow(4).mean(1)], dim=1)
    return torch.cat([norms, band_energies(difference)], dim=1)


def residual_statistics(prediction: Tensor, noise: Tensor) -> Tensor:
    """[B, len(COLUMNS)] of r = prediction - noise, and of the prediction itself, all as means over the elements."""
    flat, noise_flat = prediction.float().flatten(1), noise.float().flatten(1)
    of_prediction = [flat.square().mean(1), flat.pow(4).mean(1), (flat * noise_flat).mean(1)]
    return torch.cat([difference_statistics(prediction.float() - noise.float()), torch.stack(of_prediction, 1)], 1)
