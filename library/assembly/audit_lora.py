"""The audit of one LoRA: the model is asked, then every attack is scored on the answers."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from library import leftovers
from library.audit.attacks import blind_baselines, lira, shadow_models
from library.audit.images import feature_extractors, generated
from library.audit.queries import audited_model, run_queries
from library.audit.queries.query_plan import PLANS, QueryPlan
from library.audit.report.audit_result import AuditResult, audit_result_of, audited_file, stamp_facts
from library.audit.report.evaluation import BaseScores, EvaluationInputs, examine
from library.audit.statistics.findings import Finding
from library.audit.targets import candidate_table, candidates, provenance
from library.audit.targets.lora_runs import Run
from library.diffusion.latent_diffusion import LatentDiffusion
from library.file_table import AUDIT_DIR, CACHE_DIR
from library.options import resolve
from library.options.declarations import Config
from library.rules import pick
from networks import adapted_layers

logger = logging.getLogger(__name__)
SHORT_NAMES = {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}  # of what answers were computed in
SUITE = Path(__file__).parents[2]  # where the trainers are


@dataclass(frozen=True)
class Subject:
    """One LoRA file under audit, with all that is known before the model is asked."""

    run: Run
    config: Config  # of the audit
    weights: dict[str, Tensor]  # under kohya's names
    metadata: dict[str, str]
    origin: provenance.Provenance
    candidate_set: candidates.CandidateSet
    precision: str | None  # mixed_precision where the audit was given it

    @property
    def plan(self) -> QueryPlan:
        """The questions."""
        return PLANS[self.config.profile]

    @property
    def shelf(self) -> run_queries.Shelf:
        """Where answers of the base lie."""
        return run_queries.Shelf(Path(self.config.cache_dir) / "audit", self.candidate_set.split_hash)

    def shadows(self) -> shadow_models.Planned:
        """The shadow LoRAs that were asked for."""
        return shadows_of(self.run, self.config, self.origin, self.candidate_set.candidates)


def shadows_of(
    run: Run, config: Config, origin: provenance.Provenance, everybody: candidate_table.Candidates
) -> shadow_models.Planned:
    """The shadow LoRAs that were asked for, and how they are trained."""
    options = resolve.recipe_of(origin.trainer, run.settings)
    if config.shadow_loras or config.shadow_transfer:
        options = shadow_models.of_fixed_length(options, origin.exposures)
    trainer = SUITE / f"{origin.trainer}.py" if origin.trainer else None
    recipe = shadow_models.Recipe(trainer, options, run.split, run.audit / "shadows")
    return shadow_models.planned(recipe, everybody, pick(config, shadow_models.ShadowRules))


def ask_model(subject: Subject) -> generated.Drawings | None:
    """Open the model, put the LoRA in, ask what is not cached yet; returns what the drawings show, if any are made."""
    run, config, candidate_set = subject.run, subject.config, subject.candidate_set
    leftovers.sweep(Path(config.cache_dir), CACHE_DIR)
    leftovers.sweep(run.audit, AUDIT_DIR)
    planned = subject.shadows()
    model = audited_model.opened_base(run.settings)
    precision = audited_model.precision_of(model.unet.device, subject.precision)
    provenance.check_base(run.lora, subject.metadata, model.fingerprint, model.file_hashes)
    audited = audited_model.with_adapter(run, model, subject.weights, precision)
    sizes = candidates.training_sizes(candidate_set.examples, model.side_multiple())
    queries = queries_of(subject, model, sizes, precision)
    stores = queries.stores(run.audit / "records", subject.origin.fingerprint, subject.origin.shape)
    extractors = feature_extractors.open_extractors(model.vae, pick(config, feature_extractors.ExtractorRules))
    if forecast := queries.forecast(audited, stores):
        logger.info("%s", forecast)
    queries.ask(audited, stores, run.answer_index(subject.plan.name), subject.origin.fingerprint)

    def opened(file: Path) -> tuple[audited_model.AuditedModel, provenance.Provenance]:
        weights, _, origin = provenance.read_adapter(file)
        return audited_model.with_adapter(run, audited_model.opened_base(run.settings), weights, precision), origin

    lira.ask_shadows(planned, candidate_set.candidates, queries, opened)
    if config.generated_images == 0:
        return None
    rules = pick(config, generated.DrawingRules)
    rows = generated.drawn_indices(candidate_set.candidates, rules.generation_captions)
    pictures = [queries.pictures[row] for row in rows]
    on, off = generated.draw_all(audited, pictures, stores, rules, extractors, queries.effort, queries.stages)
    real = candidates.features_of(candidate_set, sizes, rows, extractors.features)
    return generated.drawings_of(
        on, off, real, candidate_set.candidates, rows, rules=rules, extractors=extractors, seed=config.audit_seed
    )


def queries_of(
    subject: Subject, model: LatentDiffusion, sizes: list[tuple[int, int]], precision: torch.dtype | None
) -> run_queries.QueryRunner:
    """The encoded pictures and all that names their answers."""
    config, plan, device = subject.config, subject.plan, model.unet.device.type
    crop_share = plan.crop_share if plan.crop_timesteps else None
    pictures = candidates.encode_candidates(subject.candidate_set, sizes, model, crop_share, Path(config.cache_dir))
    text_states = [subject.run.settings[name] for name in audited_model.TEXT_STATES]
    return run_queries.QueryRunner(
        pictures,
        plan,
        run_queries.effort_of(config.sweep_batch_size, device == "cuda"),
        subject.shelf,
        base=model.fingerprint,
        preprocess=f"{text_states} {model.schedule_summary()}",
        kind=f"{device} {SHORT_NAMES[precision]}",
        stages=run_queries.Stages(stage_count(subject)),
    )


def stage_count(subject: Subject) -> int:
    """How many stages ``ask_model`` has: passes and gradients of base and LoRA; shadows with theirs; drawings."""
    shadows = subject.shadows()
    of_shadows = 3 * len(shadows.halves) + (5 if shadows.transfer else 0)  # the ratio reads no gradients
    return 4 + of_shadows + (2 if subject.config.generated_images else 0)


def score_attacks(
    subject: Subject,
    drawn: generated.Drawings | None,
    undefended: Mapping[str, Finding] | None,
    known: BaseScores,
) -> AuditResult:
    """Evaluate the cached answers about one LoRA; no model is needed.

    Args:
        undefended: findings on an undefended LoRA of the same split.
        known: scores of bases alone, from the evaluations before.
    """
    started, run, config, candidate_set = time.monotonic(), subject.run, subject.config, subject.candidate_set
    everybody, planned, shelf = candidate_set.candidates, subject.shadows(), subject.shelf
    index = run_queries.read_index(run.answer_index(subject.plan.name), shelf, subject.origin.fingerprint)
    answers = run_queries.read_answers(*index, subject.plan)
    aux = candidate_table.aux_view(everybody, config.audit_seed)
    is_empty = adapted_layers.changes_nothing(subject.weights) or answers.is_silent()
    silent = ["the LoRA changes nothing: the model answers as without it"] if is_empty else []
    inputs = EvaluationInputs(
        answers,
        everybody,
        blind_baselines.blind_controls(candidate_set.paths(), candidate_set.captions(), aux),
        epsilon_doubt=candidate_set.doubt_of_coins(run.settings),
        target_fpr=config.target_fpr,
        seed=config.audit_seed,
        undefended=undefended,
        extra=lira.likelihood_scores(answers, planned.halves, shelf),
        shadow=lira.transferred_scores(answers, planned.transfer, everybody, config.audit_seed, shelf),
        notes=silent,
    )
    evaluation = examine(inputs, known)
    facts = {
        "inclusion": candidate_set.inclusion,
        "torch": torch.__version__,
        "seconds for the scores": f"{time.monotonic() - started:.0f}",
    }
    facts |= lira.exposures_summary(subject.origin.exposures, planned.transfer)
    file = audited_file(run.lora, str(run.settings["pretrained_model_name_or_path"]))
    return audit_result_of((run.label, run.alias), subject.origin, evaluation, everybody, answers, drawn, facts, file)


def stamped(subject: Subject, result: AuditResult) -> AuditResult:
    """Write the measured figures into the LoRA file; the result then names the file with its new hash."""
    provenance.stamp(subject.run.lora, stamp_facts(result))
    return replace(result, file=audited_file(subject.run.lora, result.file.base))
