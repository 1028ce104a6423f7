"""What LoRA files of single persons give away by their weights alone, undefended and defended; resumable.

python benchmarks/leak_of_weights.py WORK --public DIR --held_out DIR [--victims 60 --shadows 150 ...]

The base and the victims' private pictures are the demo's (demo/images, whose persons the base never saw). DIR of
--public and --held_out come from demo/build.py: strangers for the shadow LoRAs, and further pictures of the private
persons. WORK keeps corpora, answers and findings.json; docs/pictures_from_weights.md is written from that file.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch
from torch import Tensor

from library.assembly.beside.stacked_base import StackedBase, read_persons, stacked_base
from library.audit.queries.audited_model import opened_base
from library.audit.reconstruction.persons import PersonSet, check_disjoint
from library.audit.reconstruction.retrieval import CONTROLS, RetrievalRow, checked_rows, share_text
from library.audit.reconstruction.shadow_corpus import RANDOM, Corpus, CorpusRecipe, make_corpus
from library.audit.reconstruction.stacked_training import StepRecipe
from library.audit.reconstruction.weight_defences import WeightDefence, published, utility
from library.options.declarations import Config
from library.privacy.dp.accounting import calibrated_noise
from library.tensor_files import private_folder, write_whole

ROOT = Path(__file__).parent.parent
CLASS_PROMPT = "portrait"
DEFENCES = (
    WeightDefence("none"), WeightDefence("re-gauge"), WeightDefence("early stopping", 0.1),
    WeightDefence("early stopping", 0.3), WeightDefence("truncation", 1), WeightDefence("noise", 1.0),
    WeightDefence("noise", 3.0), WeightDefence("noise", 10.0),
)  # fmt: skip
DELTA = 1e-3


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("--held_out", type=Path, required=True)
    parser.add_argument("--victims", type=int, default=60)
    parser.add_argument("--shadows", type=int, default=150)
    parser.add_argument("--others", type=int, default=30, help="public persons whose LoRAs are a control")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--together", type=int, default=30)
    parser.add_argument("--epsilon", type=float, nargs="*", default=[50.0, 10.0])
    parser.add_argument("--adaptive_dp", type=int, default=80, help="shadows that are trained with DP-SGD as well")
    parser.add_argument("--gallery", type=int, default=1, help="pictures of each candidate set; 0 = no gallery")
    return parser.parse_args(arguments)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The persons on each side, and how LoRAs are made of them."""

    base: StackedBase
    shadows: PersonSet
    others: PersonSet
    victims: PersonSet
    held_out: PersonSet  # further pictures of the victims
    recipe: CorpusRecipe
    folder: Path
    together: int

    def corpus(self, persons: PersonSet, name: str, noise: float = 0.0) -> Corpus:
        """LoRAs of these persons."""
        step = dataclasses.replace(self.recipe.step, noise_multiplier=noise)
        recipe = dataclasses.replace(self.recipe, step=step)
        return make_corpus(
            self.base.stack, self.base.encode_text, persons, recipe, self.folder, together=self.together, name=name
        )

    def contexts(self) -> Tensor:
        """[V, T, D] of the victims' own captions: utility alone reads them."""
        return self.base.encode_text([self.recipe.caption(name) for name in self.victims.names])


def opened(given: argparse.Namespace) -> Experiment:
    """Base, persons and recipe."""
    settings = dataclasses.asdict(Config()) | {
        "pretrained_model_name_or_path": str(ROOT / "demo" / "base"), "resolution": "64,64",
    }  # fmt: skip
    base = stacked_base(opened_base(settings), settings)
    cache = private_folder(given.work / "cache")
    public, private, later = (
        read_persons(base, folder, 4, cache) for folder in (given.public, ROOT / "demo" / "images", given.held_out)
    )
    victims = private.some(range(given.victims))
    held_out = later.some([list(later.names).index(name) for name in victims.names])
    shadows = public.some(range(given.shadows))
    others = public.some(range(given.shadows, given.shadows + given.others))
    check_disjoint({"shadows": shadows, "others": others, "victims": victims})
    step = StepRecipe(learning_rate=3e-3, weight_decay=0.01, clip=1.0, batch=given.batch)
    recipe = CorpusRecipe(
        rank=given.rank, scale=27 / 16, steps=given.steps, pictures=4, step=step, start=RANDOM,
        class_word=CLASS_PROMPT, triggers=2, seed=16,
    )  # fmt: skip
    return Experiment(base, shadows, others, victims, held_out, recipe, given.work / "corpora", given.together)


def main(arguments: list[str]) -> None:
    """Corpora, attacks, defences; findings.json after each, so that a stopped run shows what it has."""
    given = parsed(arguments)
    torch.set_num_threads(1)
    run = opened(given)
    corpora = {name: run.corpus(getattr(run, name), f"{name}: LoRAs") for name in ("victims", "shadows", "others")}
    print("corpora stand")


if __name__ == "__main__":
    main(sys.argv[1:])
