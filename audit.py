"""What does a LoRA leak about who was in it? Asks the model once, runs every attack, writes a report."""

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from library import toml_config
from library.audit import blind, candidate_pictures, command_line, denoiser, evidence, examination, generation
from library.audit import image_encoders, outcome, provenance, publication, report, risk_list, runs
from library.audit import shadow_attacks, shadows, sweeping
from library.audit.findings import Finding
from library.audit.sweep_plan import PLANS
from library.config import Config
from library.diffusion import model_files
from library.plain_text import plain, plain_lines
from library.rules import pick
from library.training import messages
from networks import base_weights, lora

DOOR, HERE = Path(__file__).stem, Path(__file__).parent
SEEN = ("clip_skip", "max_token_length", "weighted_captions")  # what shapes the text states


def main(arguments: list[str]) -> int:
    """Audit every LoRA that was named; returns 0, whatever the verdicts are."""
    words = command_line.outputs_named(arguments, toml_config.TYPES)
    config = toml_config.read_config(DOOR, words)
    messages.show_library_messages(wanted=True, level=config.console_log_level)
    torch.set_num_threads(1)  # the sweep has a thread per core of its own
    said = {name: getattr(config, name) for name in toml_config.named_options(DOOR, words)}  # beats a run's config.toml
    listed = runs.find_runs(
        [*config.outputs, *([config.undefended] if config.undefended else [])], config.checkpoints,
        defaults=dataclasses.asdict(config), overrides=said, split_file=config.split_file or None)
    adapters = {run.lora: provenance.read_adapter(run.lora) for run in listed}
    casts = candidate_pictures.casts_of(listed, config.target_fpr)

    # Undefended LoRAs first: an attack that fails on them shows nothing about a defence on the same split
    audited: dict[Path, outcome.Outcome] = {}
    undefended: dict[str, Mapping[str, Finding]] = {}
    of_base: dict[str, dict] = {}  # what the attacks say of the base alone: the same for every LoRA on it
    for run in sorted(listed, key=lambda run: (adapters[run.lora][2].defended is not False, not run.is_last)):
        print(f"\n{plain(run.label)}: {plain(run.lora)}")
        cast, origin = casts[run.lora], adapters[run.lora][2]
        drawings = None if config.scores_only else ask_model(run, config, adapters[run.lora], cast)
        shown = undefended.get(cast.split_hash) if origin.defended else None
        found = score(run, config, origin, cast, drawings, shown, of_base)
        audited[run.lora] = found
        if origin.defended is False and run.is_last:
            undefended.setdefault(cast.split_hash, found.examination.findings)
        print(plain_lines(report.summary(found)))

    together = [audited[run.lora] for run in listed]
    for run in (run for run in listed if run.is_last):
        found = audited[run.lora]
        risks = risk_list.riskiest(found, casts[run.lora].paths())
        print(plain(f"report of {run.label}: {report.write_report(found, together, risks, run.audit)}"))
    for run in listed if config.stamp else []:
        provenance.stamp(run.lora, outcome.stamp_facts(audited[run.lora]))
        print(plain(f"stamped the measured figures into {run.lora}"))
    if config.publishable:
        done = [(run.lora, audited[run.lora]) for run in listed if run.is_last]
        print(plain(f"what may be published: {publication.publish(done, together, Path(config.publishable))}"))
    return 0


def score(
    run: runs.Run, config: Config, origin: provenance.Provenance, cast: candidate_pictures.Cast,
    drawn: generation.Drawings | None, undefended: Mapping[str, Finding] | None, of_base: dict[str, dict],
) -> outcome.Outcome:
    """Examine the cached answers about one LoRA; no model is needed."""
    started, plan, planned = time.monotonic(), PLANS[config.profile], shadows_of(run, config, origin, cast)
    shelf = sweeping.Shelf(Path(config.cache_dir) / "audit", cast.split_hash)
    answers = sweeping.evidence_of(*sweeping.read_index(run.sweep_index(plan.name), shelf, origin.fingerprint), plan)
    blinded = blind.blind_controls(cast.paths(), cast.captions(), evidence.aux_view(cast.candidates, config.audit_seed))
    found = examination.examine(
        answers, cast.candidates, blinded, epsilon_doubt=cast.doubt_of_coins(run.settings),
        target_fpr=config.target_fpr, seed=config.audit_seed, undefended=undefended, of_base=of_base,
        extra=shadow_attacks.likelihood_scores(answers, planned.halves, shelf),
        shadow=shadow_attacks.transferred_scores(
            answers, planned.transfer, cast.candidates, config.audit_seed, shelf),
        notes=["the LoRA changes nothing: the model answers exactly as without it"] if answers.is_silent() else [])
    facts = {"inclusion": cast.inclusion, "torch": torch.__version__,
             "seconds for the scores": f"{time.monotonic() - started:.0f}"}
    facts |= shadow_attacks.exposures_in_words(origin.exposures, planned.transfer)
    return outcome.outcome_of((run.label, run.alias), origin, found, cast.candidates, answers, drawn, facts)


