"""What does a LoRA leak about who was in it? Asks the model once, runs every attack, writes a report."""

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from library import toml_config
from library.audit import blind, candidate_pictures, command_line, denoiser, evidence, examination, generation
from library.audit import outcome, provenance, report, risk_list, runs, shadows, sweeping
from library.audit.battery import ATTACKS, PRIMARY
from library.audit.findings import Finding
from library.audit.sweep_plan import PLANS
from library.config import Config
from library.diffusion import model_files
from library.training import messages
from networks import base_weights, lora

DOOR = Path(__file__).stem
GUIDANCE = 2.0  # of the drawings


def main(arguments: list[str]) -> int:
    """Audit every LoRA that was named; returns 0, whatever the verdicts are."""
    config = toml_config.read_config(DOOR, command_line.outputs_named(arguments, toml_config.TYPES))
    messages.show_library_messages(wanted=True, level=config.console_log_level)
    torch.set_num_threads(1)  # the sweep has a thread per core of its own
    given = {name: getattr(config, name) for name in (
        "pretrained_model_name_or_path", "vae", "train_data_dir", "base_weights", "base_weights_multiplier")}
    listed = runs.find_runs(
        [*config.outputs, *([config.undefended] if config.undefended else [])], config.checkpoints,
        defaults=dataclasses.asdict(config), overrides={name: value for name, value in given.items() if value},
        split_file=config.split_file or None)
    adapters = {run.lora: provenance.read_adapter(run.lora) for run in listed}
    casts = {run.lora: candidate_pictures.find_cast(run.split, candidate_pictures.read_pictures(run.settings))
             for run in listed}
    for cast in casts.values():
        candidate_pictures.require_resolvable(cast.candidates, config.target_fpr)

    # Undefended LoRAs first: an attack that fails on them shows nothing about a defence on the same split
    audited: dict[Path, outcome.Outcome] = {}
    undefended: dict[str, Mapping[str, Finding]] = {}
    for run in sorted(listed, key=lambda run: (adapters[run.lora][2].defended is not False, not run.is_last)):
        print(f"\n{run.label}: {run.lora}")
        cast, origin = casts[run.lora], adapters[run.lora][2]
        drawings = None if config.scores_only else ask_model(run, config, adapters[run.lora], cast)
        found = score(run, config, origin, cast, drawings, undefended.get(cast.split_hash) if origin.defended else None)
        audited[run.lora] = found
        if origin.defended is False and run.is_last:
            undefended.setdefault(cast.split_hash, found.examination.findings)
        print(report.summary(found))

    together = [audited[run.lora] for run in listed]
    for run in (run for run in listed if run.is_last):
        found, cast = audited[run.lora], casts[run.lora]
        risks = risk_list.riskiest(found.examination.scores[PRIMARY], cast.candidates, cast.paths())
        print(f"report of {run.label}: {report.write_report(found, together, risks, run.audit)}")
    for run in listed if config.stamp else []:
        provenance.stamp(run.lora, outcome.stamp_facts(audited[run.lora]))
        print(f"stamped the measured figures into {run.lora}")
    return 0


