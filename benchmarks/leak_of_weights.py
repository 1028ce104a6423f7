"""What LoRA files of single persons give away by their weights alone, undefended and defended; resumable.

python benchmarks/leak_of_weights.py WORK --public DIR --held_out DIR [--victims 50 --shadows 150 ...]

The base and the victims' private pictures are the demo's (demo/images, whose persons the base never saw). DIR of
--public and --held_out come from demo/build.py: strangers for the shadow LoRAs, and further pictures of the private
persons. WORK keeps corpora and findings-<shadows>.json, which docs/pictures_from_weights.md is written from. A run with
more shadows takes over the corpora of one with fewer.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from library.assembly.beside.stacked_base import StackedBase, read_persons, stacked_base
from library.audit.queries.audited_model import opened_base
from library.audit.reconstruction.gallery import gallery_drops, open_gallery
from library.audit.reconstruction.persons import PersonSet, check_disjoint
from library.audit.reconstruction.probes import public_probes
from library.audit.reconstruction.retrieval import (
    PublicSpace,
    RetrievalRow,
    checked_rows,
    cosine_scores,
    mean_figure,
    public_space,
    row_json,
    row_of,
)
from library.audit.reconstruction.shadow_corpus import RANDOM, Corpus, CorpusRecipe, make_corpus
from library.audit.reconstruction.stacked_lora import Factors, joined
from library.audit.reconstruction.stacked_training import StepRecipe
from library.audit.reconstruction.weight_attacks import (
    BASE,
    HELD_OUT,
    PRIVATE_SET,
    RAW,
    RECIPE,
    WEIGHTS,
    Asked,
    PublicKnowledge,
    Reader,
    asked,
    fitted_readers,
    reader_rows,
    shadow_free_readers,
)
from library.audit.reconstruction.weight_defences import GAUGE, NONE, WeightDefence, published, utility
from library.options.declarations import Config
from library.privacy.dp.accounting import calibrated_noise
from library.tensor_files import private_folder, write_whole

ROOT = Path(__file__).parent.parent
CLASS_PROMPT = "portrait"
DEFENCES = (
    WeightDefence("none"), WeightDefence("noise", 3.0), WeightDefence("early stopping", 0.3),
    WeightDefence("truncation", 1), WeightDefence("noise", 1.0), WeightDefence("noise", 10.0),
    WeightDefence("early stopping", 0.1), WeightDefence("re-gauge"),
)  # fmt: skip
DELTA = 1e-3
DP_CLIP = 0.03  # the middle norm of one picture's gradient on the demo base
UTILITY_OF = 20  # victims
ADAPTIVE_PROBED = 50  # defended shadows that are asked the probes; the kernel learns from all


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
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
    parser.add_argument("--epsilon", type=float, nargs="*", default=[50.0, 10.0])
    parser.add_argument("--adaptive_dp", type=int, default=50, help="shadows that are trained with DP-SGD as well")
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
        private = {"noise_multiplier": noise, "clip": DP_CLIP} if noise else {}
        step = dataclasses.replace(self.recipe.step, **private)
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


def known_by(run: Experiment, shadows: Factors | None, persons: PersonSet, space: PublicSpace) -> PublicKnowledge:
    """What an attack is fitted on: public pictures, and these shadows of public persons."""
    context = run.base.encode_text([CLASS_PROMPT])[0]
    public = torch.cat([run.shadows.latents, run.others.latents]).flatten(0, 1)
    probes = public_probes(run.base.stack, public, context, run.recipe.seed)
    return PublicKnowledge(space, probes, shadows, space.coefficients(persons.means()))


def candidates_of(run: Experiment, space: PublicSpace) -> dict[str, Tensor]:
    """[V, C] of the private sets, and of held-out pictures of the same persons."""
    return {
        PRIVATE_SET: space.coefficients(run.victims.means()),
        HELD_OUT: space.coefficients(run.held_out.means()),
    }


@dataclasses.dataclass(frozen=True)
class Attacked:
    """The LoRAs under attack, as published, with their answers to the probes."""

    victims: Asked
    others: Asked
    published: Factors  # of the victims


def attacked(run: Experiment, corpora: dict[str, Corpus], known: PublicKnowledge, defence: WeightDefence) -> Attacked:
    """Ask the victims' LoRAs, and those of others, under a defence."""
    own, strangers = (published(corpora[name], defence) for name in ("victims", "others"))
    return Attacked(
        asked(run.base.stack, own, known, "probes of victims"),
        asked(run.base.stack, strangers, known, "probes of others"),
        own,
    )


