"""The shadow corpus: LoRAs of public persons by the victim's recipe, trained many at once, kept and resumed."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from library.audit.reconstruction.persons import PersonSet, check_disjoint
from library.audit.reconstruction.stacked_game import GameRecipe, open_game
from library.audit.reconstruction.stacked_lora import (
    Factors,
    StackedModel,
    factors_from_state,
    fresh_factors,
    joined,
    weight_shape,
)
from library.audit.reconstruction.stacked_training import OnStep, StepRecipe, train_stack
from library.errors import InputError, shortened
from library.incoming.texts import read_json
from library.progress import counted
from library.seeding import stream
from library.tensor_files import not_finite, private_folder, read_tensors, write_tensors, write_whole

FORMAT = 2
SNAPSHOTS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)  # shares of the steps
RANDOM, SHARED = "random", "shared"  # where the down factors start: drawn for each LoRA, or public and the same
LETTERS = "abcdefghijklmnopqrstuvwxyz"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusRecipe:
    """How every LoRA of a corpus is trained: the victim's recipe as far as the attacker knows it."""

    rank: int
    scale: float  # alpha / rank
    steps: int
    pictures: int  # of each person
    step: StepRecipe
    start: str  # RANDOM or SHARED
    class_word: str  # of the caption: "<trigger> <trigger> <class word>"
    triggers: int  # unused words in the caption
    seed: int
    game: GameRecipe | None = None  # PLoRA or SPLoRA; needs non-members

    def snapshot_steps(self) -> list[int]:
        """Steps after which the factors are kept."""
        return sorted({max(1, round(share * self.steps)) for share in SNAPSHOTS})

    def caption(self, person: str) -> str:
        """Class word behind random words of 4 to 11 letters; never written to disk."""
        chance = stream(self.seed, "trigger words", person)
        words = []
        for _ in range(self.triggers):
            length = int(torch.randint(4, 12, (), generator=chance))
            words.append("".join(LETTERS[i] for i in torch.randint(0, 26, (length,), generator=chance).tolist()))
        return " ".join([*words, self.class_word])


@dataclass(frozen=True)
class Corpus:
    """Trained LoRAs of P persons, all by one recipe."""

    persons: PersonSet
    at: dict[int, Factors]  # [P, ...] by steps done
    start: Factors  # their untrained factors: what a real attacker does not have, for evaluation alone
    recipe: CorpusRecipe
    fingerprint: str

    @property
    def last(self) -> Factors:
        """As published."""
        return self.at[self.recipe.steps]


def corpus_facts(model: StackedModel, recipe: CorpusRecipe, non_members: PersonSet | None = None) -> dict[str, object]:
    """All that the LoRAs depend on but their pictures."""
    facts = {
        "format": FORMAT,
        "base": model.fingerprint,
        "layers": hashlib.sha256(" ".join(model.layers).encode()).hexdigest(),
        "recipe": {name: value for name, value in asdict(recipe).items() if value is not None},
    }
    return facts | ({"non_members": non_members.fingerprint()} if non_members else {})


