"""The model as the audit asks it: noise predictions and text states, with an adapter that can be switched."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from library.audit.targets.lora_runs import Run
from library.diffusion.conditioning import Conditioning
from library.diffusion.latent_diffusion import LatentDiffusion, has_bf16
from library.diffusion.model_files import ModelRules, open_base
from library.diffusion.text import read_captions
from library.errors import InputError
from library.lora_files.families import check_width
from library.lora_files.lora_file import kinds_of
from library.rules import pick
from networks import adapted_layers, base_weights, lora
from networks.lora_targets import named_layers, shaped_like_layers
from networks.per_sample_gradients import AdapterLayer, ReadableLayer

logger = logging.getLogger(__name__)
TEXT_STATES = ("clip_skip", "max_token_length", "weighted_captions")  # options that shape the text states


@dataclass(frozen=True)
class AuditedModel:
    """A model with an adapter that can be switched, whatever trainer made it.

    Args:
        predict_noise: (noised latents [B, 4, h, w], timesteps [B], conditions of B rows) -> noise [B, 4, h, w].
        encode_text: captions -> conditions, still without a framing; the adapter of the text encoder counts.
        switch: "on" = the adapter under audit, "off" = the base alone, "fresh" = an untrained adapter of its shape.
    """

    predict_noise: Callable[[Tensor, Tensor, Conditioning], Tensor]
    encode_text: Callable[[Sequence[str]], Conditioning]
    switch: Callable[[str], None]
    layers: Sequence[ReadableLayer]
    alphas_cumprod: Tensor  # [steps] on the CPU
    device: torch.device

    def alpha_bar(self, timestep: int) -> float:
        """Share of signal in z_t; the clean latent itself is node 0 of a chain and has 1."""
        return float(self.alphas_cumprod[timestep])


def noised(latents: Tensor, noise: Tensor, alpha_bar: float) -> Tensor:
    """z_t = sqrt(a) z + sqrt(1 - a) eps."""
    return alpha_bar**0.5 * latents + (1 - alpha_bar) ** 0.5 * noise


def noise_of_velocity(velocity: Tensor, latents: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """eps = sqrt(a) v + sqrt(1 - a) z_t, [B, 4, h, w]: the noise that a predicted velocity stands for (2202.00512)."""
    alpha = alphas_cumprod.to(latents.device)[timesteps][:, None, None, None]
    return alpha.sqrt() * velocity + (1 - alpha).sqrt() * latents


def moved_along(latents: Tensor, prediction: Tensor, alpha_from: float, alpha_to: float) -> Tensor:
    """Deterministic DDIM step from one share of signal to another with a given noise prediction."""
    clean = (latents - (1 - alpha_from) ** 0.5 * prediction) / alpha_from**0.5
    return noised(clean, prediction, alpha_to)


def precision_of(device: torch.device, asked: str | None) -> torch.dtype | None:
    """What a model on this device computes in under autocast; None is fp32.

    Args:
        asked: the option mixed_precision where it was given; None: bf16 on a GPU that computes in it itself.

    Raises:
        InputError: fp16 without a GPU.
    """
    if asked is None:
        if device.type == "cuda" and not has_bf16(device):
            logger.info("this GPU does not compute in bf16 itself, so fp32 is used; --mixed_precision fp16 is faster")
        return torch.bfloat16 if has_bf16(device) else None
    if asked == "fp16" and device.type != "cuda":
        raise InputError('mixed_precision fp16 needs a CUDA GPU, which this machine does not have; use "bf16" or "no"')
    return {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[asked]


def open_model(settings: Mapping[str, Any]) -> LatentDiffusion:
    """The base model of a training, on the GPU where there is one.

    Args:
        settings: options of the training: base, VAE, target and noise schedule are opened as they were trained with.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = open_base(pick(settings, ModelRules))
    model.prepare(device, full_precision_vae=True, gradient_checkpointing=False)
    return model


