"""The persons, the base and the recipes of benchmarks/leak_of_weights.py: who is on which side, and how LoRAs are made.

The base and the victims' private pictures are the demo's (demo/images, whose persons the base never saw). Shadows,
others and the non-members of games are strangers that demo/build.py drew; --held_out are more pictures of the victims.
"""

import argparse
import dataclasses
from pathlib import Path

from torch import Tensor

from library.assembly.beside.stacked_base import StackedBase, read_persons, stacked_base
from library.audit.queries.audited_model import opened_base
from library.audit.reconstruction.persons import PersonSet, check_disjoint
from library.audit.reconstruction.shadow_corpus import RANDOM, Corpus, CorpusRecipe, make_corpus
from library.audit.reconstruction.stacked_game import GameRecipe
from library.audit.reconstruction.stacked_training import StepRecipe
from library.options.declarations import Config
from library.privacy.attackers.build import AttackerRules
from library.tensor_files import private_folder

ROOT = Path(__file__).parent.parent
CLASS_PROMPT = "portrait"
DP_CLIP = 0.03  # the middle norm of one picture's gradient on the demo base
NON_MEMBERS = 20  # strangers whom games and gap stopping compare a person with
PROXY = AttackerRules(attack_lr=1e-2, attack_weight_decay=1e-4, attack_dropout=0.0, proxy_input="calibrated")
HALF = 0.6931  # ln 2: a picture whose proxy guesses is left alone, as in the demo's configs


def parsed(description: str | None, arguments: list[str]) -> argparse.Namespace:
    """What the measurements on weights are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", type=Path)
    parser.add_argument("--public", type=Path, required=True)
    parser.add_argument("--held_out", type=Path, required=True)
    parser.add_argument("--victims", type=int, default=50)
    parser.add_argument("--shadows", type=int, default=150)
    parser.add_argument("--others", type=int, default=10, help="public persons whose LoRAs are a control")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--together", type=int, default=25)
    parser.add_argument("--gaps", type=float, nargs="*", default=[0.04], help="limits of gap stopping")
    parser.add_argument("--epsilon", type=float, nargs="*", default=[10.0, 50.0])
    parser.add_argument("--splora", type=float, nargs="*", default=[1.0], help="alphas; beta is 1")
    parser.add_argument("--plora", type=float, nargs="*", default=[0.2], help="alphas")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 16], help="other ranks to train with")
    parser.add_argument("--defended_steps", type=int, help="of DP-SGD and games; default: --steps")
    parser.add_argument("--trained_victims", type=int, default=50, help="first victims, trained with a defence too")
    parser.add_argument("--adaptive", type=int, default=50, help="first shadows, trained with a defence too")
    parser.add_argument("--gallery", type=int, default=1, help="pictures of each candidate set; 0 = no gallery")
    return parser.parse_args(arguments)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The persons on each side, and how LoRAs are made of them."""

    base: StackedBase
    shadows: PersonSet
    others: PersonSet
    non_members: PersonSet  # of games and gap checks
    victims: PersonSet
    held_out: PersonSet  # further pictures of the victims
    recipe: CorpusRecipe
    folder: Path
    together: int

    def corpus(self, persons: PersonSet, name: str, recipe: CorpusRecipe | None = None) -> Corpus:
        """LoRAs of these persons, by the undefended recipe or another."""
        recipe = recipe or self.recipe
        return make_corpus(
            self.base.stack, self.base.encode_text, persons, recipe, self.folder, together=self.together, name=name,
            non_members=self.non_members if recipe.game else None,
        )  # fmt: skip

    def private_recipe(self, noise_multiplier: float, steps: int) -> CorpusRecipe:
        """DP-SGD."""
        step = dataclasses.replace(self.recipe.step, noise_multiplier=noise_multiplier, clip=DP_CLIP)
        return dataclasses.replace(self.recipe, step=step, steps=steps)

    def game_recipe(self, objective: str, alpha: float, steps: int) -> CorpusRecipe:
        """PLoRA or SPLoRA."""
        game = GameRecipe(objective, alpha, beta=1.0, gain_limit=HALF, turns=1, batch=2, attacker=PROXY)
        return dataclasses.replace(self.recipe, game=game, steps=steps)

    def contexts(self, persons: PersonSet) -> Tensor:
        """[P, T, D] of LoRAs' own captions: no attack reads them."""
        return self.base.encode_text([self.recipe.caption(name) for name in persons.names])


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
    kept_apart = len(public) - NON_MEMBERS
    sides = {
        "shadows": public.some(range(given.shadows)),
        "others": public.some(range(kept_apart - given.others, kept_apart)),
        "non_members": public.some(range(kept_apart, len(public))),
        "victims": victims,
    }
    check_disjoint(sides)
    step = StepRecipe(learning_rate=3e-3, weight_decay=0.01, clip=1.0, batch=given.batch)
    recipe = CorpusRecipe(
        rank=given.rank, scale=27 / 16, steps=given.steps, pictures=4, step=step, start=RANDOM,
        class_word=CLASS_PROMPT, triggers=2, seed=16,
    )  # fmt: skip
    return Experiment(
        base=base, **sides, held_out=held_out, recipe=recipe, folder=given.work / "corpora", together=given.together
    )