def shadows_of(
    run: runs.Run, config: Config, origin: provenance.Provenance, cast: candidate_pictures.Cast
) -> shadows.Planned:
    """The shadow LoRAs that were asked for, and how they are trained."""
    options = toml_config.recipe_of(origin.trainer, run.settings)
    trainer = HERE / f"{origin.trainer}.py" if origin.trainer else None
    recipe = shadows.Recipe(trainer, options, run.split, run.audit / "shadows")
    return shadows.planned(recipe, cast.candidates, pick(config, shadows.ShadowRules))


def ask_model(
    run: runs.Run, config: Config, adapter: tuple[dict[str, torch.Tensor], dict[str, str], provenance.Provenance],
    cast: candidate_pictures.Cast,
) -> generation.Drawings | None:
    """Open the model, put the LoRA in, ask what is not cached yet; returns what drawings show, where asked for."""
    settings, plan, (weights, metadata, origin) = run.settings, PLANS[config.profile], adapter
    planned = shadows_of(run, config, origin, cast)
    model, on_gpu = opened_base(settings)
    provenance.check_base(run.lora, metadata, model.fingerprint, model.file_hashes)
    asked, effort = with_adapter(run, model, weights, on_gpu), sweeping.effort_of(config.sweep_batch_size, on_gpu)
    sizes = candidate_pictures.training_sizes(cast.examples, model.side_multiple())
    pictures = candidate_pictures.encode_cast(
        cast, sizes, model, plan.crop_share if plan.crop_timesteps else None, Path(config.cache_dir))
    bench = sweeping.Bench(
        pictures, plan, effort, sweeping.Shelf(Path(config.cache_dir) / "audit", cast.split_hash), model.fingerprint,
        f"{[settings[name] for name in SEEN]} {model.schedule_in_words()}", "cuda bf16" if on_gpu else "cpu fp32")
    stores = bench.stores(run.audit / "records", origin.fingerprint, origin.shape)
    eyes = image_encoders.open_eyes(model.vae, pick(config, image_encoders.EyeRules))
    bench.sweep(asked, stores, run.sweep_index(plan.name), origin.fingerprint)

    def opened(file: Path) -> tuple[denoiser.Denoiser, provenance.Provenance]:
        adapted, _, known = provenance.read_adapter(file)
        return with_adapter(run, opened_base(settings)[0], adapted, on_gpu), known

    shadow_attacks.ask_shadows(planned, cast.candidates, bench, opened)
    if config.generated_images == 0:
        return None
    rules = pick(config, generation.DrawingRules)
    rows = generation.drawing_rows(cast.candidates, rules.generation_captions)
    drawn = sweeping.draw_all(asked, [pictures[row] for row in rows], stores, rules, eyes, effort)
    real = candidate_pictures.looks_at(cast, sizes, rows, eyes.looks)
    return generation.drawings_of(*drawn, real, cast.candidates, rows, rules=rules, eyes=eyes, seed=config.audit_seed)


def opened_base(settings: Mapping[str, Any]) -> tuple[model_files.LatentDiffusion, bool]:
    """The base as the training had it, base_weights merged; and whether it is on a GPU."""
    model, on_gpu = denoiser.open_model(settings)
    base_weights.merge_base_weights(model, settings["base_weights"], settings["base_weights_multiplier"])
    return model, on_gpu


def with_adapter(
    run: runs.Run, model: model_files.LatentDiffusion, weights: dict[str, torch.Tensor], half: bool
) -> denoiser.Denoiser:
    """Put the LoRA into the model, switchable between on, off and fresh (an untrained one of its shape)."""
    torch.manual_seed(0)  # of the untrained adapter's down factors
    network, own = lora.create_network_from_weights(
        1.0, run.lora, model.vae, model.text_encoder, model.unet, weights)
    network.apply_to(model.text_encoder, model.unet, True, True)
    network.to(next(model.unet.parameters()).device).requires_grad_(True)
    layers = [denoiser.AdapterLayer(one.lora_name, one.lora_down, one.lora_up) for one in network.modules_of_both()]
    return denoiser.denoiser_of(model, layers, denoiser.switch_of(network, own), clip_skip=run.settings["clip_skip"],
                                max_token_length=run.settings["max_token_length"],
                                weighted_captions=run.settings["weighted_captions"], half=half)


if __name__ == "__main__":
    sys.exit(toml_config.run(main))