def opened_base(settings: Mapping[str, Any]) -> LatentDiffusion:
    """The base as the training had it, with its base_weights merged."""
    model = open_model(settings)
    base_weights.merge_base_weights(model, settings["base_weights"], settings["base_weights_multiplier"])
    return model


def with_adapter(
    run: Run, model: LatentDiffusion, weights: dict[str, Tensor], precision: torch.dtype | None
) -> AuditedModel:
    """Put a LoRA into the model, switchable between on, off and fresh (an untrained one of its shape).

    Args:
        run: gives the file for messages, and the settings of the text states.
        weights: the LoRA's tensors under kohya's names.
        precision: of ``precision_of``.
    """
    # The down factors of the untrained adapter. The seed is not a stream: cached answers depend on it
    torch.manual_seed(0)
    check_width(run.lora, weights, model.unet.config.cross_attention_dim, model.family.name)
    weights = shaped_like_layers(weights, named_layers(model.unet, model.text_encoder))
    network, layers = _injected(run.lora, model, weights)
    network.to(next(model.unet.parameters()).device).requires_grad_(True)
    text_states = {name: run.settings[name] for name in TEXT_STATES}
    return audited_model_of(model, layers, switch_of(network, weights), **text_states, precision=precision)


def _injected(file: Path, model: LatentDiffusion, weights: dict[str, Tensor]) -> tuple[Any, Sequence[ReadableLayer]]:
    """An untrained network of the LoRA's shape in the model, and the layers whose gradients can be read.

    LoRA and LoCon are the trainer's own modules; every other kind is built from its factors.
    """
    if kinds_of(weights) == {"LoRA"}:
        parts = (model.vae, model.text_encoder, model.unet)
        network, _ = lora.create_network_from_weights(1.0, file, *parts, weights)
        network.apply_to(model.text_encoder, model.unet, True, True)
        return network, [AdapterLayer(one.lora_name, one.lora_down, one.lora_up) for one in network.modules_of_both()]
    built = adapted_layers.untrained_network(file, model.unet, model.text_encoder, weights)
    built.apply_to()
    return built, built.layers


def switch_of(network: Any, weights: Mapping[str, Tensor]) -> Callable[[str], None]:
    """A function that turns a network on or off, or back to its untrained state; it is injected and not yet filled.

    Args:
        network: has ``set_multiplier``, ``state_dict`` and ``load_state_dict``; its up factors are still zero.
    """
    untrained = {name: value.clone() for name, value in network.state_dict().items()}

    def switch(state: str) -> None:
        network.set_multiplier(0.0 if state == "off" else 1.0)
        network.load_state_dict(untrained if state == "fresh" else weights)

    return switch


def audited_model_of(
    model: LatentDiffusion,
    layers: Sequence[ReadableLayer],
    switch: Callable[[str], None],
    *,
    clip_skip: int,
    max_token_length: int,
    weighted_captions: bool,
    precision: torch.dtype | None,
) -> AuditedModel:
    """Wrap a loaded model, on the device it lies on; velocity predictions are turned into noise.

    Args:
        weighted_captions: brackets in captions are weights, as the training read them.
        precision: of ``precision_of``; the statistics are taken in fp32 either way.
    """
    device = next(model.unet.parameters()).device
    alphas = model.scheduler.alphas_cumprod.float().cpu()
    velocity = model.scheduler.config.prediction_type == "v_prediction"

    def predict_noise(latents: Tensor, timesteps: Tensor, states: Conditioning) -> Tensor:
        with torch.autocast(device.type, precision, enabled=precision is not None):
            prediction = states.cast(latents.dtype).predicted(model.unet, latents, timesteps).float()
        return noise_of_velocity(prediction, latents, alphas, timesteps) if velocity else prediction

    def states_of(captions: Sequence[str]) -> Conditioning:
        tokens, weights = read_captions(model.tokenizer, list(captions), max_token_length, weighted=weighted_captions)
        with torch.autocast(device.type, precision, enabled=precision is not None):
            return model.family.encode(model.text_encoder, tokens.to(device), clip_skip, weights)

    return AuditedModel(predict_noise, states_of, switch, layers, alphas, device)
