"""The attack on the weights of one LoRA: public knowledge first, then every attack that it allows, then the score."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from library.assembly.audit_lora import Subject
from library.assembly.beside.stacked_base import StackedBase, latents_of, read_persons, stacked_base
from library.audit.queries.audited_model import opened_base
from library.audit.reconstruction.one_lora import FEW, OneRow, TestPictures, checked_one, one_lora_rows
from library.audit.reconstruction.persons import PersonSet
from library.audit.reconstruction.pictures.contact_sheet import contact_sheet
from library.audit.reconstruction.pictures.one_file import Painted, painted_rows
from library.audit.reconstruction.pictures.picture_rows import PictureSettings
from library.audit.reconstruction.pictures.samplers import Course
from library.audit.reconstruction.probes import PROBES, public_probes
from library.audit.reconstruction.retrieval import public_space
from library.audit.reconstruction.shadow_corpus import RANDOM, CorpusRecipe, make_corpus
from library.audit.reconstruction.stacked_lora import Factors, factors_of_file, stackable_layers
from library.audit.reconstruction.stacked_training import StepRecipe
from library.audit.reconstruction.weight_attacks import (
    RAW,
    PublicKnowledge,
    asked,
    fitted_readers,
    shadow_free_readers,
)
from library.audit.report.beside import Beside
from library.audit.report.sections.reconstruction_section import reconstruction_json, reconstruction_section
from library.audit.targets import provenance
from library.diffusion.vae import decoder_of
from library.errors import InputError
from library.tensor_files import private_folder, write_whole

logger = logging.getLogger(__name__)
PICTURES, BATCH = 4, 2  # of each shadow's person; of a step
TOGETHER = 25  # shadow LoRAs in one batch
LEAST_SHADOWS, LEAST_PROBES = 16, 8
PAINTINGS = 4  # of each row
LEARNING = "attacks that learn from shadow LoRAs"


@dataclass(frozen=True)
class Public:
    """What an attacker has of the domain besides the file: pictures, by person where a public folder says whose."""

    latents: Tensor  # [M, 4, h, w]
    persons: PersonSet | None


def measured(subject: Subject) -> Beside:
    """Attack one LoRA's weights, write reconstruction.json, and say what was found and what was skipped."""
    config, run = subject.config, subject.run
    model = opened_base(run.settings)
    provenance.check_base(run.lora, subject.metadata, model.fingerprint, model.file_hashes)
    layers = stackable_layers(model.unet)
    target = factors_of_file(subject.weights, layers, run.lora)
    base = stacked_base(model, run.settings, {name: layers[name] for name in target.down})
    skipped = unread_parts(subject, target)
    public = public_pictures(subject, base, skipped)
    known = knowledge(subject, base, public, target, skipped)
    readers = shadow_free_readers()
    if known.shadows is not None:
        answers = asked(base.stack, known.shadows, known, "probes of shadow LoRAs").answers
        readers += [one for one in fitted_readers(known, answers, cosine=True) if one.attack != RAW]
    scored = test_pictures(subject, base)
    painted = paint(subject, base, target, known, public, scored)
    rows = checked_one([*one_lora_rows(base.stack, target, readers, known, scored, config.audit_seed), *painted.rows])
    write_json(subject, rows, skipped, known)
    return reconstruction_section(rows, skipped)


def paint(
    subject: Subject, base: StackedBase, target: Factors, known: PublicKnowledge, public: Public, scored: TestPictures
) -> Painted:
    """Pictures from the file alone, on a sheet for the owner's eyes (0600 in a 0700 folder), and how near they come."""
    config, stack = subject.config, base.stack
    last = len(stack.alphas_cumprod) - 1
    steps = min(config.generation_steps, last)
    course = Course(stack.alphas_cumprod, steps, round(0.98 * last), float(public.latents.abs().max()))
    settings = PictureSettings(course, course, PAINTINGS, together=1, seed=config.audit_seed)
    painted = painted_rows(stack, target, known, scored, settings, config.audit_seed)
    decode = decoder_of(base.model.vae)
    shown = [(name, (decode(made)[None] * 255).round().to(torch.uint8)) for name, made in painted.outputs.items()]
    folder = private_folder(private_folder(subject.run.audit) / "reconstruction")
    title = f"painted with the file and the prompt '{config.class_prompt}' alone, {steps} steps"
    write_whole(folder / "pictures.png", contact_sheet(shown, title))
    return painted


def unread_parts(subject: Subject, target: Factors) -> list[str]:
    """What of the file no attack reads."""
    others = {name.partition(".")[0] for name in subject.weights} - set(target.down)
    said = "its text encoder's modules and convolutions wider than 1 x 1, which these attacks leave out"
    return [f"{len(others)} modules of the file: {said}"] if others else []