def attack_rows(
    run: Experiment, under: Attacked, known: PublicKnowledge, answers: Tensor, more: Sequence[Reader] = ()
) -> list[RetrievalRow]:
    """Every reader that is fitted on the shadows of ``known``.

    Args:
        answers: [m, P, C] of the first m shadows.
        more: readers that learn from none.
    """
    ranks = [next(iter(one.down.values())).shape[1] for one in (known.shadows, under.published)]
    same = len(set(ranks)) == 1  # raw factors of other ranks have other numbers
    readers = [*(one for one in fitted_readers(known, answers) if one.attack != RAW or same), *more]
    sets = candidates_of(run, known.space)
    return checked_rows(
        reader_rows(readers, under.victims, under.others, sets, sets[PRIVATE_SET], range(len(run.victims)), known)
    )


def gallery_rows(
    run: Experiment, corpora: dict[str, Corpus], known: PublicKnowledge, images: int
) -> list[RetrievalRow]:
    """The gallery among the private sets (a membership test of sets) and among held-out pictures (identity)."""
    context = run.base.encode_text([CLASS_PROMPT])[0]
    count, true = len(run.victims), range(len(run.victims))
    sets = candidates_of(run, known.space)
    both = joined([corpora["victims"].last, corpora["others"].last.rows(range(10))])
    rows = []
    for target, persons in ((PRIVATE_SET, run.victims), (HELD_OUT, run.held_out)):
        gallery = open_gallery(run.base.stack, persons.latents, context, run.recipe.seed, images)
        drops = gallery_drops(run.base.stack, both, gallery)
        centre = drops[count:].mean(0)  # what LoRAs of other persons find easier as well
        scores, strangers = drops[:count] - centre, drops[count:] - centre
        rows.append(
            row_of(
                attack="gallery", title="gallery: fall of the loss", target=target, shadows=10,
                knows=(WEIGHTS, BASE, RECIPE, "candidate pictures"), scores=scores, true=true,
                nothing=torch.zeros_like(scores) - centre, others=strangers[[i % 10 for i in range(count)]],
                ceiling=cosine_scores(sets[PRIVATE_SET], sets[target], known.centre),
            )
        )  # fmt: skip
    return rows


def usefulness(run: Experiment, factors: Factors) -> dict:
    """Fall of the loss on the victims' own and on held-out pictures, own caption, with intervals over victims."""
    some = range(min(UTILITY_OF, len(run.victims)))
    contexts = run.contexts()
    values = {
        name: utility(run.base.stack, factors.rows(some), persons.some(some), contexts, run.recipe.seed)
        .double()
        .numpy()
        for name, persons in (("own pictures", run.victims), ("held-out pictures", run.held_out))
    }
    return {name: dataclasses.asdict(mean_figure(value)) | {"n": len(value)} for name, value in values.items()}


class Findings:
    """The findings of a run: what is there is not measured again."""

    def __init__(self, file: Path, facts: dict) -> None:
        self.file = file
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if kept and kept["facts"] != facts:
            sys.exit(f"{file} is of another experiment; give another WORK")
        self.content = kept or {"facts": facts, "undefended": {}, "defences": {}}

    def measure(self, part: str, name: str, make: Callable[[], object]) -> None:
        """Measure one part, unless it stands, and write the file."""
        if name not in self.content[part]:
            self.content[part][name] = make()
            write_whole(self.file, json.dumps(self.content, indent=1) + "\n")
        print(f"{part}, {name}: stands", flush=True)


