"""Hugging Face datasets as files: the pictures' own bytes in the cache, captions in a private file beside them."""

import hashlib
import json
import logging
import os
import re
import socket
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from library.data.folders import caption_lines
from library.errors import Faults, InputError, shortened
from library.incoming.files import check_regular, is_file, is_folder
from library.incoming.foreign import foreign_reader
from library.tensor_files import private_folder, write_whole

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
CONNECT_SECONDS = 5.0
SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"BM": ".bmp"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetSource:
    """A dataset and its columns."""

    name: str
    config_name: str | None
    split: str
    image_column: str
    caption_column: str
    group_column: str | None


def fetch_dataset(source: DatasetSource, cache_dir: Path, *, every_line: bool) -> Path:
    """Write a dataset's pictures and captions to files; returns the metadata file that names them.

    Pictures keep their bytes and are not encoded again; those in a local folder stay there.
    Folders are 0700, files 0600.

    Args:
        every_line: keep every line of a caption, for wildcards.

    Raises:
        InputError: a dataset that cannot be opened; missing columns; rows without picture or caption.
    """
    place = private_folder(private_folder(cache_dir) / "datasets")
    rows, columns = _open(source, place)
    wanted = {"image_column": source.image_column, "caption_column": source.caption_column}
    if source.group_column:
        wanted["group_column"] = source.group_column
    faults = Faults()
    for option, name in wanted.items():
        if name not in columns:
            faults.add(f"{option}: dataset_name '{source.name}' has no column '{name}'; it has {shortened(columns)}")
    faults.raise_if_any()
    fingerprint = hashlib.sha256(json.dumps([_place(source.name), *astuple(source)[1:]]).encode()).hexdigest()[:32]
    folder = private_folder(place / fingerprint)
    entries: list[dict[str, Any]] = []
    without: dict[str, list[str]] = {"picture": [], "caption": []}
    for number, row in enumerate(_rows(rows, source)):
        path = _laid_down(row[source.image_column], folder)
        text = row[source.caption_column]
        caption = caption_lines(text, every_line) if isinstance(text, str) else ""
        if path is None or not caption:
            without["picture" if path is None else "caption"].append(str(number))
            continue
        group = None if source.group_column is None else row[source.group_column]
        entries.append(
            {"image_path": str(path), "caption": caption, "group": None if group is None else f"group {group}"}
        )
    for what, numbers in without.items():
        if numbers:
            faults.add(
                f"dataset_name '{source.name}': {len(numbers)} rows have no {what}: rows {shortened(numbers)}; remove "
                "or complete them"
            )
    faults.raise_if_any()
    metadata = folder / f"captions-{'all' if every_line else 'first'}-lines.jsonl"
    write_whole(metadata, "".join(json.dumps(entry) + "\n" for entry in entries), private=True)
    return metadata


def _rows(rows: Iterable[dict[str, Any]], source: DatasetSource) -> Iterator[dict[str, Any]]:
    """The rows, read one by one. Raises: InputError where the file is damaged."""
    with foreign_reader(f"dataset_name '{source.name}'", "fetch it again"):
        yield from rows


def _open(source: DatasetSource, cache: Path) -> tuple[Iterable[dict[str, Any]], list[str]]:
    """Rows with pictures that are not decoded, and the column names. Local files are read without a copy."""
    import datasets  # slow to import

    path = Path(source.name).expanduser()
    try:
        if os.path.exists(path):
            locks = private_folder(cache / ".locks")
            rows = _local(path, source.split, locks)
            for lock in locks.rglob("*.lock"):
                lock.chmod(0o600)  # its name contains the dataset's path
        elif HUB_ID.fullmatch(source.name):
            with offline_where_unreachable():
                rows = datasets.load_dataset(source.name, source.config_name, split=source.split)
        else:
            raise InputError(f"dataset_name '{source.name}' is neither a file, a folder, nor a hub id (owner/name)")
        if source.image_column in (rows.features or {}) and isinstance(
            rows.features[source.image_column], datasets.Image
        ):
            rows = rows.cast_column(source.image_column, datasets.Image(decode=False))
        columns = list(rows.features or next(iter(rows), {}))
    except InputError:
        raise
    except Exception as error:  # of datasets, pyarrow, the hub: the reason is told
        raise InputError(_explained(source, path, error)) from error
    return rows, columns


@contextmanager
def offline_where_unreachable() -> Iterator[None]:
    """Where the hub does not answer, datasets looks into its cache at once, instead of after half a minute of retries.

    Behind a proxy nothing is tried: there the hub's name need not be known here.
    """
    import datasets
    import huggingface_hub

    host = urlparse(huggingface_hub.constants.ENDPOINT)
    if datasets.config.HF_HUB_OFFLINE or urllib.request.getproxies() or answers(host.hostname or "", host.port or 443):
        yield
        return
    logger.warning("%s does not answer; only datasets that are in the local cache can be opened", host.hostname)
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def answers(host: str, port: int) -> bool:
    """Whether a machine takes connections."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _local(path: Path, split: str, cache: Path) -> Any:
    """A parquet file, a folder of parquet files, or an imagefolder; streamed; ``cache`` gets only lock files."""
    import datasets

    files = sorted(path.rglob("*.parquet")) if is_folder(path) else [path]
    for file in files:
        check_regular(file, f"dataset_name '{file}'")
    if is_file(path) and path.suffix.lower() != ".parquet":
        raise InputError(f"dataset_name '{path}' must be a parquet file, a folder, or a hub id")
    if files:
        chosen = [str(file) for file in _of_split(files, split)]
        return datasets.load_dataset(
            "parquet", data_files={split: chosen}, split=split, streaming=True, cache_dir=str(cache)
        )
    return datasets.load_dataset("imagefolder", data_dir=str(path), split=split, streaming=True, cache_dir=str(cache))


def _of_split(files: list[Path], split: str) -> list[Path]:
    """The parquet files of a split by their names (``train-00000-of-00002.parquet``); all if no name has a split.

    Raises:
        InputError: files whose names have only other splits.
    """
    names = {file: re.split(r"[-_.]", file.stem)[0] for file in files}
    chosen = [file for file in files if names[file] == split]
    others = sorted({name for name in names.values() if name in ("train", "test", "validation", "val")})
    if not chosen and others and len(files) > 1:
        raise InputError(f"dataset_split '{split}' has no parquet file here; use one of {shortened(others)}")
    return chosen or files


def _explained(source: DatasetSource, path: Path, error: Exception) -> str:
    """The reason why a dataset cannot be opened, and the way out."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if os.path.exists(path):
        return f"dataset_name '{source.name}' cannot be read as a dataset (split '{source.split}'): {reason}"
    return (
        f"dataset_name '{source.name}' cannot be fetched from the hub: {reason}; check the name, the network "
        "(HF_HUB_OFFLINE), dataset_config_name and dataset_split, or download it and give the local parquet file or "
        "folder"
    )


def _place(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if os.path.exists(path) else name


def _laid_down(value: Any, folder: Path) -> Path | None:
    """The file of one picture: its local file, or its bytes named by their hash; None without a picture."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return Path(value).resolve() if is_file(value) else None
    if not isinstance(value, bytes) or not value:
        return None
    ending = next((ending for start, ending in SIGNATURES.items() if value.startswith(start)), ".png")
    path = folder / f"{hashlib.sha256(value).hexdigest()}{ending}"
    if not path.is_file():
        write_whole(path, value, private=True)
    return path
