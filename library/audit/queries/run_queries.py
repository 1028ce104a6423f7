"""Runs the queries of one LoRA; what the base alone answers is shared among LoRAs of the same base and pictures."""

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from library.audit.queries.answer_cache import AnswerCache, cache_key
from library.audit.queries.answers import Answers
from library.audit.queries.ask import Asker, batches, fill_cache
from library.audit.queries.audited_model import AuditedModel
from library.audit.queries.query_plan import QueryPlan
from library.audit.targets.candidate_table import FloatArray, Picture
from library.errors import InputError
from library.incoming.files import is_file
from library.incoming.shapes import ListOf, Record, Shape, Text, Whole, check_shape
from library.incoming.texts import read_json
from library.progress import counted, spoken
from library.tensor_files import private_folder, write_whole

TIMED = 3  # passes of each thread that a forecast rests on
INDEX_FORMAT = 2  # 1 named folders anywhere and did not say whose answers they held
STORE_NAME = re.compile(r"[0-9a-f]{32}")  # as cache_key makes them
STORE = Text(pattern=STORE_NAME.pattern)
INDEX: Shape = Record({
    "format": Whole(INDEX_FORMAT, INDEX_FORMAT), "adapter": Text(1000), "split": Text(1000),
    "pictures": ListOf(Text(1000)),
    "stores": Record(dict.fromkeys(("on", "off", "gradients_on", "gradients_fresh"), STORE)),
})  # fmt: skip


@dataclass(frozen=True)
class AnswerFolders:
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
    """How many pictures and threads work at the same time."""

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
    with counted(len(pictures), name) as bar:
        fill_cache(AnswerCache(folder), pictures, ask, effort.batch_size, bar.update, effort.workers)


