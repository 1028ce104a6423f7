"""Answers on disk: shards of statistics, written whole, found again by picture, so a killed run resumes."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from library.errors import InputError
from library.tensor_files import private_folder, read_tensors, state_fingerprint, write_tensors

logger = logging.getLogger(__name__)
AnswerArrays = dict[str, NDArray[np.float32]]


def cache_key(*parts: str) -> str:
    """Folder name of a store: everything that shapes its numbers goes in."""
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:32]


def checksum_of(pictures: str, records: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over a shard's pictures and answers."""
    return hashlib.sha256(f"{pictures}\x1f{state_fingerprint(records)}".encode()).hexdigest()


def pictures_of(shard: Path) -> list[str]:
    """The pictures of a shard, in order; shards of earlier versions have no checksum.

    Raises:
        InputError: a shard that differs from its checksum, or does not hold a row of each picture.
    """
    tensors, metadata = read_tensors(shard)
    if metadata.get("checksum", "") not in ("", checksum_of(metadata.get("pictures", ""), tensors)):
        raise InputError(f"'{shard}' differs from its checksum")
    pictures = metadata.get("pictures", "").split()
    if any(value.dim() == 0 or len(value) != len(pictures) for value in tensors.values()):
        raise InputError(f"'{shard}' does not hold one row for each of its {len(pictures)} pictures")
    return pictures


class AnswerCache:
    """Statistics per picture under one key; rows are asked for in any order."""

    def __init__(self, folder: Path) -> None:
        if folder.is_symlink():  # damaged files are removed below, and never somewhere else
            raise InputError(f"'{folder}' is a link, but answers need folders of their own; remove it")
        self.folder = private_folder(folder)
        self.row_of: dict[str, tuple[Path, int]] = {}
        for shard in sorted(self.folder.glob("*.safetensors")):
            try:
                pictures = pictures_of(shard)
            except InputError:
                logger.warning("the answers in '%s' are damaged and are asked again", shard)
                shard.unlink()
                continue
            self._know(shard, pictures)

    def _know(self, shard: Path, pictures: Sequence[str]) -> None:
        self.row_of.update({picture: (shard, row) for row, picture in enumerate(pictures)})

    def missing(self, pictures: Sequence[str]) -> list[int]:
        """Positions of the pictures that have no record yet."""
        return [position for position, picture in enumerate(pictures) if picture not in self.row_of]

    def add(self, pictures: Sequence[str], records: Mapping[str, Tensor]) -> None:
        """Write one shard (mode 0600)."""
        names = " ".join(pictures)
        shard = self.folder / f"{hashlib.sha256(names.encode()).hexdigest()[:24]}.safetensors"
        facts = {"pictures": names, "checksum": checksum_of(names, records)}
        write_tensors(shard, records, facts, private=True)
        self._know(shard, pictures)

    def gather(self, pictures: Sequence[str]) -> AnswerArrays:
        """[n, ...] float32 arrays in the order asked. Raises: InputError when a picture was never asked."""
        unknown = self.missing(pictures)
        if unknown:
            raise InputError(
                f"{len(unknown)} of {len(pictures)} pictures have no cached answers in '{self.folder}'; "
                "run once without --scores_only"
            )
        if not pictures:
            raise InputError("no pictures to score")
        opened = {shard: read_tensors(shard)[0] for shard in {self.row_of[picture][0] for picture in pictures}}
        rows = [(opened[shard], row) for shard, row in (self.row_of[picture] for picture in pictures)]
        shapes = [{name: value.shape[1:] for name, value in tensors.items()} for tensors in opened.values()]
        if any(one != shapes[0] for one in shapes):
            raise InputError(f"the cached answers in '{self.folder}' are to different questions; delete the folder")
        return {
            name: torch.stack([tensors[name][row].float() for tensors, row in rows]).numpy()
            for name in sorted(shapes[0])
        }


def pooled_map(value: Tensor, side: int) -> Tensor:
    """[B, 4, side, side] in fp16: the map itself where it has that shape, else the mean of its cells."""
    if value.shape[-2:] == (side, side):
        return value.half()
    return torch.nn.functional.adaptive_avg_pool2d(value, side).half()
