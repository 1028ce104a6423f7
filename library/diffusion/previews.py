"""Previews: pictures that the model generates for prompts, with diffusers' pipeline."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from PIL import Image

from library.diffusion.conditioning import Conditioning
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.prompt_files import Prompt, read_prompts
from library.diffusion.text import read_captions
from library.diffusion.vae import decoded
from library.errors import Faults, InputError

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "k_lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "k_euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "k_euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "k_dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "k_dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreviewRules:
    """Options of previews; prompts are read as the training reads captions."""

    sample_prompts: str | None
    sample_sampler: str
    clip_skip: int
    max_token_length: int
    weighted_captions: bool


def prompts_for(rules: PreviewRules, size: tuple[int, int], seed: int, model: LatentDiffusion | None) -> list[Prompt]:
    """The prompts of ``sample_prompts``, each with a sampler that works for this model.

    Args:
        model: None looks for what is wrong whatever the model.
        size: (width, height) in pixels where a prompt states none.
        seed: of the start noise where a prompt states none.

    Raises:
        InputError: all faults of the file, and samplers that cannot follow the noise schedule.
    """
    samplers = sorted(SAMPLERS, key=lambda name: name != rules.sample_sampler)
    multiple = 1 if model is None else model.side_multiple()
    prompts = read_prompts(rules.sample_prompts, size, seed, multiple, samplers)
    if model is None:
        return prompts
    faults = Faults()
    for name in sorted({prompt.sampler for prompt in prompts}):
        faults.attempt(sampler_of, name, model.scheduler)
    faults.raise_if_any()
    return prompts


def sampler_of(name: str, scheduler: Any) -> Any:
    """A sampler on the training's noise schedule, with its prediction type and its rescaling to zero SNR.

    Raises:
        InputError: a schedule that ends in zero SNR (arXiv 2305.08891), and a sampler that cannot start from it.
    """
    kind, extra = SAMPLERS[name]
    if scheduler.config.get("rescale_betas_zero_snr"):
        if scheduler.config.prediction_type != "v_prediction":
            raise InputError(
                "previews cannot start from zero SNR with a model that predicts noise: the first step divides by zero; "
                "leave zero_terminal_snr or sample_prompts out"
            )
        if not _follows_zero_snr(name):
            able = ", ".join(other for other in SAMPLERS if _follows_zero_snr(other))
            raise InputError(f"sampler '{name}' cannot start from zero SNR (zero_terminal_snr); use one of {able}")
        extra = {**extra, "timestep_spacing": "trailing"}  # begins at the very last timestep
    return getattr(diffusers, kind).from_config(scheduler.config, **extra)


def _follows_zero_snr(name: str) -> bool:
    return "rescale_betas_zero_snr" in inspect.signature(getattr(diffusers, SAMPLERS[name][0]).__init__).parameters


@torch.no_grad()
def paint(
    model: LatentDiffusion,
    prompts: list[Prompt],
    rules: PreviewRules,
    announce: Callable[[int, int], object] = lambda number, count: None,
) -> list[Image.Image]:
    """One picture for each prompt, from the model with its network; the same seed gives the same start noise.

    Args:
        announce: called with the number of the picture that is begun, from 1, and how many there are.
    """
    pipeline = pipeline_of(model)
    pictures = []
    for number, prompt in enumerate(prompts, 1):
        announce(number, len(prompts))
        pipeline.scheduler = sampler_of(prompt.sampler, model.scheduler)
        latents = pipeline(
            **prompt_states(text_states(model, [prompt.text, prompt.negative], rules).cast(model.unet.dtype)),
            width=prompt.width,
            height=prompt.height,
            guidance_scale=prompt.guidance,
            num_inference_steps=prompt.steps,
            generator=torch.Generator().manual_seed(prompt.seed),
            output_type="latent",
        ).images
        pictures += pipeline.image_processor.postprocess(decoded(model.vae, latents), output_type="pil")
    return pictures


def pipeline_of(model: LatentDiffusion) -> Any:
    """diffusers' pipeline of the model's family, with the model's own parts."""
    family = model.family
    parts: dict[str, Any] = {"vae": model.vae, "unet": model.unet, "scheduler": model.scheduler}
    for one, text_encoder, tokenizer in zip(family.texts, model.text_encoders(), model.tokenizers(), strict=True):
        parts |= {one.folder: text_encoder, one.tokenizer: tokenizer}
    pipeline = getattr(diffusers, family.pipeline)(**parts, **family.pipeline_options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt_states(states: Conditioning) -> dict[str, Any]:
    """States of a prompt and a negative prompt under a pipeline's names; SDXL's adds an uncropped framing itself."""
    given = {"prompt_embeds": states.states[:1], "negative_prompt_embeds": states.states[1:]}
    if states.pooled is not None:
        given |= {"pooled_prompt_embeds": states.pooled[:1], "negative_pooled_prompt_embeds": states.pooled[1:]}
    return given


def text_states(model: LatentDiffusion, texts: list[str], rules: PreviewRules) -> Conditioning:
    """States of prompts, read as the training reads captions: pieces, clip skip, weights or none."""
    weighted = rules.weighted_captions
    tokens, weights = read_captions(model.tokenizer, texts, rules.max_token_length, weighted=weighted)
    return model.family.encode(model.text_encoder, tokens.to(model.unet.device), rules.clip_skip, weights)