def fingerprint_of(facts: dict[str, object]) -> str:
    """SHA-256 over the facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def make_corpus(  # noqa: PLR0913  all that a corpus is
    model: StackedModel,
    encode_text: Callable[[Sequence[str]], Tensor],
    persons: PersonSet,
    recipe: CorpusRecipe,
    folder: Path,
    *,
    together: int,
    name: str = "shadow LoRAs",
    on_step: OnStep | None = None,
    non_members: PersonSet | None = None,
) -> Corpus:
    """Train what ``folder`` does not have yet, ``together`` LoRAs at once, and return all of them.

    The LoRA of a person is the same whoever is trained beside it, so a stopped corpus goes on where it stood, and a
    larger one takes over the pieces of a smaller one.

    Args:
        encode_text: captions -> text states [P, T, D] of the base.
        folder: of all corpora; those of one base and recipe share a folder in it (0700, files 0600), named by a hash of
            both. A piece is named by a hash of its persons' pictures.
        on_step: see ``train_stack``; called for LoRAs that are trained now and not for those that were kept.
        non_members: other public persons, whom the proxies of the recipe's game tell a LoRA's own person from.

    Raises:
        InputError: persons with another number of pictures; a game without non-members, or with some who are persons
            of the corpus, or beside DP-SGD; a kept corpus that is damaged, or that of another base or
            recipe under this name; values that are not finite.
    """
    if persons.latents.shape[1] != recipe.pictures:
        raise InputError(f"the recipe has {recipe.pictures} pictures a person, got {persons.latents.shape[1]}")
    if recipe.start not in (RANDOM, SHARED):
        raise InputError(f"start must be '{RANDOM}' or '{SHARED}', got '{recipe.start}'")
    check_game(recipe, persons, non_members)
    facts = corpus_facts(model, recipe, non_members)
    fingerprint = fingerprint_of(facts)
    place = private_folder(private_folder(folder) / fingerprint[:32])
    check_facts(place, facts)
    write_whole(place / "corpus.json", json.dumps(facts, indent=1) + "\n")
    bar = counted(len(persons) * recipe.steps, name, "LoRA steps")
    pieces = []
    for first in range(0, len(persons), together):
        some = persons.some(range(first, min(first + together, len(persons))))
        file, identity = place / f"{some.fingerprint()[:32]}.safetensors", fingerprint + some.fingerprint()
        if not file.is_file():
            state = _trained(model, encode_text, some, recipe, non_members, on_step, bar)
            write_tensors(file, state, {"corpus": identity})
        else:
            bar.update(len(some) * recipe.steps)
        pieces.append(read_piece(file, model.layers, recipe, identity, len(some)))
    bar.close()
    steps = recipe.snapshot_steps()
    at = {step: joined([piece[step] for piece in pieces]) for step in steps}
    whole = hashlib.sha256(f"{fingerprint} {persons.fingerprint()}".encode()).hexdigest()
    return Corpus(persons, at, joined([piece[0] for piece in pieces]), recipe, whole)


def check_game(recipe: CorpusRecipe, persons: PersonSet, non_members: PersonSet | None) -> None:
    """Raises: InputError for a game without non-members or the reverse, one beside DP-SGD, or shared persons."""
    if (recipe.game is None) != (non_members is None):
        given, missing = ("a game", "non-members") if recipe.game else ("non-members", "a game")
        raise InputError(f"shadow LoRAs with {given} need {missing} as well; give both or neither")
    if recipe.game and recipe.step.noise_multiplier:
        raise InputError("shadow LoRAs are trained with a game or with DP-SGD; take the other out of the recipe")
    if non_members is not None:
        check_disjoint({"persons of the corpus": persons, "non-members of its game": non_members})


def check_facts(place: Path, facts: dict[str, object]) -> None:
    """Raises: InputError when the folder holds the corpus of another base or recipe."""
    file = place / "corpus.json"
    if not file.is_file():
        return
    kept = read_json(file, f"'{file}'")
    stated = kept if isinstance(kept, dict) else {}
    other = [key for key, value in facts.items() if stated.get(key) != value]
    if other:
        raise InputError(
            f"'{place}' holds shadow LoRAs of another {' and '.join(other)}; nothing was changed. Move the folder "
            "away, or give the base and the recipe that it was made with"
        )


def untrained(model: StackedModel, persons: PersonSet, recipe: CorpusRecipe) -> Factors:
    """The LoRAs of these persons before their first step."""
    names = [() if recipe.start == SHARED else (name,) for name in persons.names]
    generators = [stream(recipe.seed, "A0", *words) for words in names]
    return fresh_factors(model.layers, recipe.rank, recipe.scale, generators)


def _trained(
    model: StackedModel,
    encode_text: Callable[[Sequence[str]], Tensor],
    persons: PersonSet,
    recipe: CorpusRecipe,
    non_members: PersonSet | None,
    on_step: OnStep | None,
    bar: object,
) -> dict[str, Tensor]:
    """Factors of every snapshot and of the start, under the names of a file."""
    start = untrained(model, persons, recipe)
    with torch.no_grad():
        contexts = encode_text([recipe.caption(name) for name in persons.names])

    game = None
    if recipe.game is not None and non_members is not None:
        others = non_members.latents.flatten(0, 1)
        game = open_game(model, recipe.game, persons.latents, others, contexts, persons.names, recipe.seed)

    def stepped(step: int, factors: Factors, batch: object) -> None:
        bar.update(len(persons))  # type: ignore[attr-defined]
        if on_step is not None:
            on_step(step, factors, batch)  # type: ignore[arg-type]

    kept = train_stack(
        model, start, persons.latents, contexts, recipe.steps, recipe.step, persons.names,
        seed=recipe.seed, snapshots=recipe.snapshot_steps(), on_step=stepped,
        objective=game.objective if game else None,
    )  # fmt: skip
    if game and game.accuracies:
        logger.info("proxies tell %d LoRAs' own pictures from others': %.3f", len(persons), game.told_apart())
    kept[0] = start
    state = {f"{step}/{key}": value for step, one in kept.items() for key, value in one.state().items()}
    if bad := not_finite(state):
        raise InputError(
            f"{len(bad)} tensors of the shadow LoRAs became NaN or infinite: the learning rate "
            f"{recipe.step.learning_rate:g} is too high for this base"
        )
    return state


def read_piece(
    file: Path, layers: Mapping[str, nn.Module], recipe: CorpusRecipe, identity: str, count: int
) -> dict[int, Factors]:
    """Factors by steps done (0 = untrained) of some LoRAs of a corpus.

    Raises:
        InputError: a file of another corpus, or a damaged one.
    """
    tensors, metadata = read_tensors(file)
    if metadata.get("corpus") != identity:
        raise InputError(f"'{file}' belongs to another corpus; remove it, it is made again")
    expected = {
        f"{step}/{name}.{part}": shape
        for step in (0, *recipe.snapshot_steps())
        for name, layer in layers.items()
        for part, shape in shapes_of(layer, recipe.rank, count)
    }
    bad = [*not_finite(tensors), *(set(tensors) ^ set(expected))]
    bad += [name for name, shape in expected.items() if name in tensors and tuple(tensors[name].shape) != shape]
    bad += [name for name in expected if name in tensors and tensors[name].dtype != torch.float32]
    if bad:
        raise InputError(
            f"'{file}' is damaged ({len(bad)} tensors: {shortened(sorted(bad), 3)}); remove it, it is made again"
        )
    by_step: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        step, _, key = name.partition("/")
        by_step.setdefault(int(step), {})[key] = value
    return {step: factors_from_state(state, recipe.scale) for step, state in by_step.items()}


def shapes_of(layer: nn.Module, rank: int, count: int) -> list[tuple[str, tuple[int, int, int]]]:
    """Names and shapes of both factors of ``count`` LoRAs."""
    d_out, d_in = weight_shape(layer)
    return [("down", (count, rank, d_in)), ("up", (count, d_out, rank))]
