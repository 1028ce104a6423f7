"""The robustness part of an audit: the same pictures and noise for the base, the LoRA, and the LoRA cut to ranks."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from library import leftovers
from library.assembly.audit_lora import SHORT_NAMES, Subject
from library.audit.queries import audited_model
from library.audit.queries.answer_cache import AnswerArrays, AnswerCache, cache_key
from library.audit.queries.run_queries import Effort, Stages, effort_of, fill
from library.audit.report.beside import Beside
from library.audit.report.sections.robustness_section import beside_of
from library.audit.robustness import leak, objectives, pictures, ranks, robustness_findings
from library.audit.robustness.questions import Questions, RobustnessRules
from library.audit.robustness.robustness_result import RobustnessResult, as_json
from library.audit.robustness.sizes import read_ranks, read_sizes
from library.audit.targets import candidates, provenance
from library.audit.targets.candidate_table import Picture
from library.diffusion.latent_diffusion import LatentDiffusion
from library.diffusion.vae import decoder_of
from library.errors import Faults
from library.file_table import AUDIT_DIR
from library.lora_files.lora_file import read_lora
from library.rules import pick
from library.tensor_files import private_folder, state_fingerprint, write_whole
from networks.command_line import factors_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """The model, the pictures, and where answers about them lie."""

    model: LatentDiffusion
    questions: Questions
    batch: Sequence[Picture]  # those that are changed
    tested: Sequence[Picture]  # all of the test sides
    records: Path
    common: tuple[str, ...]  # what every key holds
    effort: Effort
    stages: Stages

    @property
    def keys(self) -> list[str]:
        """Of the pictures."""
        return [one.key for one in self.batch]


def measured(subject: Subject) -> Beside:
    """Measure one LoRA, write robustness.json, and say what was found."""
    config, run = subject.config, subject.run
    faults = Faults()
    sizes, asked = read_sizes(config.robustness_eps, faults), read_ranks(config.robustness_ranks, faults)
    faults.raise_if_any()
    modules = factors_in(read_lora(run.lora), "cut to a rank, which attacks robustness compares")
    cuts = ranks.cut_ranks(modules, asked)
    everybody = subject.candidate_set.candidates
    rows = pictures.chosen_rows(everybody, config.robustness_pictures)
    tested = pictures.tested_rows(everybody)
    leftovers.sweep(run.audit, AUDIT_DIR)
    model = audited_model.opened_base(run.settings)
    provenance.check_base(run.lora, subject.metadata, model.fingerprint, model.file_hashes)
    variants = ranks.variants_of(subject.weights, modules, cuts)
    bench = bench_of(subject, model, rows, tested, sizes, 2 * len(variants) + 1)
    of_code = asked_of_code(bench)
    answers, losses = asked_of_variants(bench, variants, of_code, subject.weights)
    chosen = pictures.facts_of(everybody, rows)
    result = RobustnessResult(
        variants=variants,
        sizes=sizes,
        findings=robustness_findings.findings_of(answers, chosen, sizes),
        checks=robustness_findings.checks_of(answers, chosen),
        code=robustness_findings.code_findings(of_code, chosen, sizes),
        leaks=leak.leaks_of(losses, pictures.facts_of(everybody, tested), config.audit_seed),
        pictures={side: chosen.sides.count(side) for side in pictures.SIDES},
        groups=len(set(chosen.groups)),
        rules=bench.questions.rules,
    )
    content = json.dumps(as_json(result), indent=1) + "\n"
    write_whole(private_folder(run.audit) / "robustness.json", content, private=True)
    return beside_of(result)


def bench_of(
    subject: Subject,
    model: LatentDiffusion,
    rows: Sequence[int],
    tested: Sequence[int],
    sizes: Sequence[float],
    stages: int,
) -> Bench:
    """Pictures, pixels and keys of the answers.

    Args:
        rows: pictures that are changed.
        tested: all pictures of the test sides.
    """
    config, run, device = subject.config, subject.run, model.unet.device
    precision = audited_model.precision_of(device, subject.precision or "no")  # half precision would blur gradients
    audited = audited_model.audited_model_of(
        model,
        [],
        lambda state: None,
        **{name: run.settings[name] for name in audited_model.TEXT_STATES},
        precision=precision,
    )
    training_sizes = candidates.training_sizes(subject.candidate_set.examples, model.side_multiple())
    everybody = candidates.encode_candidates(
        candidates.some_of(subject.candidate_set, tested),
        [training_sizes[row] for row in tested],
        model,
        None,
        Path(config.cache_dir),
    )
    batch = [everybody[tested.index(row)] for row in rows]
    pixels = pictures.pixels_of(subject.candidate_set, training_sizes, rows)
    for part in (model.unet, model.text_encoder, model.vae):
        part.requires_grad_(False)
    questions = Questions(
        audited,
        objectives.encoder_of(model.vae),
        decoder_of(model.vae),
        {one.key: value for one, value in zip(batch, pixels, strict=True)},
        sizes,
        pick(config, RobustnessRules),
    )
    text_states = [run.settings[name] for name in audited_model.TEXT_STATES]
    common = (
        questions.name(),
        model.fingerprint,
        f"{text_states} {model.schedule_summary()}",
        f"{device.type} {SHORT_NAMES[precision]}",
        str([run.settings[name] for name in ("base_weights", "base_weights_multiplier")]),
    )
    effort = effort_of(config.sweep_batch_size, device.type == "cuda")
    return Bench(
        model, questions, batch, everybody, private_folder(run.audit) / "records", common, effort, Stages(stages)
    )


def asked_of_code(bench: Bench) -> AnswerArrays:
    """The VAE's code attacked: once, since no LoRA is in it."""
    folder = bench.records / cache_key("robustness of the code", *bench.common)
    fill_private(bench, folder, bench.batch, bench.questions.of_code, "the VAE's code")
    return AnswerCache(folder).gather(bench.keys)


