"""DP-LoRA: differentially private LoRA by DP-SGD (arXiv 1607.00133), noise multiplicity K (arXiv 2210.09929)."""

import sys
from pathlib import Path

from library.assembly.outputs import open_outputs
from library.assembly.run import open_run
from library.assembly.then_audit import then_audit
from library.assembly.time_forecast import time_forecast
from library.assembly.training import open_training
from library.options import resolve

DOOR = Path(__file__).stem


def main(arguments: list[str]) -> int:
    """Train one LoRA; returns 0, 130 after Ctrl-C, or the audit's status."""
    run = open_run(resolve.read_options(DOOR, arguments))  # the split, the model with its network, the plan
    config = run.config
    run.say(run.summary())
    if config.dry_run:
        run.say(run.forecast(arguments), time_forecast(run))
        return 0
    if run.is_finished():
        run.say(run.how_it_ended())
        return 0
    training = open_training(run)  # latents, units of privacy, what has been learnt so far
    private = training.private()

    with open_outputs(run, training) as outputs:  # log, LoRA files, states, previews
        for step in training.steps():
            training.seed_step(step)
            total, seen = private.zeros(), []
            for part, units in enumerate(private.passes_of(step)):  # Poisson sampling: none at all may come
                training.before_pass(step, part)
                found = private.gradients(units, step)  # [U, P], of each unit's mean loss over pictures and draws
                total += private.clipped(found)  # sum of g * min(1, C / |g|)
                seen.append(found.figures())
            private.hand_over(private.noisy_mean(total, step))  # (sum + N(0, (sigma C)^2)) / expected units
            figures = training.take_private_step(step, seen)
            outputs.after_step(step + 1, figures)
            status = outputs.stopped(step + 1, figures)
            if status is not None:
                return status
        status = outputs.finish()
    run.say(outputs.summary())
    return then_audit(run) if config.audit and status == 0 else status


if __name__ == "__main__":
    sys.exit(resolve.run(main))
