"""Previews: pictures that the model paints for prompts, through diffusers' own pipeline."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from library.check import Faults
from library.diffusion.model_files import LatentDiffusion
from library.diffusion.text import encode_text, tokenize

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
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
}


@dataclass(frozen=True)
class Prompt:
    """One line of the prompts file."""

    text: str
    negative: str
    width: int  # pixels
    height: int  # pixels
    seed: int
    guidance: float  # classifier-free guidance scale
    steps: int


def read_prompts(file: str | None, size: tuple[int, int], seed: int, multiple: int) -> list[Prompt]:
    """Prompts, one a line, # comments; kohya's ``--n --w --h --d --l --s`` behind the text. No file, no prompts.

    Raises:
        InputError: unknown letters, numbers that are none, sizes the model cannot paint; no prompt at all.
    """
    if file is None:
        return []
    faults = Faults()
    prompts: list[Prompt] = []
    lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        text, *options = re.split(r"\s--(?=[a-z]+\s)", line)
        given = {"n": "", "w": str(size[0]), "h": str(size[1]), "d": str(seed), "l": "7.5", "s": "30"}
        for option in options:
            letter, _, value = option.partition(" ")
            if letter not in given:
                faults.add(
                    f"sample_prompts '{file}' line {number}: unknown --{letter}; known are --n --w --h --d --l --s"
                )
            given[letter] = value.strip()
        try:
            prompt = Prompt(
                text.strip(),
                given["n"],
                int(given["w"]),
                int(given["h"]),
                int(given["d"]),
                float(given["l"]),
                int(given["s"]),
            )
        except ValueError:
            faults.add(f"sample_prompts '{file}' line {number}: --w --h --d --s take whole numbers, --l a number")
            continue
        if prompt.width % multiple or prompt.height % multiple or min(prompt.width, prompt.height) <= 0:
            faults.add(
                f"sample_prompts '{file}' line {number}: --w and --h must be multiples of {multiple}, got "
                f"{prompt.width} x {prompt.height}"
            )
        if prompt.steps < 1:
            faults.add(f"sample_prompts '{file}' line {number}: --s must be at least 1, got {prompt.steps}")
        prompts.append(prompt)
    if not prompts:
        faults.add(f"sample_prompts '{file}' holds no prompt")
    faults.raise_if_any()
    return prompts


@torch.no_grad()
def paint(
    model: LatentDiffusion, prompts: list[Prompt], *, sampler: str, clip_skip: int, max_token_length: int
) -> list[Image.Image]:
    """One picture a prompt, with whatever is injected into the model; the same seed gives the same start noise."""
    name, extra = SAMPLERS[sampler]
    scheduler = getattr(diffusers, name).from_config(model.scheduler.config, **extra)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=model.vae, text_encoder=model.text_encoder, tokenizer=model.tokenizer, unet=model.unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    device = model.unet.device
    pictures = []
    for prompt in prompts:
        tokens = tokenize(model.tokenizer, [prompt.text, prompt.negative], max_token_length).to(device)
        states = encode_text(model.text_encoder, tokens, clip_skip).to(model.unet.dtype)
        pictures += pipeline(
            prompt_embeds=states[:1], negative_prompt_embeds=states[1:], width=prompt.width, height=prompt.height,
            guidance_scale=prompt.guidance, num_inference_steps=prompt.steps,
            generator=torch.Generator().manual_seed(prompt.seed),
        ).images  # fmt: skip
    return pictures
