"""What the LoRA draws: latents for given captions, how near they come to the pictures, how good they are as a set."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import linalg
from torch import Tensor

from library.audit.denoiser import Denoiser, moved_along
from library.audit.evidence import Candidates
from library.audit.findings import Finding, plain_finding
from library.audit.record_store import Records
from library.audit.sweep import Picture

POOLED_SIDE = 4  # latents are pooled to 4 x 4 cells for the distances between sets


def starting_noise(identity: str, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of one drawing: depends on the picture and the draw alone, so the base starts from the same."""
    seed = hashlib.sha256(f"drawing\x1f{identity}\x1f{draw}".encode()).digest()
    return torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(seed[:8], "big") >> 1))


@torch.no_grad()
def drawn_latents(denoiser: Denoiser, batch: Sequence[Picture], draw: int, steps: int, guidance: float) -> Tensor:
    """[B, 4, h, w] latents drawn from the captions by DDIM with classifier-free guidance."""
    shape = tuple(batch[0].latent.shape)
    here = torch.stack([starting_noise(picture.identity, draw, shape) for picture in batch]).to(denoiser.device)
    states = denoiser.encode_text([picture.caption for picture in batch])
    both = torch.cat([states, denoiser.encode_text([""] * len(batch))])
    count = int((denoiser.alphas_cumprod > 0).sum())  # a step without any signal says nothing of the picture
    timesteps = [round(count * (steps - place) / steps) - 1 for place in range(steps)]
    for place, timestep in enumerate(timesteps):
        asked = torch.full((2 * len(batch),), timestep, dtype=torch.int64, device=denoiser.device)
        with_caption, without = denoiser.predict_noise(torch.cat([here, here]), asked, both).float().chunk(2)
        prediction = without + guidance * (with_caption - without)
        alpha_next = denoiser.alpha_bar(timesteps[place + 1]) if place + 1 < steps else 1.0
        here = moved_along(here, prediction, denoiser.alpha_bar(timestep), alpha_next)
    return here.cpu()


def draw_records(
    denoiser: Denoiser, images: int, steps: int, guidance: float
) -> Callable[[list[Picture]], dict[str, Tensor]]:
    """Asks for ``fill_store``: distance of each drawing to its picture, and the drawing's pooled latents."""

    def ask(batch: list[Picture]) -> dict[str, Tensor]:
        latents = torch.stack([picture.latent for picture in batch]).float()
        drawings = [drawn_latents(denoiser, batch, draw, steps, guidance) for draw in range(images)]
        distances = torch.stack([(drawing - latents).square().mean((1, 2, 3)) for drawing in drawings], dim=1)
        pooled = torch.stack([pooled_features(drawing) for drawing in drawings], dim=1)
        return {"distance": distances, "drawn": pooled, "real": pooled_features(latents)}

    return ask


def pooled_features(latents: Tensor) -> Tensor:
    """[B, 4 * 16] latents averaged over 4 x 4 cells."""
    return torch.nn.functional.adaptive_avg_pool2d(latents.float(), POOLED_SIDE).flatten(1)


def frechet_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two sets [n, F]; in the VAE's space, hence no FID."""
    means = [rows.mean(0) for rows in (first, second)]
    spreads = [np.cov(rows, rowvar=False) + 1e-6 * np.eye(rows.shape[1]) for rows in (first, second)]
    root = linalg.sqrtm(spreads[0] @ spreads[1])
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(spreads[0] + spreads[1] - 2 * np.real(root)))


def kernel_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Unbiased squared MMD with the kernel (x.y / F + 1)^3: KID's formula on the VAE's pooled latents, hence no KID."""

    def kernel(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
        return (left @ right.T / left.shape[1] + 1) ** 3

    inside = []
    for rows in (first, second):
        values = kernel(rows, rows)
        inside.append((values.sum() - np.trace(values)) / (len(rows) * (len(rows) - 1)))
    return float(inside[0] + inside[1] - 2 * kernel(first, second).mean())


def drawing_rows(candidates: Candidates, captions: int) -> list[int]:
    """The pictures whose captions are drawn: the first of each test side in the order of their hashes."""
    rows = []
    for side in ("members-test", "non-members-test"):
        of_side = sorted(candidates.rows(side).tolist(), key=lambda row: candidates.pixels[row])
        rows += of_side[:captions]
    return rows


def drawing_finding(on: Records, off: Records, candidates: Candidates, rows: Sequence[int], seed: int) -> Finding:
    """Black-box attack: drawings of a member's caption come nearer to the picture than the base's do.

    Score: distance of the base's drawings minus that of the LoRA's, in the VAE's latent space; nothing is fitted.
    """
    scores = (off["distance"] - on["distance"]).astype(np.float64).mean(1)
    subset = Candidates(*([values[row] for row in rows] for values in
                          (candidates.pixels, candidates.sides, candidates.groups)))  # fmt: skip
    return plain_finding("drawings", "nothing", scores, -off["distance"].astype(np.float64).mean(1), subset, seed)


def drawing_quality(on: Records, off: Records, candidates: Candidates, rows: Sequence[int]) -> dict[str, float]:
    """Distances in the VAE's space between drawings of member captions and those members, LoRA on and off."""
    is_member = candidates.is_member[list(rows)]
    real = on["real"][is_member].astype(np.float64)
    figures: dict[str, float] = {
        "drawn_captions": float(is_member.sum()),
        "drawn_images": float(on["drawn"][is_member][..., 0].size),
    }
    for name, records in (("", on), ("_of_base", off)):
        drawn = records["drawn"][is_member].reshape(-1, real.shape[1]).astype(np.float64)
        figures[f"vae_frechet_distance{name}"] = frechet_distance(drawn, real)
        figures[f"vae_kernel_distance{name}"] = kernel_distance(drawn, real)
    return figures
