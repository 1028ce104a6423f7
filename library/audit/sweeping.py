"""The sweep of one LoRA, with what the base alone answered shared among all LoRAs of the same base and pictures."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from library.audit.denoiser import Denoiser
from library.audit.evidence import Evidence
from library.audit.generation import draw_records
from library.audit.record_store import Records, RecordStore, store_key
from library.audit.sweep import Asker, Picture, fill_store
from library.audit.sweep_plan import SweepPlan
from library.check import InputError
from library.tensor_files import private_folder, write_whole


@dataclass(frozen=True)
class Stores:
    """Folders of one LoRA's answers."""

    on: str
    off: str
    gradients_on: str
    gradients_fresh: str


@dataclass(frozen=True)
class Effort:
    """How the work is dealt out."""

    batch_size: int
    workers: int  # threads


def effort_of(batch_size: int, on_gpu: bool) -> Effort:
    """One thread on a GPU, else one per core that this process may use."""
    return Effort(batch_size, 1 if on_gpu else len(os.sched_getaffinity(0)))


def fill(
    folder: Path,
    pictures: Sequence[Picture],
    ask: Callable[[list[Picture]], dict[str, Tensor]],
    effort: Effort,
    name: str,
) -> None:
    """Fill one store under a progress bar."""
    with tqdm(total=len(pictures), desc=name, unit="image") as bar:
        fill_store(RecordStore(folder), pictures, ask, effort.batch_size, bar.update, effort.workers)


def stores_of(
    records: Path, shared: Path, plan: SweepPlan, *, base: str, adapter: str, shape: str, preprocess: str, kind: str
) -> Stores:
    """Name the stores by everything that shapes their numbers.

    Args:
        records: folder of this LoRA's own answers; shared: of the base's.
        base, adapter, shape: fingerprints of the base, the LoRA's values, and its names and ranks.
        preprocess: VAE, clip skip, token length.
        kind: device and number format.
    """
    for folder in (records.parent, records, shared.parent, shared):
        private_folder(folder)
    common = (plan.fingerprint(), base, preprocess, kind)
    return Stores(
        on=str(records / store_key("on", adapter, *common)),
        off=str(shared / store_key("off", *common)),
        gradients_on=str(records / store_key("gradients", adapter, *common)),
        gradients_fresh=str(shared / store_key("fresh gradients", shape, *common)),
    )


def sweep_all(
    denoiser: Denoiser,
    pictures: Sequence[Picture],
    plan: SweepPlan,
    stores: Stores,
    effort: Effort,
) -> None:
    """Ask everything that is not cached yet, the base first.

    Raises:
        InputError: when the LoRA makes the model answer with NaN.
    """
    height, width = pictures[0].latent.shape[1:]
    asker = Asker(denoiser, plan, min(height, width))
    for folder, state, ask in (
        (stores.off, "off", asker.passes),
        (stores.gradients_fresh, "fresh", asker.gradients),
        (stores.on, "on", asker.passes),
        (stores.gradients_on, "on", asker.gradients),
    ):
        denoiser.switch(state)
        name = ("gradients" if ask == asker.gradients else "passes") + f", LoRA {state}"
        try:
            fill(Path(folder), pictures, ask, effort, name)
        except FloatingPointError as error:
            raise InputError(f"with the LoRA {state}, {error}; the file is broken or made for another base") from error


def sweep_shadow(
    denoiser: Denoiser,
    pictures: Sequence[Picture],
    plan: SweepPlan,
    folder: Path,
    effort: Effort,
) -> None:
    """Ask a shadow LoRA what the likelihood ratio needs."""
    denoiser.switch("on")
    asker = Asker(denoiser, plan, min(pictures[0].latent.shape[1:]))
    fill(folder, pictures, asker.passes, effort, "shadow LoRA")


def evidence_of(stores: Stores, keys: Sequence[str], plan: SweepPlan) -> Evidence:
    """Read the answers back. Raises: InputError when some are missing."""
    passes = [RecordStore(Path(folder)).gather(keys) for folder in (stores.on, stores.off)]
    gradients = [RecordStore(Path(folder)).gather(keys) for folder in (stores.gradients_on, stores.gradients_fresh)]
    return Evidence(passes[0] | gradients[0], passes[1] | gradients[1], plan)


def write_index(file: Path, stores: Stores, keys: Sequence[str]) -> None:
    """Remember where the answers lie, so that scoring needs no model."""
    private_folder(file.parent)
    write_whole(file, json.dumps({**asdict(stores), "pictures": list(keys)}) + "\n", private=True)


def read_index(file: Path) -> tuple[Stores, list[str]]:
    """What ``write_index`` wrote. Raises: InputError when there was no sweep yet."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        keys = content.pop("pictures")
        return Stores(**content), keys
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"'{file.parent}' holds no sweep of this LoRA and profile yet; run once without --scores_only"
        ) from error


def draw_all(
    denoiser: Denoiser,
    pictures: Sequence[Picture],
    stores: Stores,
    *,
    images: int,
    steps: int,
    guidance: float,
    effort: Effort,
) -> tuple[Records, Records]:
    """Drawings of the pictures' captions with the LoRA on and off, as statistics; cached like the sweep."""
    answers = []
    for folder, state in ((stores.on, "on"), (stores.off, "off")):
        denoiser.switch(state)
        place, ask = Path(f"{folder}-{images}x{steps}x{guidance:g}"), draw_records(denoiser, images, steps, guidance)
        fill(place, pictures, ask, effort, f"drawings, LoRA {state}")
        answers.append(RecordStore(place).gather([picture.key for picture in pictures]))
    return answers[0], answers[1]