def score(
    run: runs.Run, config: Config, origin: provenance.Provenance, cast: candidate_pictures.Cast,
    drawings: tuple[Finding, dict[str, float]] | None, undefended: Mapping[str, Finding] | None,
) -> outcome.Outcome:
    """Examine the cached answers about one LoRA; no model is needed."""
    started, plan = time.monotonic(), PLANS[config.profile]
    stores, keys = sweeping.read_index(run.sweep_index(plan.name))
    answers = sweeping.evidence_of(stores, keys, plan)
    silent = np.array_equal(answers.on["noise"], answers.off["noise"])
    aux = evidence.aux_view(cast.candidates, config.audit_seed)
    found = examination.examine(
        answers, cast.candidates, blind.blind_controls(cast.paths(), cast.captions(), aux),
        inclusion=cast.inclusion if run.settings["nonmember_share"] == 0.5 else "uneven coins",
        target_fpr=config.target_fpr, seed=config.audit_seed, undefended=undefended,
        extra={"lira": shadows.shadow_scores(answers, cast.candidates.groups, keys, run.audit / "shadows",
                                             config.shadow_loras, config.audit_seed)} if config.shadow_loras else None,
        notes=["the LoRA changes nothing: the model answers exactly as without it"] if silent else [])
    utility = outcome.adaptation_utility(answers, cast.candidates)
    if drawings is not None:
        found.findings["drawings"] = drawings[0]
        utility |= drawings[1]
    facts = {"profile": plan.name, "inclusion": cast.inclusion, "split": cast.split_hash[:16],
             "LoRA": origin.fingerprint[:16], "torch": torch.__version__,
             "seconds for the scores": f"{time.monotonic() - started:.0f}"}
    return outcome.Outcome(
        run.label, origin.method, origin.settings, origin.exposures, origin.defended, found, cast.candidates, utility,
        facts, {attack.name: attack.passes(plan) for attack in ATTACKS})


def ask_model(
    run: runs.Run, config: Config, adapter: tuple[dict[str, torch.Tensor], dict[str, str], provenance.Provenance],
    cast: candidate_pictures.Cast,
) -> tuple[Finding, dict[str, float]] | None:
    """Open the model, put the LoRA in, ask what is not cached yet; returns what drawings show, where asked for."""
    settings, plan, (weights, metadata, origin) = run.settings, PLANS[config.profile], adapter
    model, on_gpu = denoiser.open_model(settings)
    base_weights.merge_base_weights(model, settings["base_weights"], settings["base_weights_multiplier"])
    provenance.check_base(run.lora, metadata, model.fingerprint, model.file_hashes)
    asked, effort = with_adapter(run, model, weights, on_gpu), sweeping.effort_of(config.sweep_batch_size, on_gpu)
    sizes = candidate_pictures.training_sizes(cast.examples, model.side_multiple())
    pictures = candidate_pictures.encode_cast(
        cast, sizes, model, plan.crop_share if plan.crop_timesteps else None, Path(config.cache_dir))
    stores = sweeping.stores_of(
        run.audit / "records", Path(config.cache_dir) / "audit", plan, base=model.fingerprint,
        adapter=origin.fingerprint, shape=origin.shape, kind="cuda bf16" if on_gpu else "cpu fp32",
        preprocess=f"{settings['clip_skip']} {settings['max_token_length']} {model.schedule_in_words()}")
    sweeping.sweep_all(asked, pictures, plan, stores, effort)
    sweeping.write_index(run.sweep_index(plan.name), stores, [picture.key for picture in pictures])
    if config.shadow_loras:
        trainer, options = Path(__file__).with_name(f"{origin.trainer}.py"), run.lora.parent / "config.toml"
        for file, place in shadows.train_shadows(run.split, cast.candidates, run.audit / "shadows", trainer, options,
                                                 config.shadow_loras, config.audit_seed, plan.name):
            model, _ = denoiser.open_model(settings)
            base_weights.merge_base_weights(model, settings["base_weights"], settings["base_weights_multiplier"])
            shadow = with_adapter(run, model, provenance.read_adapter(file)[0], on_gpu)
            sweeping.sweep_shadow(shadow, pictures, plan, place, effort)
    if config.generated_images == 0:
        return None
    rows = generation.drawing_rows(cast.candidates, config.generation_captions)
    drawn = sweeping.draw_all(asked, [pictures[row] for row in rows], stores, images=config.generated_images,
                              steps=config.generation_steps, guidance=GUIDANCE, effort=effort)
    return (generation.drawing_finding(*drawn, cast.candidates, rows, config.audit_seed),
            generation.drawing_quality(*drawn, cast.candidates, rows))


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
                                max_token_length=run.settings["max_token_length"], half=half)


if __name__ == "__main__":
    sys.exit(toml_config.run(main))