class Stages:
    """Numbers what an audit does with the model, as it begins."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._begun = 0

    def begin(self, name: str) -> str:
        """The name of the next stage with its number: ``[2 of 5] passes, LoRA off``."""
        self._begun += 1
        return f"[{self._begun} of {self.count}] {name}"


@dataclass(frozen=True)
class QueryRunner:
    """The pictures and the grid of one audit, and all that names its answers beside the LoRA."""

    pictures: Sequence[Picture]
    plan: QueryPlan
    effort: Effort
    shelf: Shelf
    base: str  # fingerprint
    preprocess: str  # clip skip, token length
    kind: str  # device and number format
    stages: Stages

    def stores(self, records: Path, adapter: str, shape: str) -> AnswerFolders:
        """Name the stores by everything that shapes their numbers.

        Args:
            records: folder of this LoRA's own answers.
            adapter, shape: fingerprints of the LoRA's values, and of its names and ranks.
        """
        shared = self.shelf.shared
        for folder in (records.parent, records, shared.parent, shared):
            private_folder(folder)
        common = (self.plan.fingerprint(), self.base, self.preprocess, self.kind)
        return AnswerFolders(
            on=str(records / cache_key("on", adapter, *common)),
            off=str(shared / cache_key("off", *common)),
            gradients_on=str(records / cache_key("gradients", adapter, *common)),
            gradients_fresh=str(shared / cache_key("fresh gradients", shape, *common)),
        )

    def forecast(self, audited: AuditedModel, stores: AnswerFolders) -> str:
        """How many passes are not cached yet, and how long they will take, from a few timed ones; empty without any."""
        passes, keys = self.plan.passes(), [picture.key for picture in self.pictures]
        gradients = passes.pop("gradients")
        costs = {stores.on: sum(passes.values()), stores.off: sum(passes.values()),
                 stores.gradients_on: gradients, stores.gradients_fresh: gradients}  # fmt: skip
        left = sum(cost * len(AnswerCache(Path(folder)).missing(keys)) for folder, cost in costs.items())
        if not left:
            return ""
        seconds = left * self.seconds_per_pass(audited)
        return f"asking the model: {left} passes for {len(keys)} images, {spoken(seconds)}"

    def seconds_per_pass(self, audited: AuditedModel) -> float:
        """Of one picture, with as many threads at work as while asking."""
        workers = self.effort.workers
        batch = next(batches(self.pictures, range(len(self.pictures)), self.effort.batch_size))
        asker = Asker(audited, self.plan, 1)
        latents = torch.stack([picture.latent for picture in batch]).float().to(audited.device)
        with torch.no_grad():
            states = asker.conditions(batch, [picture.caption for picture in batch])

        def one_pass(number: int) -> Tensor:
            with torch.no_grad():
                return asker.predict(latents, 500, states).cpu()

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one_pass, range(workers)))  # the first ones make buffers
            started = time.monotonic()
            list(pool.map(one_pass, range(TIMED * workers)))
        return (time.monotonic() - started) / (TIMED * workers * len(batch))

    def ask(
        self,
        audited: AuditedModel,
        stores: AnswerFolders,
        index: Path,
        adapter: str,
        rows: Sequence[int] | None = None,
        gradients: bool = True,
    ) -> None:
        """Ask everything that is not cached yet, the base first, and remember where the answers lie.

        Args:
            index: file that ``read_index`` finds them by.
            adapter: fingerprint of the LoRA's values; the index carries it.
            rows: the pictures to ask about; None asks about all.

        Raises:
            InputError: when the LoRA makes the model answer with NaN.
        """
        pictures = self.pictures if rows is None else [self.pictures[row] for row in rows]
        asker = Asker(audited, self.plan, min(pictures[0].latent.shape[1:]))
        for folder, state, ask in (
            (stores.off, "off", asker.passes),
            (stores.gradients_fresh, "fresh", asker.gradients),
            (stores.on, "on", asker.passes),
            (stores.gradients_on, "on", asker.gradients),
        ):
            if ask == asker.gradients and not gradients:
                continue
            audited.switch(state)
            name = self.stages.begin(("gradients" if ask == asker.gradients else "passes") + f", LoRA {state}")
            try:
                fill(Path(folder), pictures, ask, self.effort, name)
            except FloatingPointError as error:
                raise InputError(
                    f"with the LoRA {state}, {error}; the file is broken, or it was made for another base"
                ) from error
        write_index(index, stores, [picture.key for picture in pictures], adapter, self.shelf.split)


def read_answers(stores: AnswerFolders, keys: Sequence[str], plan: QueryPlan) -> Answers:
    """Read the answers back. Raises: InputError when some are missing."""
    passes = [AnswerCache(Path(folder)).gather(keys) for folder in (stores.on, stores.off)]
    gradients = [AnswerCache(Path(folder)).gather(keys) for folder in (stores.gradients_on, stores.gradients_fresh)]
    return Answers(passes[0] | gradients[0], passes[1] | gradients[1], plan)


def losses_of(folder: Path, keys: Sequence[str], plan: QueryPlan) -> FloatArray:
    """[n, T] losses under one LoRA, mean over draws."""
    records = AnswerCache(folder).gather(keys)
    return Answers(records, records, plan).losses("on")


def write_index(file: Path, stores: AnswerFolders, keys: Sequence[str], adapter: str, split: str) -> None:
    """Remember which answers are this LoRA's on this split, so that scoring needs no model. Folders by name alone."""
    private_folder(file.parent)
    names = {state: Path(folder).name for state, folder in asdict(stores).items()}
    content = {"format": INDEX_FORMAT, "adapter": adapter, "split": split, "stores": names, "pictures": list(keys)}
    write_whole(file, json.dumps(content) + "\n", private=True)


def read_index(file: Path, shelf: Shelf, adapter: str) -> tuple[AnswerFolders, list[str]]:
    """What ``write_index`` wrote, of this LoRA on this split and no other.

    The file may be a stranger's, so the folders it names are looked for in the two places where answers lie.

    Args:
        adapter: fingerprint of the LoRA's values.

    Raises:
        InputError: no answers yet, or answers of another LoRA or split.
    """
    again = "run once without --scores_only"
    if not is_file(file):
        raise InputError(f"'{file.parent}' holds no answers of this LoRA and profile yet; {again}")
    try:
        content = read_json(file, f"'{file}'")
        check_shape(content, INDEX, f"'{file}'")
    except InputError as error:
        raise InputError(
            f"'{file}' does not say which answers are whose as this version writes it ({error.messages[0]}); {again}"
        ) from error
    names, keys = {field.name: content["stores"][field.name] for field in fields(AnswerFolders)}, content["pictures"]
    whose = content["adapter"], content["split"]
    for stated, here, what in zip(whose, (adapter, shelf.split), ("LoRA", "split"), strict=True):
        if stated != here:
            raise InputError(
                f"the answers in '{file}' are of another {what} ({stated[:12]}, this one is {here[:12]}), so they say "
                f"nothing about this file; {again}"
            )
    places = {"on": file.parent / "records", "gradients_on": file.parent / "records"}
    return AnswerFolders(**{state: str(places.get(state, shelf.shared) / name) for state, name in names.items()}), keys
