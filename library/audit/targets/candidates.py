"""From a split file to the pictures under audit: found again, checked by their pixels, encoded once."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from library.audit.targets.candidate_table import Candidates, Picture, aux_view
from library.audit.targets.lora_runs import Run
from library.data.augmentation import plain_framing, plain_pixels
from library.data.buckets import assign_buckets
from library.data.examples import Example
from library.data.latents import encoded_moments
from library.data.read_pictures import pick_rules, read_split_pictures
from library.data.split import SIDES, sealed, sides_hash
from library.data.split_file import read_split_file, warn_of_weak_split
from library.diffusion.model_files import LatentDiffusion
from library.diffusion.vae import posterior_encoder
from library.errors import Faults, InputError, shortened

Features = dict[str, Tensor]


@dataclass(frozen=True)
class CandidateSet:
    """Everybody on the split: pictures in one order, with sides and groups."""

    examples: Sequence[Example]
    candidates: Candidates
    inclusion: str
    nonmember_share: float | None  # as the split file states it
    split_hash: str
    sealed_hash: str = ""  # the same under the split's secret; empty for a file without one

    def paths(self) -> list[Path]:
        """Where the pictures lie."""
        return [example.path for example in self.examples]

    def captions(self) -> list[str]:
        """Their captions: never written anywhere."""
        return [example.caption for example in self.examples]

    def doubt_of_coins(self, settings: Mapping[str, Any]) -> str:
        """Why this split did not throw a fair coin per group, as a one-run audit needs; empty where it did.

        Args:
            settings: of the training; they vouch for an old split file only where the training drew it itself.
        """
        share = self.nonmember_share
        if share is None and self.inclusion == "bernoulli" and not settings.get("split_file"):
            share = settings["nonmember_share"]
        if self.inclusion != "bernoulli":
            return f"the split was drawn with inclusion '{self.inclusion}', not by an independent coin per group"
        if share is None:
            return "the split file does not say with which share it was drawn"
        return "" if share == 0.5 else f"its coins were not fair (nonmember_share {share:g}, not 0.5)"


def candidate_sets_of(runs: Sequence[Run], target_fpr: float | None) -> dict[Path, CandidateSet]:
    """The pictures of every run, by LoRA file; runs of one folder and split read them once.

    Args:
        target_fpr: the rate that a membership audit has to resolve; None for an audit without one.

    Raises:
        InputError: pictures that are missing or changed, or too few of them; another split than a training's.
    """
    seen: dict[tuple[Path, str], CandidateSet] = {}
    candidate_sets = {}
    for run in runs:
        key = (run.split, repr(pick_rules(run.settings)))
        if key not in seen:
            seen[key] = find_candidates(run.split, read_pictures(run.settings))
            if target_fpr is not None:
                require_resolvable(seen[key].candidates, target_fpr)
        candidate_sets[run.lora] = seen[key]
    faults = Faults()
    for run in runs:
        stated, here = run.settings.get("split_hash"), candidate_sets[run.lora].sealed_hash
        if stated and here and stated != here:
            faults.add(
                f"'{run.split}' is not the split that '{run.lora}' was trained on (split_hash: {str(stated)[:12]} in "
                f"its config.toml, {here[:12]} of this file), so members would be taken for non-members; put its own "
                "split.json back, or name it with --split_file"
            )
    faults.raise_if_any()
    return candidate_sets


def find_candidates(split_file: Path, examples: Sequence[Example]) -> CandidateSet:
    """Match the split's entries with picture files by their pixels.

    Raises:
        InputError: a split of other pictures; pictures missing or changed since training, by name.
    """
    content = read_split_file(split_file)
    warn_of_weak_split(split_file, content)
    here = {example.pixels: example for example in examples}
    names = {example.path.name: example for example in examples}
    entries = sorted(content["images"], key=lambda entry: (SIDES.index(entry["side"]), entry["pixels"]))
    lost = [Path(entry["path"]).name for entry in entries if entry["pixels"] not in here]
    if entries and len(lost) == len(entries):
        raise InputError(
            f"'{split_file}' is the split of another dataset: none of its {len(entries)} pictures is among "
            f"the {len(examples)} of the training folder; give the folder with --train_data_dir"
        )
    faults = Faults()
    changed = [name for name in lost if name in names]
    missing = [name for name in lost if name not in names]
    if changed:
        faults.add(
            f"{len(changed)} pictures have changed since training (their pixels differ from the split's hash): "
            f"{shortened(changed)}; put the old files back"
        )
    if missing:
        faults.add(f"{len(missing)} pictures of the split are missing: {shortened(missing)}; put them back")
    faults.raise_if_any()
    digest = sides_hash((entry["pixels"], entry["side"]) for entry in entries)
    unique = {entry["pixels"]: entry for entry in reversed(entries)}
    kept = [entry for entry in entries if unique[entry["pixels"]] is entry or _on_two_sides(entry, unique)]
    uses: Counter[str] = Counter()
    for entry in entries:
        uses[entry["pixels"]] += int(entry.get("repeats", 1))
    candidates = Candidates(
        [entry["pixels"] for entry in kept],
        [entry["side"] for entry in kept],
        [entry["group"] for entry in kept],
        [uses[entry["pixels"]] for entry in kept],
    )
    _check_captions(kept, here)
    matched = [here[entry["pixels"]] for entry in kept]
    return CandidateSet(
        matched,
        candidates,
        content["inclusion"],
        content.get("nonmember_share"),
        digest,
        sealed(bytes.fromhex(content["secret"]), digest) if "secret" in content else "",
    )


def _on_two_sides(entry: dict[str, Any], unique: dict[str, dict[str, Any]]) -> bool:
    return unique[entry["pixels"]]["side"] != entry["side"]


def require_resolvable(candidates: Candidates, target_fpr: float) -> None:
    """Raises: InputError when there are too few pictures for the rate that was asked for, for fits or for tests."""
    aux_view(candidates, 0)
    for side in ("members-test", "non-members-test"):
        groups = {candidates.groups[row] for row in candidates.indices(side).tolist()}
        if len(groups) < 2:
            raise InputError(f"{side} has {len(groups)} groups of pictures; 2 are needed to test anything")
    count = len(candidates.indices("non-members-aux"))
    if count * target_fpr < 1 - 1e-9:
        raise InputError(
            f"target_fpr={target_fpr} needs {math.ceil(1 / target_fpr)} non-members on the aux side, got "
            f"{count}; give a larger target_fpr or use more pictures"
        )


def _check_captions(entries: Sequence[dict[str, Any]], here: dict[str, Example]) -> None:
    """Raises: InputError when captions are not those of the training, by file name; captions are never shown."""
    altered = []
    for entry in entries:
        example = here[entry["pixels"]]
        known = entry.get("caption_sha256")
        if known and hashlib.sha256(example.caption.encode()).hexdigest() != known:
            altered.append(example.path.name)
    if altered:
        raise InputError(
            f"{len(altered)} captions differ from those of the training: {shortened(altered)}; attacks that "
            "need the training caption would understate the leak; put the old caption files back"
        )


def picture_key(example: Example, size: tuple[int, int]) -> str:
    """Names a picture's records: its pixels, caption and training size."""
    return hashlib.sha256("\x1f".join([example.pixels, example.caption, str(size)]).encode()).hexdigest()


