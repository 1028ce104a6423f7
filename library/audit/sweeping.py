"""The sweep of one LoRA, with what the base alone answered shared among all LoRAs of the same base and pictures."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from library.audit.denoiser import Denoiser
from library.audit.evidence import Evidence, Rows
from library.audit.generation import DrawingRules, draw_records
from library.audit.image_encoders import Eyes
from library.audit.record_store import Records, RecordStore, store_key
from library.audit.sweep import Asker, Picture, fill_store
from library.audit.sweep_plan import SweepPlan
from library.check import InputError
from library.tensor_files import private_folder, write_whole

INDEX_FORMAT = 2  # 1 named folders anywhere and did not say whose answers they held
STORE_NAME = re.compile(r"[0-9a-f]{32}")  # as store_key makes them


@dataclass(frozen=True)
class Stores:
    """Folders of one LoRA's answers."""

    on: str
    off: str
    gradients_on: str
    gradients_fresh: str


@dataclass(frozen=True)
class Shelf:
    """What answers of one audit have in common beside the LoRA."""

    shared: Path  # folder of the base's answers
    split: str  # hash of who is on which side


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


@dataclass(frozen=True)
class Bench:
    """The pictures and the grid of one audit, and all that names its answers beside the LoRA."""

    pictures: Sequence[Picture]
    plan: SweepPlan
    effort: Effort
    shelf: Shelf
    base: str  # fingerprint
    preprocess: str  # clip skip, token length
    kind: str  # device and number format

    def stores(self, records: Path, adapter: str, shape: str) -> Stores:
        """Name the stores by everything that shapes their numbers.

        Args:
            records: folder of this LoRA's own answers.
            adapter, shape: fingerprints of the LoRA's values, and of its names and ranks.
        """
        shared = self.shelf.shared
        for folder in (records.parent, records, shared.parent, shared):
            private_folder(folder)
        common = (self.plan.fingerprint(), self.base, self.preprocess, self.kind)
        return Stores(
            on=str(records / store_key("on", adapter, *common)),
            off=str(shared / store_key("off", *common)),
            gradients_on=str(records / store_key("gradients", adapter, *common)),
            gradients_fresh=str(shared / store_key("fresh gradients", shape, *common)),
        )

    def sweep(
        self, denoiser: Denoiser, stores: Stores, index: Path, adapter: str, rows: Sequence[int] | None = None,
        gradients: bool = True,
    ) -> None:  # fmt: skip
        """Ask everything that is not cached yet, the base first, and remember where the answers lie.

        Args:
            index: file that ``read_index`` finds them by.
            adapter: fingerprint of the LoRA's values; the index carries it.
            rows: the pictures to ask about; None asks about all.

        Raises:
            InputError: when the LoRA makes the model answer with NaN.
        """
        pictures = self.pictures if rows is None else [self.pictures[row] for row in rows]
        asker = Asker(denoiser, self.plan, min(pictures[0].latent.shape[1:]))
        for folder, state, ask in (
            (stores.off, "off", asker.passes),
            (stores.gradients_fresh, "fresh", asker.gradients),
            (stores.on, "on", asker.passes),
            (stores.gradients_on, "on", asker.gradients),
        ):
            if ask == asker.gradients and not gradients:
                continue
            denoiser.switch(state)
            name = ("gradients" if ask == asker.gradients else "passes") + f", LoRA {state}"
            try:
                fill(Path(folder), pictures, ask, self.effort, name)
            except FloatingPointError as error:
                raise InputError(
                    f"with the LoRA {state}, {error}; the file is broken or made for another base"
                ) from error
        write_index(index, stores, [picture.key for picture in pictures], adapter, self.shelf.split)


def evidence_of(stores: Stores, keys: Sequence[str], plan: SweepPlan) -> Evidence:
    """Read the answers back. Raises: InputError when some are missing."""
    passes = [RecordStore(Path(folder)).gather(keys) for folder in (stores.on, stores.off)]
    gradients = [RecordStore(Path(folder)).gather(keys) for folder in (stores.gradients_on, stores.gradients_fresh)]
    return Evidence(passes[0] | gradients[0], passes[1] | gradients[1], plan)


def losses_of(folder: Path, keys: Sequence[str], plan: SweepPlan) -> Rows:
    """[n, T] losses under one LoRA, mean over draws."""
    records = RecordStore(folder).gather(keys)
    return Evidence(records, records, plan).losses("on")


def write_index(file: Path, stores: Stores, keys: Sequence[str], adapter: str, split: str) -> None:
    """Remember which answers are this LoRA's on this split, so that scoring needs no model. Folders by name alone."""
    private_folder(file.parent)
    names = {state: Path(folder).name for state, folder in asdict(stores).items()}
    content = {"format": INDEX_FORMAT, "adapter": adapter, "split": split, "stores": names, "pictures": list(keys)}
    write_whole(file, json.dumps(content) + "\n", private=True)


def read_index(file: Path, shelf: Shelf, adapter: str) -> tuple[Stores, list[str]]:
    """What ``write_index`` wrote, of this LoRA on this split and no other.

    The file may be a stranger's, so the folders it names are looked for in the two places where answers lie.

    Args:
        adapter: fingerprint of the LoRA's values.

    Raises:
        InputError: there was no sweep yet; the answers are another LoRA's, or of another split.
    """
    again = "run once without --scores_only"
    if not file.is_file():
        raise InputError(f"'{file.parent}' holds no sweep of this LoRA and profile yet; {again}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names, keys = {field.name: content["stores"][field.name] for field in fields(Stores)}, content["pictures"]
        whose = content["adapter"], content["split"]
        texts = [*names.values(), *whose, *keys]
        if content["format"] != INDEX_FORMAT or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"format {content['format']}")
        if not all(STORE_NAME.fullmatch(name) for name in names.values()):
            raise ValueError("no names of stores")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"'{file}' does not say which answers are whose as this version writes it ({type(error).__name__}); {again}"
        ) from error
    for stated, here, what in zip(whose, (adapter, shelf.split), ("LoRA", "split"), strict=True):
        if stated != here:
            raise InputError(
                f"the answers in '{file}' are of another {what} ({stated[:12]}, this one is {here[:12]}), so they say "
                f"nothing about this file; {again}"
            )
    places = {"on": file.parent / "records", "gradients_on": file.parent / "records"}
    return Stores(**{state: str(places.get(state, shelf.shared) / name) for state, name in names.items()}), keys


def draw_all(
    denoiser: Denoiser, pictures: Sequence[Picture], stores: Stores, rules: DrawingRules, eyes: Eyes, effort: Effort
) -> tuple[Records, Records]:
    """Drawings of the pictures' captions with the LoRA on and off, as statistics; cached like the sweep."""
    answers = []
    for folder, state in ((stores.on, "on"), (stores.off, "off")):
        denoiser.switch(state)
        place = Path(f"{folder}-{rules.name()}-{eyes.fingerprint()}")
        fill(place, pictures, draw_records(denoiser, rules, eyes), effort, f"drawings, LoRA {state}")
        answers.append(RecordStore(place).gather([picture.key for picture in pictures]))
    return answers[0], answers[1]
