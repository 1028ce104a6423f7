"""What the LoRA draws for given captions: how near the drawings come to the pictures, and how good they are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from library.audit.attacks.attack_result import finding
from library.audit.images import perceptual
from library.audit.images.feature_extractors import FeatureExtractors, layer_name
from library.audit.images.inception import LAYERS
from library.audit.queries.answer_cache import AnswerArrays, AnswerCache
from library.audit.queries.audited_model import AuditedModel, moved_along
from library.audit.queries.run_queries import AnswerFolders, Effort, Stages, fill
from library.audit.statistics.findings import Finding, ScoreSettings
from library.audit.statistics.image_distances import frechet_distance, kernel_distance
from library.audit.statistics.set_test import SetTest, set_test
from library.audit.targets.candidate_table import Candidates, FloatArray, Picture
from library.diffusion.conditioning import Conditioning, joined, uncropped
from library.seeding import numpy_stream, stream

POOLED_SIDE = 4  # latents are pooled to 4 x 4 cells for the distances between sets
THUMB = 48  # pixels of the drawing that is kept for the risk list
GUIDANCE = 2.0


@dataclass(frozen=True)
class DrawingRules:
    """How many drawings are made, and how."""

    generated_images: int  # per caption
    generation_captions: int  # per test side
    generation_steps: int  # DDIM

    def name(self) -> str:
        """For cache keys."""
        return f"{self.generated_images}x{self.generation_steps}x{GUIDANCE:g}"


@dataclass(frozen=True)
class Drawings:
    """The black-box attack's finding and the quality of the drawings."""

    finding: Finding
    quality: Mapping[str, float]
    facts: Mapping[str, str]  # sampler, networks, layers, counts
    nearest: Mapping[str, NDArray[np.uint8]]  # [3, THUMB, THUMB] by hash of the picture: the nearest drawing
    set_test: SetTest | None = None


