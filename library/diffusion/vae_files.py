"""Opens a VAE that replaces the base model's own: from a folder, a VAE file, a whole checkpoint, or a hub id."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from library.diffusion import hub
from library.diffusion.diffusers_folder import read_part
from library.diffusion.families.family import VAE_PREFIX
from library.diffusion.latent_diffusion import latent_factor
from library.diffusion.weight_files import file_hashes, fill, folder_fingerprint, read_checkpoint
from library.errors import Faults, InputError, shortened
from library.incoming.files import is_file, is_folder
from library.incoming.foreign import foreign_reader

PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def open_vae(name: str, own: Any, latent_channels: int) -> tuple[Any, str]:
    """A VAE in fp32 whose latents the UNet can read, and the SHA-256 (hex) of its weights.

    Args:
        name: path or hub id.
        own: the base model's VAE; its dimensions apply to a file, which states none.
        latent_channels: number that the UNet takes.

    Raises:
        InputError: a file without a VAE, or a VAE of other dimensions or of another latent space (SDXL's).
    """
    place = hub.fetch(name, "vae", hub.VAE) if hub.is_hub_id(name) else Path(name)
    if is_folder(place):
        vae, fingerprint = _from_folder(place)
    elif is_file(place):
        vae, fingerprint = _from_file(place, own, latent_channels), file_hashes(place)["ss_new_sd_model_hash"]
    else:
        raise InputError(hub.missing("vae", name))
    _check_space(name, vae, own, latent_channels)
    return vae, fingerprint


def _from_folder(folder: Path) -> tuple[Any, str]:
    """The VAE of a folder: the folder of a VAE, or of a whole model."""
    part = "." if is_file(folder / "config.json") else "vae"
    if not is_file(folder / part / "config.json"):
        raise InputError(f"vae '{folder}' has neither a config.json nor a folder vae; give the VAE's folder")
    faults = Faults()
    vae = read_part(AutoencoderKL, folder / part, torch.float32, faults)
    faults.raise_if_any()
    return vae, folder_fingerprint(folder, (part,))


def _from_file(file: Path, own: Any, latent_channels: int) -> Any:
    """The VAE of a file: original names with or without ``first_stage_model.``, or diffusers' names."""
    tensors = vae_tensors(file, read_checkpoint(file))
    last = tensors.get("encoder.conv_out.weight")
    if last is not None and last.dim() and last.shape[0] != 2 * latent_channels:  # mean and log variance
        raise InputError(_other_channels(str(file), last.shape[0] // 2, latent_channels))
    if not any(name.startswith("encoder.down_blocks.") for name in tensors):
        try:
            with foreign_reader(f"vae '{file}'", "fetch it again"):
                tensors = convert_ldm_vae_checkpoint(dict(tensors), config=dict(own.config))
        except InputError as error:
            if isinstance(error.__cause__, KeyError):
                raise InputError(f"vae '{file}' lacks {error.__cause__} and possibly more; fetch it again") from error
            raise
    vae, faults = AutoencoderKL.from_config(own.config), Faults()
    fill(vae, tensors, f"vae '{file}'", faults)
    faults.raise_if_any()
    return vae.float()


def vae_tensors(file: Path, checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VAE's tensors of a file, without prefix, losses and EMA copies of its training."""
    prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in checkpoint) else ""
    tensors = {
        name.removeprefix(prefix): value
        for name, value in checkpoint.items()
        if name.startswith(tuple(f"{prefix}{part}" for part in PARTS))
    }
    if not any(name.startswith("encoder.") for name in tensors):
        raise InputError(f"vae '{file}' does not hold a VAE; its first tensors are {shortened(sorted(checkpoint), 3)}")
    if not any(name.startswith("encoder.down_blocks.") for name in tensors):
        return tensors
    for old, new in OLD_ATTENTION.items():  # diffusers' names before its 0.15
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    return tensors


def _check_space(name: str, vae: Any, own: Any, latent_channels: int) -> None:
    """Raises: InputError when the VAE's latents are not those that the UNet was trained on."""
    if vae.config.latent_channels != latent_channels:
        raise InputError(_other_channels(name, vae.config.latent_channels, latent_channels))
    if latent_factor(vae) != latent_factor(own):
        raise InputError(
            f"vae '{name}' reduces sides by {latent_factor(vae)}, the base model's own by {latent_factor(own)}; "
            "give a VAE of the same family"
        )
    if abs(vae.config.scaling_factor - own.config.scaling_factor) > 1e-6:
        raise InputError(
            f"vae '{name}' scales latents by {vae.config.scaling_factor}, the base model's own by "
            f"{own.config.scaling_factor}: it belongs to another family (SDXL's have 0.13025); give one of the same"
        )


def _other_channels(name: str, found: int, wanted: int) -> str:
    return f"vae '{name}' makes latents of {found} channels, the UNet takes {wanted}; give an SD 1.x / 2.x VAE"
