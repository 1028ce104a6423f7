"""Opening a latent diffusion model from a diffusers folder or a single SD 1.x checkpoint file, without a hub."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from library.check import Faults, InputError, shortened
from library.tensor_files import read_tensors

SD15_FOLDER = Path(__file__).parent / "sd15"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."


@dataclass
class LatentDiffusion:
    """The parts of a frozen latent diffusion model, and the hashes that name its file."""

    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any
    scheduler: Any  # DDPMScheduler: the noise schedule and the prediction type
    fingerprint: str  # SHA-256 (hex) over the weight files
    file_hashes: dict[str, str]  # kohya's ss_sd_model_hash and ss_new_sd_model_hash; empty for a folder

    def latent_factor(self) -> int:
        """Pixels per latent side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """[C, h, w] of the latents for a training size (width, height) in pixels."""
        factor = self.latent_factor()
        return (self.unet.config.in_channels, size[1] // factor, size[0] // factor)

    def prepare(self, device: torch.device, *, full_precision_vae: bool, gradient_checkpointing: bool) -> None:
        """Move the parts to the device for training.

        Args:
            full_precision_vae: keep the VAE in fp32 whatever the other parts are in.
            gradient_checkpointing: recompute activations of UNet and text encoder in the backward pass.
        """
        for part in (self.text_encoder, self.vae, self.unet):
            part.to(device)
        if full_precision_vae:
            self.vae.float()
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.text_encoder.gradient_checkpointing_enable()
            self.unet.train()  # no dropout or batch statistics in either, but checkpointing asks for the mode
            self.text_encoder.train()

    def side_multiple(self) -> int:
        """Pixel sides must be multiples of this, so that the UNet's levels fit together again."""
        return self.latent_factor() * 2 ** (len(self.unet.config.block_out_channels) - 1)


def load_model(path: str, dtype: torch.dtype = torch.float32, config_folder: Path = SD15_FOLDER) -> LatentDiffusion:
    """Open a model for training: everything frozen, on the CPU, in evaluation mode.

    Args:
        path: diffusers folder, or .safetensors / .ckpt / .pt in the original SD 1.x layout.
        dtype: of the frozen weights.
        config_folder: dimensions and tokenizer for a single file.

    Raises:
        InputError: what is missing, unexpected or truncated, by name; a pickle that would run code.
    """
    transformers.utils.logging.disable_progress_bar()
    place = Path(path)
    if place.is_dir():
        model = _open_folder(place, dtype)
    elif place.is_file():
        model = _open_single_file(place, dtype, config_folder)
    else:
        raise InputError(f"pretrained_model_name_or_path '{path}' does not exist here")
    for part in (model.text_encoder, model.vae, model.unet):
        part.requires_grad_(False)
        part.eval()
    return model


def _open_folder(folder: Path, dtype: torch.dtype) -> LatentDiffusion:
    """Read a diffusers folder part by part; every part that is wrong is reported."""
    faults = Faults()
    needed = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    absent = [name for name in needed if not (folder / name).is_dir()]
    if absent:
        raise InputError(
            f"'{folder}' is no diffusers folder of a Stable Diffusion model: it has no {', '.join(absent)}"
        )
    parts: dict[str, Any] = {}
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        try:
            parts[name], report = kind.from_pretrained(
                folder / name, torch_dtype=dtype, local_files_only=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            faults.add(f"'{folder / name}' cannot be read: {_first_line(error)}")
            continue
        wrong = [key for key in report.get("missing_keys", []) if not key.endswith("position_ids")]
        surplus = [key for key in report.get("unexpected_keys", []) if not key.endswith("position_ids")]
        _compare_keys(f"'{folder / name}'", wrong, surplus, faults)
    faults.raise_if_any()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    return LatentDiffusion(
        tokenizer, parts["text_encoder"], parts["vae"], parts["unet"], scheduler, folder_fingerprint(folder), {}
    )


def _open_single_file(file: Path, dtype: torch.dtype, config_folder: Path) -> LatentDiffusion:
    """Convert an original SD 1.x file with diffusers' own key maps; every tensor must find its place."""
    checkpoint = read_checkpoint(file)
    check_kind(file, checkpoint)
    faults = Faults()
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(config_folder / "unet"))
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(config_folder / "vae"))
    text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(config_folder / "text_encoder"))
    try:
        weights = {
            "UNet": (unet, convert_ldm_unet_checkpoint(dict(checkpoint), config=dict(unet.config))),
            "VAE": (vae, convert_ldm_vae_checkpoint(dict(checkpoint), config=dict(vae.config))),
            "text encoder": (text_encoder, convert_ldm_clip_checkpoint(dict(checkpoint))),
        }
    except KeyError as error:
        raise InputError(f"'{file}' lacks {error} and perhaps more; the file is incomplete, fetch it again") from error
    for name, (part, state) in weights.items():
        _fill(part, state, f"'{file}', {name}", faults)
    faults.raise_if_any()
    for part in (unet, vae, text_encoder):
        part.to(dtype)
    tokenizer = CLIPTokenizer.from_pretrained(config_folder / "tokenizer", local_files_only=True)
    scheduler = DDPMScheduler.from_pretrained(config_folder / "scheduler", local_files_only=True)
    hashes = file_hashes(file)
    return LatentDiffusion(tokenizer, text_encoder, vae, unet, scheduler, hashes["ss_new_sd_model_hash"], hashes)


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file; a pickle is opened without running anything in it.

    Raises:
        InputError: truncated files, pickles with more in them than tensors, other endings.
    """
    if file.suffix == ".safetensors":
        return read_tensors(file)[0]
    if file.suffix not in (".ckpt", ".pt", ".pth", ".bin"):
        raise InputError(f"'{file}' is no checkpoint: its name ends neither in .safetensors nor in .ckpt")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"'{file}' was not opened: its pickle holds more than tensors and could run code on loading. Convert it to "
            ".safetensors on a machine you can lose, or get a .safetensors of it"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(f"'{file}' cannot be read ({_first_line(error)}); fetch it again") from error
    while isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise InputError(f"'{file}' holds no table of tensors, but a {type(content).__name__}")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def check_kind(file: Path, checkpoint: Mapping[str, Tensor]) -> None:
    """Say what a file is when it is no SD 1.x checkpoint, and what an incomplete one lacks.

    Raises:
        InputError: LoRA files, SD 2.x, SDXL, inpainting models, parts of models, old text-encoder names.
    """
    if any(name.startswith(("lora_unet_", "lora_te")) for name in checkpoint):
        raise InputError(f"'{file}' is a LoRA, no base model; give the checkpoint that it was trained on")
    if any(name.startswith("conditioner.embedders.") for name in checkpoint):
        raise InputError(f"'{file}' is an SDXL checkpoint; this suite trains SD 1.x")
    query = checkpoint.get(f"{UNET_PREFIX}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight")
    if query is not None and query.shape[-1] == 1024:
        raise InputError(f"'{file}' is an SD 2.x checkpoint; this suite trains SD 1.x")
    first = checkpoint.get(f"{UNET_PREFIX}input_blocks.0.0.weight")
    if first is not None and first.shape[1] == 9:
        raise InputError(f"'{file}' is an inpainting model (9 input channels); give the ordinary one")
    old_names = any(name.startswith("cond_stage_model.transformer.encoder.") for name in checkpoint)
    if old_names:
        raise InputError(
            f"'{file}' names its text encoder without 'text_model.', as very old files do; load and save "
            "it once with a current tool"
        )
    parts = {UNET_PREFIX: "UNet", VAE_PREFIX: "VAE", TEXT_PREFIX: "text encoder"}
    absent = [
        f"{part} ({prefix}*)"
        for prefix, part in parts.items()
        if not any(name.startswith(prefix) for name in checkpoint)
    ]
    if absent:
        raise InputError(
            f"'{file}' is no whole SD 1.x checkpoint: it has no {', '.join(absent)}; its first tensors are "
            f"{shortened(sorted(checkpoint), 3)}"
        )


def _fill(part: nn.Module, state: dict[str, Tensor], where: str, faults: Faults) -> None:
    """Load converted tensors into a part; names and shapes that do not fit are faults."""
    own = part.state_dict()
    if not any(name.startswith("text_model.") for name in own):
        state = {name.removeprefix("text_model."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.endswith("position_ids")}
    missing = [name for name in own if name not in state and not name.endswith("position_ids")]
    _compare_keys(where, missing, [name for name in state if name not in own], faults)
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if misshapen:
        faults.add(f"{where}: {len(misshapen)} tensors have another shape: {shortened(misshapen, 3)}")
    elif not missing:
        part.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def _compare_keys(where: str, missing: list[str], unexpected: list[str], faults: Faults) -> None:
    if missing:
        faults.add(f"{where}: {len(missing)} tensors are missing: {shortened(sorted(missing), 4)}")
    if unexpected:
        faults.add(f"{where}: {len(unexpected)} tensors are unexpected: {shortened(sorted(unexpected), 4)}")


def file_hashes(file: Path) -> dict[str, str]:
    """kohya's two names for a checkpoint: 8 hex of 64 KiB at offset 1 MiB, and the SHA-256 of the whole file."""
    with file.open("rb") as stream:
        whole = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0x100000)
        short = hashlib.sha256(stream.read(0x10000)).hexdigest()[:8]
    return {"ss_sd_model_hash": short, "ss_new_sd_model_hash": whole}


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) over the weight files of a diffusers folder, by name and content."""
    digest = hashlib.sha256()
    for name in ("text_encoder", "unet", "vae"):
        for file in sorted((folder / name).iterdir()):
            if file.suffix in (".safetensors", ".bin"):
                with file.open("rb") as stream:
                    digest.update(f"{name}/{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