def enlarged_centre(pixels: Tensor, share: float) -> Tensor:
    """[3, H, W] -> the middle of it, enlarged to the same size."""
    height, width = pixels.shape[1:]
    top, left = round(height * (1 - share) / 2), round(width * (1 - share) / 2)
    inner = pixels[None, :, top : height - top, left : width - left]
    return torch.nn.functional.interpolate(inner, (height, width), mode="bicubic", align_corners=False, antialias=True)[
        0
    ]


def centre_framing(framing: Tensor, share: float) -> Tensor:
    """[6] what ``enlarged_centre`` shows, of the whole's framing: the picture is scaled more, and cut further in."""
    height, width, top, left, wanted_height, wanted_width = framing.tolist()
    inside = [round((at + side * (1 - share) / 2) / share) for at, side in ((top, wanted_height), (left, wanted_width))]
    return torch.tensor([height, width, *inside, wanted_height, wanted_width])


def read_pictures(settings: Mapping[str, Any]) -> list[Example]:
    """Every captioned picture that the training's split may name, read as the training read them.

    Regularisation images are left out: they are public and on no side.
    """
    own = {**settings, "strict_captions": False, "group_by": "none"}  # the split knows the groups
    return read_split_pictures(*pick_rules(own))


def training_sizes(examples: Sequence[Example], multiple: int) -> list[tuple[int, int]]:
    """The size (width, height) at which the training saw each picture, in its first dataset."""
    return assign_buckets(examples, multiple)


def encode_candidates(
    candidate_set: CandidateSet,
    sizes: Sequence[tuple[int, int]],
    model: LatentDiffusion,
    crop_share: float | None,
    cache_dir: Path,
) -> list[Picture]:
    """Latents (posterior mean, scaled) of every picture, and of its centre crop where the plan has crops.

    Args:
        sizes: training size (width, height) of each picture.
        crop_share: None leaves the crops out.
    """
    encode, scale = posterior_encoder(model.vae), float(model.vae.config.scaling_factor)
    moments = encoded_moments(
        candidate_set.examples,
        sizes,
        encode,
        vae_fingerprint=f"{model.fingerprint} {model.vae.dtype}",
        batch_size=8,
        cache_dir=cache_dir,
    )
    framings = [plain_framing(example, size) for example, size in zip(candidate_set.examples, sizes, strict=True)]
    crops: list[Tensor | None] = [None] * len(moments)
    if crop_share is not None:
        for row, (example, size) in enumerate(zip(candidate_set.examples, sizes, strict=True)):
            pixels = enlarged_centre(plain_pixels(example, size), crop_share)
            crops[row] = encode(pixels[None])[0][0].cpu() * scale
    return [
        Picture(
            key=picture_key(example, size),
            identity=example.pixels,
            latent=one.mean.float() * scale,
            cropped=crop,
            caption=example.caption,
            framing=framing,
            cropped_framing=framing if crop_share is None else centre_framing(framing, crop_share),
        )
        for example, size, one, crop, framing in zip(
            candidate_set.examples, sizes, moments, crops, framings, strict=True
        )
    ]


def some_of(candidate_set: CandidateSet, rows: Sequence[int]) -> CandidateSet:
    """The same split with the pictures of these rows alone."""
    everybody = candidate_set.candidates
    pixels, sides, groups = (
        [values[row] for row in rows] for values in (everybody.pixels, everybody.sides, everybody.groups)
    )
    return replace(
        candidate_set,
        examples=[candidate_set.examples[row] for row in rows],
        candidates=Candidates(pixels, sides, groups),
    )


def features_of(
    candidate_set: CandidateSet,
    sizes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    extract: Callable[[Tensor, list[str]], Features],
) -> dict[str, NDArray[np.float32]]:
    """Features of the pictures themselves, one picture at a time: [n, ...] by name of the network."""
    chosen = [(candidate_set.examples[row], sizes[row]) for row in rows]
    seen = [extract(plain_pixels(one, size)[None] / 2 + 0.5, [one.caption]) for one, size in chosen]
    return {name: torch.cat([one[name] for one in seen]).numpy() for name in seen[0]}
