"""What LoRA files of single persons give away by their weights alone, undefended and defended; resumable.

python -m benchmarks.leak_of_weights WORK --public DIR --held_out DIR [--victims 50 --shadows 150 ...]

DIR of --public and --held_out come from demo/build.py: strangers for the shadow LoRAs, and further pictures of the
private persons. WORK keeps corpora and findings-<shadows>.json, which docs/pictures_from_weights.md is written from. A
run with more shadows takes over the corpora of one with fewer.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.leak_experiment import CLASS_PROMPT, NON_MEMBERS, Experiment, opened, parsed
from benchmarks.unknown_recipe import unknown_recipe_rows
from library.audit.reconstruction.gallery import gallery_drops, open_gallery
from library.audit.reconstruction.gap_stopping import stopped_at_gap
from library.audit.reconstruction.persons import PersonSet
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
from library.audit.reconstruction.shadow_corpus import Corpus, CorpusRecipe
from library.audit.reconstruction.stacked_game import PLORA, SPLORA
from library.audit.reconstruction.stacked_lora import Factors, joined
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
from library.privacy.dp.accounting import calibrated_noise
from library.tensor_files import write_whole

UNDEFENDED = WeightDefence(NONE)
ON_FILES = (
    WeightDefence("early stopping", 0.45), WeightDefence("noise", 3.0), WeightDefence("early stopping", 0.3),
    WeightDefence("truncation", 1), WeightDefence("noise", 1.0), WeightDefence("noise", 10.0),
    WeightDefence(GAUGE),
)  # fmt: skip
DELTA = 1e-3
UTILITY_OF = 20  # victims
ADAPTIVE_PROBED = 50  # defended shadows that are asked the probes; the kernel learns from all


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
class Shared:
    """LoRAs as they are shared under a defence."""

    victims: Factors  # of the first victims
    others: Factors  # of persons who are no candidate
    shadows: Factors | None  # made with the defence by who knows of it; None: it changes nothing that an attack reads
    persons: PersonSet  # of the shadows
    facts: dict[str, Any]  # of the defence


def attack_rows(
    run: Experiment, victims: Asked, others: Asked, known: PublicKnowledge, answers: Tensor, more: Sequence[Reader] = ()
) -> list[RetrievalRow]:
    """Every reader that is fitted on the shadows of ``known``, on the LoRAs of victims and of others.

    Args:
        answers: [m, P, C] of the first m shadows.
        more: readers that learn from none.
    """
    ranks = [next(iter(one.down.values())).shape[1] for one in (known.shadows, victims.factors)]
    same = len(set(ranks)) == 1  # raw factors of other ranks have other numbers
    readers = [*(one for one in fitted_readers(known, answers) if one.attack != RAW or same), *more]
    sets, count = candidates_of(run, known.space), victims.factors.count  # all victims' sets are candidates
    return checked_rows(reader_rows(readers, victims, others, sets, sets[PRIVATE_SET][:count], range(count), known))


def gallery_rows(
    run: Experiment, corpora: dict[str, Corpus], known: PublicKnowledge, images: int
) -> list[RetrievalRow]:
    """The gallery among the private sets (a membership test of sets) and among held-out pictures (identity)."""
    context = run.base.encode_text([CLASS_PROMPT])[0]
    count, true = len(run.victims), range(len(run.victims))
    sets = candidates_of(run, known.space)
    others = corpora["others"].last
    both = joined([corpora["victims"].last, others])
    rows = []
    for target, persons in ((PRIVATE_SET, run.victims), (HELD_OUT, run.held_out)):
        gallery = open_gallery(run.base.stack, persons.latents, context, run.recipe.seed, images)
        drops = gallery_drops(run.base.stack, both, gallery)
        centre = drops[count:].mean(0)  # what LoRAs of other persons find easier as well
        scores, strangers = drops[:count] - centre, drops[count:] - centre
        rows.append(
            row_of(
                attack="gallery", title="gallery: fall of the loss", target=target, shadows=others.count,
                knows=(WEIGHTS, BASE, RECIPE, "candidate pictures"), scores=scores, true=true,
                nothing=torch.zeros_like(scores) - centre, others=strangers[[i % others.count for i in range(count)]],
                ceiling=cosine_scores(sets[PRIVATE_SET], sets[target], known.centre),
            )
        )  # fmt: skip
    return rows


def usefulness(run: Experiment, factors: Factors) -> dict:
    """Fall of the loss under the LoRA's own caption, with intervals over victims."""
    some = range(min(UTILITY_OF, factors.count))
    contexts = run.contexts(run.victims)
    strangers = run.non_members.some([place % len(run.non_members) for place in some])
    sides = {
        "own pictures": run.victims.some(some),
        "held-out pictures": run.held_out.some(some),
        "strangers' pictures": strangers,  # what is learnt of the style and of no person
    }
    values = {
        name: utility(run.base.stack, factors.rows(some), persons, contexts, run.recipe.seed).double().numpy()
        for name, persons in sides.items()
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


def measured(run: Experiment, shared: Shared, known: PublicKnowledge, answers: Tensor) -> dict:
    """Utility beside leak, for the attacker who does not know the defence and for the one who does.

    Args:
        answers: of the undefended shadows of ``known``.
    """
    victims = asked(run.base.stack, shared.victims, known, "probes of victims")
    others = asked(run.base.stack, shared.others, known, "probes of others")
    naive = [row_json(row) for row in attack_rows(run, victims, others, known, answers, shadow_free_readers())]
    adaptive = naive
    if shared.shadows is not None:
        some = shared.shadows.rows(range(min(ADAPTIVE_PROBED, shared.shadows.count)))
        own = dataclasses.replace(known, shadows=shared.shadows, means=known.space.coefficients(shared.persons.means()))
        own_answers = asked(run.base.stack, some, own, "probes").answers
        adaptive = [row_json(row) for row in attack_rows(run, victims, others, own, own_answers)]
    return {"utility": usefulness(run, shared.victims), "naive": naive, "adaptive": adaptive} | shared.facts


def on_files(run: Experiment, corpora: dict[str, Corpus], defence: WeightDefence) -> Shared:
    """Undefended LoRAs with something done to the files; shadows made with "none" or a new gauge tell nothing new."""
    made = {name: published(corpus, defence) for name, corpus in corpora.items()}
    if defence.kind in (NONE, GAUGE):
        return Shared(made["victims"], made["others"], None, run.shadows, {})
    return Shared(made["victims"], made["others"], made["shadows"], run.shadows, {})


def at_gap(run: Experiment, corpora: dict[str, Corpus], limit: float) -> Shared:
    """Undefended LoRAs that end before they know their own pictures too well."""
    strangers = run.non_members.latents.flatten(0, 1)[:: max(1, NON_MEMBERS // 2)]
    made, steps = {}, {}
    for name, corpus in corpora.items():
        context = run.contexts(corpus.persons)
        made[name], steps[name] = stopped_at_gap(run.base.stack, corpus, context, strangers, limit)
    facts = {"gap": limit, "victims_steps": steps["victims"], "strangers": len(strangers)}
    return Shared(made["victims"], made["others"], made["shadows"], run.shadows, facts)


def trained(run: Experiment, recipe: CorpusRecipe, name: str, given: Any, facts: dict[str, Any]) -> Shared:
    """Victims, and the shadows of the one who knows, by a recipe with a defence in it."""
    victims, shadows = min(given.trained_victims, given.victims), min(given.adaptive, given.shadows)
    persons = {
        "victims": run.victims.some(range(victims)),
        "shadows": run.shadows.some(range(shadows)),
        "others": run.others,
    }
    made = {side: run.corpus(some, f"{name}, {side}: LoRAs", recipe).last for side, some in persons.items()}
    told = facts | {"shadows": shadows, "steps": recipe.steps}
    return Shared(made["victims"], made["others"], made["shadows"], persons["shadows"], told)


def defences(run: Experiment, given: Any, corpora: dict[str, Corpus]) -> Iterator[tuple[str, Callable[[], Shared]]]:
    """Title of every defence, and what makes its LoRAs; what says most comes first."""
    steps = given.defended_steps or given.steps
    tail = f", {steps} steps" if steps != given.steps else ""

    def game(objective: str, alpha: float) -> tuple[str, Callable[[], Shared]]:
        title, facts = f"{objective}, alpha {alpha:g}{tail}", {"alpha": alpha}
        return title, lambda: trained(run, run.game_recipe(objective, alpha, steps), title, given, facts)

    def private(epsilon: float) -> tuple[str, Callable[[], Shared]]:
        title = f"DP-SGD, epsilon {epsilon:g}{tail}"

        def make() -> Shared:
            noise = calibrated_noise(epsilon, run.recipe.step.batch / run.recipe.pictures, DELTA, steps)
            facts = {"epsilon": epsilon, "delta": DELTA, "noise_multiplier": noise}
            return trained(run, run.private_recipe(noise, steps), title, given, facts)

        return title, make

    def ranked(rank: int) -> tuple[str, Callable[[], Shared]]:
        title, recipe = f"trained at rank {rank}", dataclasses.replace(run.recipe, rank=rank)
        return title, lambda: trained(run, recipe, title, given, {"rank": rank})

    yield UNDEFENDED.title(), lambda: on_files(run, corpora, UNDEFENDED)
    for limit in given.gaps:
        yield f"stopped at a gap of {100 * limit:g} %", lambda limit=limit: at_gap(run, corpora, limit)
    yield from (game(SPLORA, alpha) for alpha in given.splora)
    yield from (private(epsilon) for epsilon in given.epsilon)
    yield from (game(PLORA, alpha) for alpha in given.plora)
    yield from (ranked(rank) for rank in given.ranks)
    for defence in ON_FILES:
        yield defence.title(), lambda defence=defence: on_files(run, corpora, defence)


def main(arguments: list[str]) -> None:
    """Corpora, attacks, defences; findings are written after each, so that a stopped run goes on where it stood."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = parsed(__doc__, arguments)
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
    for title, make in defences(run, given, corpora):
        findings.measure("defences", title, lambda make=make: measured(run, make(), known, answers))
    if given.ranks:
        sets, ranks = candidates_of(run, space), sorted({given.rank, *given.ranks})
        findings.measure(
            "undefended", "unknown recipe",
            lambda: unknown_recipe_rows(run, corpora["shadows"], known, sets, ranks, given.trained_victims),
        )  # fmt: skip
    if given.gallery:
        findings.measure(
            "undefended", "gallery",
            lambda: [row_json(row) for row in checked_rows(gallery_rows(run, corpora, known, given.gallery))],
        )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
