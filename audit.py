"""What does a LoRA leak about who was in it? Asks the model once, runs every attack, writes a report."""

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from library.audit.attacks import blind_baselines, lira, shadow_models
from library.audit.attacks.attack_result import Finding
from library.audit.images import feature_extractors, generated
from library.audit.queries import audited_model, run_queries
from library.audit.queries.query_plan import PLANS
from library.audit.report import audit_result, evaluation, most_exposed, publication, report_page
from library.audit.targets import candidate_table, candidates, lora_runs, provenance
from library.diffusion import model_files
from library.options import resolve, sources
from library.options.declarations import Config
from library.plain_text import plain, plain_lines
from library.rules import pick
from library.training import messages
from networks import base_weights, lora, per_sample_gradients

DOOR, HERE = Path(__file__).stem, Path(__file__).parent
SEEN = ("clip_skip", "max_token_length", "weighted_captions")  # what shapes the text states


def main(arguments: list[str]) -> int:
    """Audit every LoRA that was named; returns 0, whatever the verdicts are."""
    words = sources.outputs_named(arguments, resolve.TYPES)
    config = resolve.read_config(DOOR, words)
    messages.show_library_messages(wanted=True, level=config.console_log_level)
    torch.set_num_threads(1)  # the sweep has a thread per core of its own
    said = {name: getattr(config, name) for name in resolve.given_options(DOOR, words)}  # beats a run's config.toml
    listed = lora_runs.find_runs(
        [*config.outputs, *([config.undefended] if config.undefended else [])],
        config.checkpoints,
        defaults=dataclasses.asdict(config),
        overrides=said,
        split_file=config.split_file or None,
    )
    adapters = {run.lora: provenance.read_adapter(run.lora) for run in listed}
    candidate_sets = candidates.candidate_sets_of(listed, config.target_fpr)

    # Undefended LoRAs first: an attack that fails on them shows nothing about a defence on the same split
    audited: dict[Path, audit_result.AuditResult] = {}
    undefended: dict[str, Mapping[str, Finding]] = {}
    of_base: dict[str, dict] = {}  # what the attacks say of the base alone: the same for every LoRA on it
    for run in sorted(listed, key=lambda run: (adapters[run.lora][2].defended is not False, not run.is_last)):
        print(f"\n{plain(run.label)}: {plain(run.lora)}")
        candidate_set, origin = candidate_sets[run.lora], adapters[run.lora][2]
        drawings = None if config.scores_only else ask_model(run, config, adapters[run.lora], candidate_set)
        shown = undefended.get(candidate_set.split_hash) if origin.defended else None
        found = score(run, config, origin, candidate_set, drawings, shown, of_base)
        audited[run.lora] = found
        if origin.defended is False and run.is_last:
            undefended.setdefault(candidate_set.split_hash, found.evaluation.findings)
        print(plain_lines(report_page.summary(found)))

    together = [audited[run.lora] for run in listed]
    for run in (run for run in listed if run.is_last):
        found = audited[run.lora]
        exposed = most_exposed.most_exposed_members(found, candidate_sets[run.lora].paths())
        print(plain(f"report of {run.label}: {report_page.write_report(found, together, exposed, run.audit)}"))
    for run in listed if config.stamp else []:
        provenance.stamp(run.lora, audit_result.stamp_facts(audited[run.lora]))
        print(plain(f"stamped the measured figures into {run.lora}"))
    if config.publishable:
        done = [(run.lora, audited[run.lora]) for run in listed if run.is_last]
        print(plain(f"what may be published: {publication.publish(done, together, Path(config.publishable))}"))
    return 0


def score(
    run: lora_runs.Run,
    config: Config,
    origin: provenance.Provenance,
    candidate_set: candidates.CandidateSet,
    drawn: generated.Drawings | None,
    undefended: Mapping[str, Finding] | None,
    of_base: dict[str, dict],
) -> audit_result.AuditResult:
    """Examine the cached answers about one LoRA; no model is needed."""
    started, plan, planned = time.monotonic(), PLANS[config.profile], shadows_of(run, config, origin, candidate_set)
    shelf = run_queries.Shelf(Path(config.cache_dir) / "audit", candidate_set.split_hash)
    answers = run_queries.read_answers(
        *run_queries.read_index(run.answer_index(plan.name), shelf, origin.fingerprint), plan
    )
    blinded = blind_baselines.blind_controls(
        candidate_set.paths(),
        candidate_set.captions(),
        candidate_table.aux_view(candidate_set.candidates, config.audit_seed),
    )
    found = evaluation.examine(
        answers,
        candidate_set.candidates,
        blinded,
        epsilon_doubt=candidate_set.doubt_of_coins(run.settings),
        target_fpr=config.target_fpr,
        seed=config.audit_seed,
        undefended=undefended,
        of_base=of_base,
        extra=lira.likelihood_scores(answers, planned.halves, shelf),
        shadow=lira.transferred_scores(answers, planned.transfer, candidate_set.candidates, config.audit_seed, shelf),
        notes=["the LoRA changes nothing: the model answers exactly as without it"] if answers.is_silent() else [],
    )
    facts = {
        "inclusion": candidate_set.inclusion,
        "torch": torch.__version__,
        "seconds for the scores": f"{time.monotonic() - started:.0f}",
    }
    facts |= lira.exposures_summary(origin.exposures, planned.transfer)
    return audit_result.audit_result_of(
        (run.label, run.alias), origin, found, candidate_set.candidates, answers, drawn, facts
    )


