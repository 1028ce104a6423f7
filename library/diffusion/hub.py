"""Models named by hub id (owner/name): fetches the needed files into the hub's cache, from where they work offline.

huggingface_hub reads HF_HUB_OFFLINE and the cache's folder (HF_HOME) itself.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError

from library.diffusion.weight_files import first_line
from library.errors import InputError, did_you_mean, shortened

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
SETTINGS = (
    "model_index.json", "unet/*.json", "vae/*.json", "text_encoder/*.json", "text_encoder_2/*.json", "scheduler/*.json",
)  # fmt: skip
TOKENIZER = ("tokenizer/*.json", "tokenizer/*.txt")
WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model-*-of-*.safetensors",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
    "text_encoder/model-*-of-*.safetensors",
)  # fmt: skip
SECOND_TEXT = (
    "tokenizer_2/*.json", "tokenizer_2/*.txt", "text_encoder_2/model.safetensors",
    "text_encoder_2/model-*-of-*.safetensors",
)  # fmt: skip
VAE = (
    "config.json", "diffusion_pytorch_model.safetensors",
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository of the hub: it has the form owner/name, and nothing says that it is a path.

    What ends like a model file is a path.
    """
    if os.path.exists(name) or Path(name).suffix.lower() in FILE_ENDINGS:
        return False
    return HUB_ID.fullmatch(name) is not None


def missing(option_name: str, name: str) -> str:
    """What is said of a model that is not here: whether a file is missing or a folder, and what lies near its place."""
    place = Path(name)
    said = f"{option_name}: the {'file' if place.suffix.lower() in FILE_ENDINGS else 'folder'} '{name}' does not exist"
    if not place.parent.is_dir():
        return f"{said} (nor does '{place.parent}')"
    beside = [one.name for one in sorted(place.parent.iterdir()) if one.is_dir() or one.suffix.lower() in FILE_ENDINGS]
    near = did_you_mean(place.name, beside)
    return said + (near or (f"; '{place.parent}' holds {shortened(beside, 5)}" if beside else ""))


def fetch(name: str, option_name: str, patterns: Sequence[str]) -> Path:
    """The folder of a repository's files in the local cache; missing files are fetched first.

    Raises:
        InputError: the reason from the hub or the cache, and the way out.
    """
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except (OSError, ValueError, EntryNotFoundError, HTTPError) as error:
        raise InputError(
            f"{missing(option_name, name)}, and it cannot be opened as a hub id: {_reason(error)}. "
            "Download the repository by hand (diffusers layout, .safetensors) and give the folder's path"
        ) from error


@contextmanager
def without_network() -> Iterator[None]:
    """Files of a local folder are read without a look at the hub, whatever they make the libraries ask for."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def tokenizer_of(name: str, folder: Path, tokenizer_cache_dir: str | None) -> Path:
    """The tokenizer's folder of a fetched model, copied to ``tokenizer_cache_dir`` under the repository's name.

    Args:
        folder: of the fetched model.
        tokenizer_cache_dir: None leaves the tokenizer in that folder.
    """
    if tokenizer_cache_dir is None:
        return folder / "tokenizer"
    kept = kept_tokenizer(name, tokenizer_cache_dir)
    if not kept.is_dir() and (folder / "tokenizer").is_dir():
        _copy_whole(folder / "tokenizer", kept)
    return kept


def kept_tokenizer(name: str, tokenizer_cache_dir: str) -> Path:
    """The folder of a repository in ``tokenizer_cache_dir``, as kohya names it."""
    return Path(tokenizer_cache_dir) / name.replace("/", "_")


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a folder under a temporary name, then rename it; links of the cache are replaced by their content."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        shutil.copytree(source, temporary / "copy")
        os.replace(temporary / "copy", target)
    finally:
        shutil.rmtree(temporary)


def _reason(error: BaseException) -> str:
    if isinstance(error, LocalEntryNotFoundError):
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set, and the local cache does not have it"
        return "the hub does not answer, and the local cache does not have it"
    return first_line(error)