def measure_defence(
    run: Experiment, corpora: dict[str, Corpus], known: PublicKnowledge, answers: Tensor, defence: WeightDefence,
    private: Corpus | None = None,
) -> dict:  # fmt: skip
    """Utility beside leak, for the attacker who does not know the defence and for the one who does.

    Args:
        answers: of the undefended shadows of ``known``.
        private: shadows that were trained with the defence; None: it acts on finished files.
    """
    under = attacked(run, corpora, known, defence)
    naive = [row_json(row) for row in attack_rows(run, under, known, answers, shadow_free_readers())]
    if defence.kind in (NONE, GAUGE) and private is None:
        adaptive = naive  # shadows made with it are the same changes
    else:
        shadows = private or corpora["shadows"]
        factors = published(shadows, defence)
        some = asked(run.base.stack, factors.rows(range(min(ADAPTIVE_PROBED, factors.count))), known, "probes").answers
        own = known_by(run, factors, shadows.persons, known.space)
        adaptive = [row_json(row) for row in attack_rows(run, under, own, some)]
    return {"utility": usefulness(run, under.published), "naive": naive, "adaptive": adaptive}


def main(arguments: list[str]) -> None:
    """Corpora, attacks, defences; findings are written after each, so that a stopped run goes on where it stood."""
    given = parsed(arguments)
    torch.set_num_threads(1)
    run = opened(given)
    corpora = {name: run.corpus(getattr(run, name), f"{name}: LoRAs") for name in ("victims", "shadows", "others")}
    space = public_space(run.shadows.latents.flatten(0, 1))
    known = known_by(run, corpora["shadows"].last, run.shadows, space)
    answers = asked(run.base.stack, corpora["shadows"].last, known, "probes of shadows").answers
    findings = Findings(given.work / f"findings-{len(run.shadows)}.json", {
        "victims": len(run.victims), "shadows": len(run.shadows), "others": len(run.others), "pictures": 4,
        "rank": given.rank, "steps": given.steps, "batch": given.batch, "learning_rate": run.recipe.step.learning_rate,
        "base": run.base.stack.fingerprint, "layers": len(run.base.stack.layers), "delta": DELTA,
    })  # fmt: skip
    for defence in DEFENCES:
        findings.measure(
            "defences", defence.title(),
            lambda defence=defence: measure_defence(run, corpora, known, answers, defence),
        )  # fmt: skip
    if given.gallery:
        findings.measure(
            "undefended", "gallery",
            lambda: [row_json(row) for row in checked_rows(gallery_rows(run, corpora, known, given.gallery))],
        )  # fmt: skip
    for epsilon in given.epsilon:
        findings.measure(
            "defences", f"DP, epsilon {epsilon:g}", lambda e=epsilon: measure_dp(run, given, known, answers, e)
        )


def measure_dp(
    run: Experiment, given: argparse.Namespace, known: PublicKnowledge, answers: Tensor, epsilon: float
) -> dict:
    """Victims, and the shadows of the one who knows, trained with DP-SGD."""
    noise = calibrated_noise(epsilon, run.recipe.step.batch / run.recipe.pictures, DELTA, run.recipe.steps)
    some = run.shadows.some(range(given.adaptive_dp))
    corpora = {
        name: run.corpus(persons, f"DP {epsilon:g}, {name}: LoRAs", noise)
        for name, persons in (("victims", run.victims), ("shadows", some), ("others", run.others.some(range(10))))
    }
    found = measure_defence(run, corpora, known, answers, WeightDefence(NONE), corpora["shadows"])
    return found | {"noise_multiplier": noise, "epsilon": epsilon, "delta": DELTA, "shadows": len(some)}


if __name__ == "__main__":
    main(sys.argv[1:])
