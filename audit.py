"""What does a LoRA leak about who was in it? Asks the model once, runs every attack, writes a report."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from library.options import resolve, sources
from library.plain_text import for_shell, plain, plain_lines
from library.prompt_exit import interruptible

DOOR = Path(__file__).stem


def main(arguments: list[str]) -> int:
    """Audit every LoRA that was named; returns 0, or with ``fail_above`` what advice.exit_status says of them."""
    words = sources.outputs_named(arguments, resolve.TYPES)
    config = resolve.read_config(DOOR, words)
    given = {name: getattr(config, name) for name in resolve.given_options(DOOR, words)}

    # Imported after the options: torch and the model libraries take seconds, and --help needs none of them
    import torch

    from library.assembly import audit_lora
    from library.assembly.beside import measures
    from library.audit.report import advice, audit_result, most_exposed, publication, report_page
    from library.audit.targets import candidates, lora_runs, provenance
    from library.training import messages

    messages.show_library_messages(wanted=True, level="DEBUG" if config.verbose else config.console_log_level)
    torch.set_num_threads(1)  # the queries have a thread per core of their own

    # The LoRAs, what their files state, and the pictures on their splits
    runs = lora_runs.find_runs(
        [*config.outputs, *([config.undefended] if config.undefended else [])],
        config.checkpoints,
        defaults=dataclasses.asdict(config),
        overrides=given,  # they beat a run's config.toml
        split_file=config.split_file or None,
        typed=resolve.typed_settings,
    )
    adapters = {run.lora: provenance.read_adapter(run.lora) for run in runs}
    asks_membership = "membership" in config.attacks
    candidate_sets = candidates.candidate_sets_of(runs, config.target_fpr if asks_membership else None)

    # Undefended LoRAs first: an attack that fails on them shows nothing about a defence on the same split
    results: dict[Path, audit_result.AuditResult] = {}
    undefended: dict[str, audit_result.Evaluation] = {}  # by split
    of_base: dict = {}  # scores of the base alone: the same for every LoRA on it
    beside = {}  # what was measured of a LoRA beside membership
    for run in sorted(runs, key=lambda run: (adapters[run.lora][2].defended is not False, not run.is_last)):
        print(f"\n{plain(run.label)}: {plain(run.lora)}")
        weights, metadata, origin = adapters[run.lora]
        candidate_set = candidate_sets[run.lora]
        subject = audit_lora.Subject(
            run, config, weights, metadata, origin, candidate_set, given.get("mixed_precision")
        )
        beside[run.lora] = measures.measured(subject, print) if run.is_last else []
        if not asks_membership:
            continue
        drawn = None if config.scores_only else audit_lora.ask_model(subject)
        reference = undefended.get(candidate_set.split_hash) if origin.defended else None
        result = audit_lora.score_attacks(subject, drawn, reference.findings if reference else None, of_base)
        of_base |= result.evaluation.of_base
        results[run.lora] = audit_lora.stamped(subject, result) if config.stamp else result
        if origin.defended is False and run.is_last:
            undefended.setdefault(candidate_set.split_hash, result.evaluation)
        print(plain(report_page.headline(result)))
        if config.stamp:
            print(plain(f"stamped the measured figures into {run.lora}"))

    # Reports, beside each other; then what leaves the private folder, where it was asked for; the verdicts come last
    if not asks_membership:
        return 0
    together = [results[run.lora] for run in runs]
    last = [run for run in runs if run.is_last]
    for run in last:
        exposed = most_exposed.most_exposed_members(results[run.lora], candidate_sets[run.lora].paths())
        page = report_page.write_report(results[run.lora], together, exposed, run.audit, beside[run.lora])
        print(plain(f"report of {run.label}: {page}"))
    if config.publishable:
        audited = [results[run.lora] for run in last]
        print(plain(f"what may be published: {publication.publish(audited, together, Path(config.publishable))}"))
    for run in last:
        print(f"\n{plain(run.label)}: {plain_lines(report_page.summary(results[run.lora]))}")
    judged = [results[run.lora] for run in last[: len(config.outputs)]]  # not the reference of --undefended
    return advice.exit_status(judged, config.fail_above)


def way_on(arguments: Sequence[str]) -> str:
    """How to go on with an audit that was stopped."""
    return f"stopped; what was asked so far is kept. To go on: {for_shell(['bash', f'{DOOR}.sh', *arguments])}"


if __name__ == "__main__":
    sys.exit(resolve.run(interruptible(main, way_on)))