def asked_of_variants(
    bench: Bench, variants: Sequence[ranks.Variant], of_code: AnswerArrays, weights: Mapping[str, Tensor]
) -> tuple[dict[str, AnswerArrays], dict[str, AnswerArrays]]:
    """Every variant attacked, and its losses on the whole test sides; by the variant's name.

    The base comes first, since its changes are tried on the others.
    """
    by_code = dict(zip(bench.keys, torch.from_numpy(of_code["change"]), strict=True))
    exchange = ranks.Exchangeable(bench.model.unet, bench.model.text_encoder, weights)
    of_base: dict[str, Tensor] | None = None
    answers: dict[str, AnswerArrays] = {}
    losses: dict[str, AnswerArrays] = {}
    for variant in variants:
        exchange.put(variant)
        of_whom = "base" if variant.tensors is None else state_fingerprint(variant.tensors)
        folder = bench.records / cache_key("robustness", of_whom, *bench.common)
        ask = partial(bench.questions.of_variant, by_code=by_code, of_base=of_base)
        fill_private(bench, folder, bench.batch, ask, variant.name)
        found = AnswerCache(folder).gather(bench.keys)
        if of_base is None:
            of_base = dict(zip(bench.keys, torch.from_numpy(found.pop("change")), strict=True))
        answers[variant.name] = found
        place = bench.records / cache_key("losses", of_whom, str(leak.TIMESTEPS), *bench.common[1:])
        plain_losses = partial(leak.losses_of, bench.questions.audited)
        fill_private(bench, place, bench.tested, plain_losses, f"{variant.name}, losses")
        losses[variant.name] = AnswerCache(place).gather([one.key for one in bench.tested])
    return answers, losses


def fill_private(
    bench: Bench,
    folder: Path,
    batch: Sequence[Picture],
    ask: Callable[[list[Picture]], dict[str, Tensor]],
    name: str,
) -> None:
    """Ask what is not answered yet, in the audit's private folder alone: the answers hold changed pictures."""
    private_folder(folder.parent)
    fill(folder, batch, ask, bench.effort, bench.stages.begin(f"robustness, {name}"))