def public_pictures(subject: Subject, base: StackedBase, skipped: list[str]) -> Public:
    """Of the public folder; without one the non-members of the aux side stand in for pictures of the same domain.

    Raises:
        InputError: public pictures that are on the split; too few of them.
    """
    config, cache = subject.config, Path(subject.config.cache_dir)
    if config.public_data_dir:
        persons = read_persons(base, Path(config.public_data_dir), PICTURES, cache)
        seen = {one for shown in persons.pictures for one in shown}
        shared = seen & set(subject.candidate_set.candidates.pixels)
        if shared:
            raise InputError(
                f"{len(shared)} pictures of public_data_dir are on the split of '{subject.run.lora}'; an attack that "
                "was fitted on them proves nothing. Give a public folder of other persons"
            )
        return Public(persons.latents.flatten(0, 1), persons)
    skipped.append(
        f"{LEARNING} (invariant kernel, probes with ridge): they need public pictures grouped "
        "by person; give them with --public_data_dir. Non-members of the aux side stand in for public pictures"
    )
    rows = subject.candidate_set.candidates.indices("non-members-aux").tolist()
    latents = latents_of(base, [subject.candidate_set.examples[row] for row in rows], cache)
    latents = [one for one in latents if one.shape == latents[0].shape]
    if len(latents) < LEAST_PROBES:
        raise InputError(f"{LEAST_PROBES} aux non-members are needed as public pictures, got {len(latents)}")
    return Public(torch.stack(latents), None)


def knowledge(
    subject: Subject, base: StackedBase, public: Public, target: Factors, skipped: list[str]
) -> PublicKnowledge:
    """The public space, the probes, and shadow LoRAs by the target's recipe where there are persons for them."""
    config = subject.config
    space = public_space(public.latents)
    context = base.encode_text([config.class_prompt])[0]
    probes = public_probes(base.stack, public.latents, context, config.audit_seed, min(PROBES, len(public.latents)))
    if public.persons is None:
        return PublicKnowledge(space, probes, None, space.coefficients(public.latents.flatten(1)))
    recipe = recipe_of(subject, target, skipped)
    persons = public.persons.some(range(min(config.reconstruction_shadows, len(public.persons))))
    if recipe is None or len(persons) < LEAST_SHADOWS:
        if recipe is not None:
            skipped.append(f"{LEARNING}: {len(persons)} public persons, {LEAST_SHADOWS} needed")
        return PublicKnowledge(space, probes, None, space.coefficients(persons.means()))
    folder = private_folder(private_folder(subject.run.audit) / "reconstruction") / "shadows"
    corpus = make_corpus(base.stack, base.encode_text, persons, recipe, folder, together=TOGETHER)
    return PublicKnowledge(space, probes, corpus.last, space.coefficients(persons.means()))


def recipe_of(subject: Subject, target: Factors, skipped: list[str]) -> CorpusRecipe | None:
    """The target's layout, rank, scale and learning rate on pictures of one person; None where ranks differ."""
    config, settings = subject.config, subject.run.settings
    ranks = {value.shape[1] for value in target.down.values()}
    scales = {target.scale_of(name) for name in target.down}
    if len(ranks) > 1 or len(scales) > 1:
        skipped.append(
            f"{LEARNING}: the file has modules of {len(ranks)} ranks and {len(scales)} scales, and a shadow corpus has "
            "one of each"
        )
        return None
    rate = settings["learning_rate"] if settings["unet_lr"] is None else settings["unet_lr"]
    return CorpusRecipe(
        rank=ranks.pop(),
        scale=scales.pop(),
        steps=config.reconstruction_steps,
        pictures=PICTURES,
        step=StepRecipe(learning_rate=rate, weight_decay=0.01, clip=1.0, batch=BATCH),
        start=RANDOM,
        class_word=config.class_prompt,
        triggers=2,
        seed=config.audit_seed,
    )


def test_pictures(subject: Subject, base: StackedBase) -> TestPictures:
    """The pictures for scoring: of both test sides, or of every side where there are few members."""
    everybody = subject.candidate_set.candidates
    few = int(everybody.is_member.sum()) <= FEW
    rows = [row for row in range(len(everybody.pixels)) if few or everybody.is_test[row]]
    if few:  # aux non-members may have stood in for public pictures
        rows = [row for row in rows if everybody.is_member[row] or everybody.is_test[row]]
    latents = latents_of(base, [subject.candidate_set.examples[row] for row in rows], Path(subject.config.cache_dir))
    kept = [place for place, one in enumerate(latents) if one.shape == latents[0].shape]
    if len(kept) < len(rows):
        logger.info("%d pictures of another size are left out of the attack on the weights", len(rows) - len(kept))
    return TestPictures(
        torch.stack([latents[place] for place in kept]),
        [bool(everybody.is_member[rows[place]]) for place in kept],
        [everybody.groups[rows[place]] for place in kept],
    )


def write_json(subject: Subject, rows: Sequence[OneRow], skipped: Sequence[str], known: PublicKnowledge) -> None:
    """Aggregate figures (0600 in a 0700 folder)."""
    facts: dict[str, Any] = {
        "shadows": 0 if known.shadows is None else known.shadows.count,
        "probes": len(known.probes.timesteps),
        "components": known.space.basis.shape[1],
        "audit_seed": subject.config.audit_seed,
    }
    content = json.dumps(reconstruction_json(rows, skipped, facts), indent=1) + "\n"
    write_whole(private_folder(subject.run.audit) / "reconstruction.json", content, private=True)
