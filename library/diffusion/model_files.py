"""Opens a latent diffusion model from a diffusers folder, a single file, or a hub id."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from diffusers import DDPMScheduler

from library.diffusion import hub
from library.diffusion.diffusers_folder import check_kind, open_folder
from library.diffusion.families.sdxl import SDXL
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.single_file import open_single_file
from library.diffusion.vae_files import open_vae
from library.errors import Faults, InputError
from library.incoming.files import is_file, is_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelRules:
    """Options about the base model."""

    pretrained_model_name_or_path: str
    v2: bool
    sdxl: bool
    v_parameterization: bool
    vae: str | None
    tokenizer_cache_dir: str | None
    clip_skip: int
    zero_terminal_snr: bool


def open_base(
    rules: ModelRules, dtype: torch.dtype = torch.float32, config_folder: Path | None = None
) -> LatentDiffusion:
    """Open the base model of the options, and check them against it.

    Args:
        dtype: of the frozen UNet and text encoder; the VAE stays in fp32 until ``prepare``.
        config_folder: dimensions, schedule and tokenizer of a single file; None: those shipped for its family.

    Raises:
        InputError: a model that cannot be opened; all options that contradict the model.
    """
    path = rules.pretrained_model_name_or_path
    model = load_model(path, dtype, config_folder, tokenizer_cache_dir=rules.tokenizer_cache_dir)
    faults = Faults()
    _check_family(model, rules, faults)
    model.scheduler = _schedule(model, rules, faults)
    layers = model.text_encoders()[0].config.num_hidden_layers
    if not model.family.reads_clip_skip and rules.clip_skip > 1:
        logger.info(
            "clip_skip has no effect here: %s takes the last but one states of its text encoders, whatever it says",
            model.family.name,
        )
    elif rules.clip_skip > layers:
        faults.add(
            f"clip_skip must be at most {layers}, the number of the text encoder's layers, got {rules.clip_skip}"
        )
    if rules.vae:
        faults.attempt(_replace_vae, model, rules.vae)
    faults.raise_if_any()
    return model


def _replace_vae(model: LatentDiffusion, vae: str) -> None:
    """Put another VAE in; it joins the model's fingerprint."""
    model.vae, of_vae = open_vae(vae, model.vae, model.unet.config.in_channels)
    model.vae.requires_grad_(False).eval()
    model.fingerprint = hashlib.sha256(f"{model.fingerprint} vae {of_vae}".encode()).hexdigest()


def load_model(
    path: str,
    dtype: torch.dtype = torch.float32,
    config_folder: Path | None = None,
    tokenizer_cache_dir: str | None = None,
) -> LatentDiffusion:
    """Open a model as its files describe it: everything frozen, on the CPU, in evaluation mode.

    Args:
        path: diffusers folder; .safetensors / .ckpt / .pt in the original layout; hub id.
        dtype: of the frozen UNet and text encoder; the VAE is in fp32.
        config_folder: dimensions, schedule and tokenizer of a single file; None: those shipped for its family.

    Raises:
        InputError: missing, unexpected or truncated parts, by name; a pickle that could run code.
    """
    transformers.utils.logging.disable_progress_bar()
    place = Path(path)
    if tokenizer_cache_dir and not hub.is_hub_id(path):
        logger.info("tokenizer_cache_dir has no effect here: '%s' is not a hub id, so no tokenizer is fetched", path)
    if is_folder(place):
        model = open_folder(place, dtype)
    elif is_file(place):
        model = open_single_file(place, dtype, config_folder)
    elif hub.is_hub_id(path):
        model = _open_from_hub(path, dtype, tokenizer_cache_dir)
    else:
        raise InputError(hub.missing("pretrained_model_name_or_path", path))
    for part in (*model.text_encoders(), model.vae, model.unet):
        part.requires_grad_(False)
        part.eval()
    return model


def _open_from_hub(name: str, dtype: torch.dtype, tokenizer_cache_dir: str | None) -> LatentDiffusion:
    """Fetch a model and open it; settings come first, so that a model of a wrong kind is not fetched as a whole."""
    option = "pretrained_model_name_or_path"
    has_tokenizer = tokenizer_cache_dir is not None and hub.kept_tokenizer(name, tokenizer_cache_dir).is_dir()
    texts = hub.SETTINGS if has_tokenizer else (*hub.SETTINGS, *hub.TOKENIZER)
    family = check_kind(hub.fetch(name, option, texts))
    more = hub.SECOND_TEXT if len(family.texts) > 1 else ()
    folder = hub.fetch(name, option, (*texts, *hub.WEIGHTS, *more))
    return open_folder(folder, dtype, hub.tokenizer_of(name, folder, tokenizer_cache_dir))


def _check_family(model: LatentDiffusion, rules: ModelRules, faults: Faults) -> None:
    path, family = rules.pretrained_model_name_or_path, model.family
    if family.v2 and not rules.v2:
        faults.add(f"'{path}' is an {family.name} model, but v2 is not set; add --v2")
    for flag, is_set, is_so in (("v2", rules.v2, family.v2), ("sdxl", rules.sdxl, family is SDXL)):
        if is_set and not is_so:
            faults.add(f"{flag} is set, but '{path}' is an {family.name} model; leave --{flag} out")


def _schedule(model: LatentDiffusion, rules: ModelRules, faults: Faults) -> DDPMScheduler:
    """The noise schedule with the target of the options, rescaled to zero SNR if they say so.

    A diffusers folder states its target, most single files do not.
    """
    path, wanted = rules.pretrained_model_name_or_path, "v_prediction" if rules.v_parameterization else "epsilon"
    if not model.states_its_target and (model.family.velocity_version or rules.v_parameterization):
        target = "velocity (v_parameterization is set)" if rules.v_parameterization else "noise, as the base model has"
        velocity_models = "768-v models need" if model.family.v2 else "models tuned to velocity need"
        logger.info(
            "'%s' does not state its target; read as %s; %s --v_parameterization", path, target, velocity_models
        )
    elif model.states_its_target and model.predicts_velocity() and not rules.v_parameterization:
        faults.add(f"'{path}' predicts velocity, but v_parameterization is not set; add --v_parameterization")
    elif model.states_its_target and rules.v_parameterization and not model.predicts_velocity():
        faults.add(f"v_parameterization is set, but '{path}' predicts noise; leave --v_parameterization out")
    changes: dict[str, object] = {"prediction_type": wanted}
    if rules.zero_terminal_snr:  # arXiv 2305.08891
        if not rules.v_parameterization:
            faults.add(
                "zero_terminal_snr is for velocity models: in the last step, the input of a noise model is already its "
                "target; leave it out, or use a base model that predicts velocity (v_parameterization)"
            )
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return DDPMScheduler.from_config(model.scheduler.config, **changes)
