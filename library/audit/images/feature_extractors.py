"""Feature extractors: CLIP and DINOv2 from local folders, Inception for FID and KID, each named by layer."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from library.audit.images import perceptual
from library.audit.images.inception import LAYERS, load_inception
from library.diffusion.hub import without_network
from library.diffusion.vae import decoder_of
from library.errors import InputError
from library.incoming.files import MOST_SETTINGS, file_hash, is_folder
from library.incoming.foreign import foreign_reader
from library.incoming.texts import read_json

ENCODERS = ("clip", "dinov2")  # model types


@dataclass(frozen=True)
class ExtractorRules:
    """Weights that the user has: folders or files."""

    image_encoder: str | None
    clip_model: str | None
    inception_weights: str | None


@dataclass(frozen=True)
class Encoder:
    """A network that turns pictures into features."""

    name: str  # network and layer, for people
    fingerprint: str
    features: Callable[[Tensor], Tensor]  # pixels [B, 3, H, W] in 0..1 -> unit vectors [B, F]
    agreement: Callable[[Tensor, Sequence[str]], Tensor] | None  # pixels and captions -> cosines [B]; CLIP alone


@dataclass(frozen=True)
class FeatureExtractors:
    """The feature extractors of one audit. ``None`` where no weights were given."""

    decode: Callable[[Tensor], Tensor]  # latents [B, 4, h, w] -> pixels [B, 3, H, W] in 0..1
    encoder: Encoder | None  # of the black-box attack
    clip: Encoder | None  # of prompt-image agreement
    inception: Callable[[Tensor], dict[str, Tensor]] | None  # pixels in 0..1 -> features by layer
    inception_name: str
    perceptual: Callable[[Tensor], Tensor] | None = None  # pixels in 0..1 -> features; where its packages are installed
    perceptual_fingerprint: str = ""

    def fingerprint(self) -> str:
        """Names the networks in cache keys."""
        parts = [one.fingerprint if one else "" for one in (self.encoder, self.clip)]
        parts += [self.inception_name, self.perceptual_fingerprint]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]

    def features(self, pixels: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        """Features of pictures [B, 3, H, W] by name, and their agreement with their captions."""
        seen: dict[str, Tensor] = {}
        if self.encoder:
            seen["encoded"] = self.encoder.features(pixels)
        if self.clip and self.clip.agreement:
            seen["agreement"] = self.clip.agreement(pixels, captions)
        if self.perceptual:
            seen["perceptual"] = self.perceptual(pixels)
        if self.inception:
            seen |= {f"inception_{layer}": values for layer, values in self.inception(pixels).items()}
        return {name: values.float().cpu() for name, values in seen.items()}


def open_extractors(vae: Any, rules: ExtractorRules) -> FeatureExtractors:
    """Load the networks that the options name. Raises: InputError for a wrong folder or file."""
    device = vae.device
    encoder = open_encoder(rules.image_encoder, "image_encoder", device) if rules.image_encoder else None
    clip = open_encoder(rules.clip_model, "clip_model", device) if rules.clip_model else None
    if clip and clip.agreement is None:
        raise InputError(f"clip_model '{rules.clip_model}' is not a CLIP model; it must encode captions too")
    decode = decoder_of(vae)
    digest, sight = perceptual.open_perceptual(device) if perceptual.is_installed() else ("", None)
    if not rules.inception_weights:
        return FeatureExtractors(decode, encoder, clip, None, "", sight, digest)
    network = load_inception(Path(rules.inception_weights), device)

    @torch.no_grad()
    def inception(pixels: Tensor) -> dict[str, Tensor]:
        return network((pixels.clamp(0, 1) * 255).round().to(device))

    weights = file_hash(rules.inception_weights, f"inception_weights '{rules.inception_weights}'")[:12]
    return FeatureExtractors(decode, encoder, clip, inception, f"Inception {weights}", sight, digest)


def layer_name(layer: str) -> str:
    """An Inception layer in words."""
    return f"{layer}-d, {LAYERS[layer]}"


def open_encoder(path: str, option_name: str, device: torch.device) -> Encoder:
    """CLIP or DINOv2 from a transformers folder or the local hub cache; nothing is fetched.

    Raises:
        InputError: no such folder, another kind of model, no safetensors, or no preprocessor_config.json.
    """
    folder = local_folder(path, option_name)
    try:
        settings = [folder / name for name in ("config.json", "preprocessor_config.json")]
        config, sight = (read_json(file, f"'{file}'", MOST_SETTINGS, huge=True) for file in settings)
        with foreign_reader("a setting"):
            kind, prepare = config["model_type"], preparation(sight)
    except InputError as error:
        raise InputError(
            f"{option_name} '{path}' needs config.json and preprocessor_config.json as transformers "
            f"writes them: {error.messages[0]}"
        ) from error
    if kind not in ENCODERS:
        raise InputError(f"{option_name} '{path}' is a '{kind}'; use one of {', '.join(ENCODERS)}")
    with foreign_reader(f"{option_name} '{path}' cannot be opened: its model"), without_network():
        model = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    model = model.to(device).eval().requires_grad_(False)
    weights = sorted(folder.glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(bytes.fromhex(file_hash(file, f"'{file}'")) for file in weights)).hexdigest()

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        ready = prepare(pixels).to(device)
        seen = model.get_image_features(pixel_values=ready) if kind == "clip" else model(pixel_values=ready)
        return torch.nn.functional.normalize(seen.pooler_output.float(), dim=1)

    name = f"CLIP {digest[:12]}, image projection" if kind == "clip" else f"DINOv2 {digest[:12]}, class token"
    return Encoder(name, digest, features, clip_agreement(model, folder, features, device) if kind == "clip" else None)


def clip_agreement(
    model: Any, folder: Path, features: Callable[[Tensor], Tensor], device: torch.device
) -> Callable[[Tensor, Sequence[str]], Tensor]:
    """Cosine of each picture with its caption (arXiv 2104.08718, without the factor 2.5); 77 tokens are read."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    longest = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def agreement(pixels: Tensor, captions: Sequence[str]) -> Tensor:
        words = tokenizer(list(captions), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        said = model.get_text_features(**words.to(device)).pooler_output.float()
        return (features(pixels) * torch.nn.functional.normalize(said, dim=1)).sum(1)

    return agreement


def preparation(sight: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """Turn pixels in 0..1 into the network's input: resize the shortest side (bicubic), centre crop, normalise."""
    size, crop = sight["size"], sight.get("crop_size", sight["size"])
    shortest = int(size.get("shortest_edge") or size["height"]) if isinstance(size, dict) else int(size)
    side = int(crop.get("height") or crop["shortest_edge"]) if isinstance(crop, dict) else int(crop)
    mean, deviation = (torch.tensor(sight[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))

    def prepare(pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        scale = max(shortest, side) / min(height, width)
        wanted = (max(side, round(height * scale)), max(side, round(width * scale)))
        resized = torch.nn.functional.interpolate(
            pixels.float(), wanted, mode="bicubic", align_corners=False, antialias=True
        )
        top, left = (wanted[0] - side) // 2, (wanted[1] - side) // 2
        cropped = resized[:, :, top : top + side, left : left + side].clamp(0, 1)
        return (cropped - mean.to(pixels.device)) / deviation.to(pixels.device)

    return prepare


def local_folder(path: str, option_name: str) -> Path:
    """The folder itself, or the folder of a hub id in this machine's cache."""
    if is_folder(path):
        return Path(path)
    try:
        return Path(huggingface_hub.snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise InputError(
            f"{option_name} '{path}' is not a folder here and not in the hub's cache; fetch it first, e.g. "
            f"hf download {path}"
        ) from error