def shadows_of(
    run: lora_runs.Run, config: Config, origin: provenance.Provenance, candidate_set: candidates.CandidateSet
) -> shadow_models.Planned:
    """The shadow LoRAs that were asked for, and how they are trained."""
    options = resolve.recipe_of(origin.trainer, run.settings)
    trainer = HERE / f"{origin.trainer}.py" if origin.trainer else None
    recipe = shadow_models.Recipe(trainer, options, run.split, run.audit / "shadows")
    return shadow_models.planned(recipe, candidate_set.candidates, pick(config, shadow_models.ShadowRules))


def ask_model(
    run: lora_runs.Run,
    config: Config,
    adapter: tuple[dict[str, torch.Tensor], dict[str, str], provenance.Provenance],
    candidate_set: candidates.CandidateSet,
) -> generated.Drawings | None:
    """Open the model, put the LoRA in, ask what is not cached yet; returns what drawings show, where asked for."""
    settings, plan, (weights, metadata, origin) = run.settings, PLANS[config.profile], adapter
    planned = shadows_of(run, config, origin, candidate_set)
    model, on_gpu = opened_base(settings)
    provenance.check_base(run.lora, metadata, model.fingerprint, model.file_hashes)
    asked, effort = with_adapter(run, model, weights, on_gpu), run_queries.effort_of(config.sweep_batch_size, on_gpu)
    sizes = candidates.training_sizes(candidate_set.examples, model.side_multiple())
    pictures = candidates.encode_candidates(
        candidate_set, sizes, model, plan.crop_share if plan.crop_timesteps else None, Path(config.cache_dir)
    )
    queries = run_queries.QueryRunner(
        pictures,
        plan,
        effort,
        run_queries.Shelf(Path(config.cache_dir) / "audit", candidate_set.split_hash),
        model.fingerprint,
        f"{[settings[name] for name in SEEN]} {model.schedule_summary()}",
        "cuda bf16" if on_gpu else "cpu fp32",
    )
    stores = queries.stores(run.audit / "records", origin.fingerprint, origin.shape)
    extractors = feature_extractors.open_extractors(model.vae, pick(config, feature_extractors.ExtractorRules))
    queries.ask(asked, stores, run.answer_index(plan.name), origin.fingerprint)

    def opened(file: Path) -> tuple[audited_model.AuditedModel, provenance.Provenance]:
        adapted, _, known = provenance.read_adapter(file)
        return with_adapter(run, opened_base(settings)[0], adapted, on_gpu), known

    lira.ask_shadows(planned, candidate_set.candidates, queries, opened)
    if config.generated_images == 0:
        return None
    rules = pick(config, generated.DrawingRules)
    rows = generated.drawn_indices(candidate_set.candidates, rules.generation_captions)
    drawn = generated.draw_all(asked, [pictures[row] for row in rows], stores, rules, extractors, effort)
    real = candidates.features_of(candidate_set, sizes, rows, extractors.features)
    return generated.drawings_of(
        *drawn, real, candidate_set.candidates, rows, rules=rules, extractors=extractors, seed=config.audit_seed
    )


def opened_base(settings: Mapping[str, Any]) -> tuple[model_files.LatentDiffusion, bool]:
    """The base as the training had it, base_weights merged; and whether it is on a GPU."""
    model, on_gpu = audited_model.open_model(settings)
    base_weights.merge_base_weights(model, settings["base_weights"], settings["base_weights_multiplier"])
    return model, on_gpu


def with_adapter(
    run: lora_runs.Run, model: model_files.LatentDiffusion, weights: dict[str, torch.Tensor], half: bool
) -> audited_model.AuditedModel:
    """Put the LoRA into the model, switchable between on, off and fresh (an untrained one of its shape)."""
    torch.manual_seed(0)  # of the untrained adapter's down factors
    network, own = lora.create_network_from_weights(1.0, run.lora, model.vae, model.text_encoder, model.unet, weights)
    network.apply_to(model.text_encoder, model.unet, True, True)
    network.to(next(model.unet.parameters()).device).requires_grad_(True)
    layers = [
        per_sample_gradients.AdapterLayer(one.lora_name, one.lora_down, one.lora_up)
        for one in network.modules_of_both()
    ]
    return audited_model.audited_model_of(
        model,
        layers,
        audited_model.switch_of(network, own),
        clip_skip=run.settings["clip_skip"],
        max_token_length=run.settings["max_token_length"],
        weighted_captions=run.settings["weighted_captions"],
        half=half,
    )


if __name__ == "__main__":
    sys.exit(resolve.run(main))