def starting_noise(identity: str, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Noise of one drawing: depends on the picture and the draw alone, so the base starts from the same."""
    return torch.randn(shape, generator=stream("drawing", identity, draw))


@torch.no_grad()
def drawn_latents(audited: AuditedModel, batch: Sequence[Picture], draw: int, steps: int, guidance: float) -> Tensor:
    """[B, 4, h, w] latents drawn from the captions by DDIM with classifier-free guidance."""
    shape = tuple(batch[0].latent.shape)
    here = torch.stack([starting_noise(picture.identity, draw, shape) for picture in batch]).to(audited.device)
    framing = torch.stack([uncropped((int(one.framing[5]), int(one.framing[4]))) for one in batch])
    captions = [[picture.caption for picture in batch], [""] * len(batch)]
    both = joined([audited.encode_text(texts).framed(framing) for texts in captions])
    return denoised(audited, here, both, ddim_timesteps(audited, steps), guidance).cpu()


def ddim_timesteps(audited: AuditedModel, steps: int) -> list[int]:
    """Where a drawing of so many steps asks the model, noisiest first."""
    count = int((audited.alphas_cumprod > 0).sum())  # a step without any signal says nothing of the picture
    return [round(count * (steps - place) / steps) - 1 for place in range(steps)]


@torch.no_grad()
def denoised(
    audited: AuditedModel, here: Tensor, both: Conditioning, timesteps: Sequence[int], guidance: float
) -> Tensor:
    """[B, 4, h, w] clean latents by DDIM with classifier-free guidance.

    Args:
        here: [B, 4, h, w] at the noise of the first timestep.
        both: 2 B rows of conditions, of the captions, then of empty ones.
    """
    for place, timestep in enumerate(timesteps):
        asked = torch.full((len(both),), timestep, dtype=torch.int64, device=audited.device)
        with_caption, without = audited.predict_noise(torch.cat([here, here]), asked, both).float().chunk(2)
        prediction = without + guidance * (with_caption - without)
        alpha_next = audited.alpha_bar(timesteps[place + 1]) if place + 1 < len(timesteps) else 1.0
        here = moved_along(here, prediction, audited.alpha_bar(timestep), alpha_next)
    return here


def draw_records(
    audited: AuditedModel, rules: DrawingRules, extractors: FeatureExtractors
) -> Callable[[list[Picture]], dict[str, Tensor]]:
    """The question for ``fill_cache``: distances, latents and features of each drawing; the nearest as a thumbnail."""

    def ask(batch: list[Picture]) -> dict[str, Tensor]:
        latents = torch.stack([picture.latent for picture in batch]).float()
        drawn = [
            drawn_latents(audited, batch, draw, rules.generation_steps, GUIDANCE)
            for draw in range(rules.generated_images)
        ]
        distances = torch.stack([(one - latents).square().mean((1, 2, 3)) for one in drawn], dim=1)
        pixels = [extractors.decode(one).cpu() for one in drawn]
        features = [extractors.features(one, [picture.caption for picture in batch]) for one in pixels]
        small = torch.stack([torch.nn.functional.adaptive_avg_pool2d(one, THUMB) for one in pixels], dim=1)
        nearest = small[torch.arange(len(batch)), distances.argmin(1)]  # [B, 3, THUMB, THUMB]
        return {
            "distance": distances,
            "drawn": torch.stack([pooled_features(one) for one in drawn], dim=1),
            "real": pooled_features(latents),
            "nearest": (nearest * 255).round().to(torch.uint8),
            **{name: torch.stack([seen[name] for seen in features], dim=1) for name in features[0]},
        }

    return ask


def pooled_features(latents: Tensor) -> Tensor:
    """[B, 4 * 16] latents averaged over 4 x 4 cells."""
    return torch.nn.functional.adaptive_avg_pool2d(latents.float(), POOLED_SIDE).flatten(1)


def drawn_indices(candidates: Candidates, captions: int) -> list[int]:
    """The pictures whose captions are drawn: the first of each test side in the order of their hashes."""
    rows = []
    for side in ("members-test", "non-members-test"):
        of_side = sorted(candidates.indices(side).tolist(), key=lambda row: candidates.pixels[row])
        rows += of_side[:captions]
    return rows


def nearness(records: AnswerArrays, real: AnswerArrays) -> FloatArray:
    """[n] mean over drawings: cosine with the picture where an encoder looked, else minus the VAE-space distance."""
    if "encoded" in real:
        return np.einsum("ndf,nf->nd", *(one["encoded"].astype(np.float64) for one in (records, real))).mean(1)
    return -records["distance"].astype(np.float64).mean(1)


def drawings_of(
    on: AnswerArrays,
    off: AnswerArrays,
    real: AnswerArrays,
    candidates: Candidates,
    rows: Sequence[int],
    *,
    rules: DrawingRules,
    extractors: FeatureExtractors,
    seed: int,
) -> Drawings:
    """The black-box attack and the quality of the drawings.

    Attack: drawings of a member's caption come nearer to the picture than the base's do; nothing is fitted.

    Args:
        on, off: what ``draw_records`` asked with the LoRA on and off.
        real: features of the pictures themselves, in the same order.
    """
    pixels, sides, groups = (
        [values[row] for row in rows] for values in (candidates.pixels, candidates.sides, candidates.groups)
    )
    subset = Candidates(pixels, sides, groups)
    space = f"cosine by {extractors.encoder.name}" if extractors.encoder else "distance in the VAE's space"
    near = nearness(on, real), nearness(off, real)
    settings = ScoreSettings("drawings", f"nothing; {space}", seed=seed)
    found = finding(near[0] - near[1], near[1], subset, settings, with_aux=False)
    is_member = subset.is_member
    held_out = int((~is_member).sum())
    quality = "no Inception weights were given (inception_weights): VAE-space distances, no FID or KID"
    if extractors.inception:
        quality = f"FID and KID with {extractors.inception_name}"
    seen_by = (
        f"{perceptual.NAME}" if extractors.perceptual else f"not measured; pip install {perceptual.versions_asked()}"
    )
    agreement = extractors.clip.name if extractors.clip else "left out, because no CLIP was given (clip_model)"
    facts = {
        "drawings": f"{held_out} captions of non-members-test (in the order of their hashes) x "
        f"{rules.generated_images}, DDIM {rules.generation_steps} steps, guidance {GUIDANCE:g}, against those "
        f"{held_out} pictures",
        "black box": space,
        "image quality": quality,
        "perceptual distances": seen_by,
        "prompt-image agreement": agreement,
    }
    nearest = {subset.pixels[row]: on["nearest"][row].astype(np.uint8) for row in range(len(rows))}
    quality_figures = drawing_quality(on, off, real, is_member, subset.groups)
    return Drawings(found, quality_figures, facts, nearest, set_test_of(on, off, real, subset, seed))


def set_test_of(on: AnswerArrays, off: AnswerArrays, real: AnswerArrays, subset: Candidates, seed: int) -> SetTest:
    """All drawings against the members and against the pictures held out, as sets, in the best space that is there."""
    if "perceptual" in real:
        name, pictures, space = "perceptual", real["perceptual"].astype(np.float64), perceptual.NAME
    else:
        name, pictures, space = "drawn", on["real"].astype(np.float64), "the VAE's space"
    drawn = [records[name].astype(np.float64).reshape(-1, pictures.shape[1]) for records in (on, off)]
    generator = numpy_stream(seed, "set-level test")
    return set_test((drawn[0], drawn[1]), pictures, subset.is_member, subset.groups, space=space, generator=generator)


def drawing_quality(
    on: AnswerArrays, off: AnswerArrays, real: AnswerArrays, is_member: NDArray[np.bool_], groups: Sequence[str]
) -> dict[str, float]:
    """Distances between drawings of held-out captions and the held-out pictures, LoRA on and off, in every space.

    Held-out pictures alone: drawings that come near to members show what was learnt by heart as well.

    Args:
        groups: [n] of the pictures; intervals leave out one of them at a time.
    """
    held_out = ~is_member
    spaces = {"vae_frechet_distance": ("drawn", "real", on), "vae_kernel_distance": ("drawn", "real", on)}
    if "perceptual" in real:
        spaces |= {f"perceptual_{kind}_distance": ("perceptual", "perceptual", real) for kind in ("frechet", "kernel")}
    for layer in LAYERS:
        if f"inception_{layer}" in real:
            spaces |= {f"{name}_{layer}": (f"inception_{layer}", f"inception_{layer}", real) for name in ("fid", "kid")}
    figures: dict[str, float] = {"drawn_captions": float(held_out.sum())}
    figures["drawn_images"] = float(on["drawn"][held_out][..., 0].size)
    out_groups = np.asarray(groups)[held_out]
    for suffix, records in (("", on), ("_of_base", off)):
        for name, (drawn_name, real_name, real_records) in spaces.items():
            pictures = real_records[real_name][held_out].astype(np.float64)
            drawn = records[drawn_name][held_out].astype(np.float64)  # [n, drawings, F]
            distance = frechet_distance if "frechet" in name or name.startswith("fid") else kernel_distance
            figures[f"{name}{suffix}"] = distance(drawn.reshape(-1, drawn.shape[-1]), pictures)
            if distance is kernel_distance:
                low, high = jackknife_interval(drawn, pictures, out_groups)
                figures |= {f"{name}{suffix}_low": low, f"{name}{suffix}_high": high}
        if "agreement" in real:
            figures[f"clip_score{suffix}"] = 100 * float(records["agreement"][held_out].mean())
    if "agreement" in real:
        figures["clip_score_of_pictures"] = 100 * float(real["agreement"][held_out].mean())
    return figures


def jackknife_interval(drawn: FloatArray, pictures: FloatArray, groups: NDArray[np.str_]) -> tuple[float, float]:
    """95 % interval of the kernel distance: leaves out one group of pictures, with their drawings, at a time.

    Args:
        drawn: [n, drawings, F], of the captions of the pictures.
        pictures: [n, F].
    """
    whole = kernel_distance(drawn.reshape(-1, drawn.shape[-1]), pictures)
    names = np.unique(groups)
    if len(names) < 3:
        return float("-inf"), float("inf")
    parts = []
    for name in names:
        kept = groups != name
        parts.append(kernel_distance(drawn[kept].reshape(-1, drawn.shape[-1]), pictures[kept]))
    spread = np.asarray(parts) - np.mean(parts)
    error = float(np.sqrt((len(names) - 1) / len(names) * (spread**2).sum()))
    reach = float(stats.t.ppf(0.975, len(names) - 1)) * error
    return whole - reach, whole + reach


QUALITY = {
    "vae_frechet_distance": "Frechet distance in the VAE's space (no FID)",
    "vae_kernel_distance": "kernel distance in the VAE's space (no KID)",
    "perceptual_frechet_distance": f"Frechet distance by {perceptual.NAME} (no FID)",
    "perceptual_kernel_distance": f"kernel distance by {perceptual.NAME} (no KID)",
    "clip_score": "CLIP score, 100 x cosine of drawing and caption",
} | {f"{name}_{layer}": f"{name.upper()}, {layer_name(layer)}" for name in ("fid", "kid") for layer in LAYERS}


def draw_all(
    audited: AuditedModel,
    pictures: Sequence[Picture],
    stores: AnswerFolders,
    rules: DrawingRules,
    extractors: FeatureExtractors,
    effort: Effort,
    stages: Stages,
) -> tuple[AnswerArrays, AnswerArrays]:
    """Drawings of the pictures' captions with the LoRA on and off, as statistics; cached like the other answers."""
    answers = []
    for folder, state in ((stores.on, "on"), (stores.off, "off")):
        audited.switch(state)
        place = Path(f"{folder}-{rules.name()}-{extractors.fingerprint()}")
        fill(place, pictures, draw_records(audited, rules, extractors), effort, stages.begin(f"drawings, LoRA {state}"))
        answers.append(AnswerCache(place).gather([picture.key for picture in pictures]))
    return answers[0], answers[1]
