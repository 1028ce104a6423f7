"""Stable PrivateLoRA: LoRA against a proxy attacker, objective L / (beta + alpha * CE) (arXiv 2402.11989 eq. 10)."""

import sys
from pathlib import Path

import torch

from library.assembly.outputs import open_outputs
from library.assembly.run import open_run
from library.assembly.then_audit import then_audit
from library.assembly.time_forecast import time_forecast
from library.assembly.training import open_training
from library.options import resolve
from library.privacy.objectives import ratio_objective

DOOR = Path(__file__).stem


def main(arguments: list[str]) -> int:
    """Train one LoRA; returns 0, 130 after Ctrl-C, 1 without a LoRA (not finite, no target met), or the audit's."""
    run = open_run(resolve.read_options(DOOR, arguments))  # the split, the model with its network, the plan
    config = run.config
    run.say(run.summary())
    if config.dry_run:
        run.say(run.forecast(arguments), time_forecast(run))
        return 0
    if run.is_finished():
        run.say(run.how_it_ended())
        return 0
    training = open_training(run)  # latents, both players of the game, what they have learnt so far
    game, accelerator = training.game, run.accelerator

    with open_outputs(run, training) as outputs:  # log, LoRA files, states, previews
        for step in training.steps():
            training.seed_step(step)
            figures = game.attacker_turn(step) if config.update_order == "attacker_first" else {}
            batches = outputs.timed(game.members.of_step, step)
            losses = training.no_losses()
            for part, batch in enumerate(batches):
                training.before_pass(step, part)
                adaptation, attack_loss = game.member_losses(batch, step, part)  # L and CE, [] each
                loss = ratio_objective(adaptation, attack_loss, config.param_alpha, config.param_beta)
                accelerator.backward(loss / len(batches))
                losses += torch.stack([loss, adaptation, attack_loss]).detach() / len(batches)
            figures |= training.take_step(step, losses)
            figures |= game.attacker_turn(step) if config.update_order == "lora_first" else {}
            outputs.after_step(step + 1, figures)
            status = outputs.stopped(step + 1, figures)
            if status is not None:
                return status
        status = outputs.finish()
    run.say(outputs.summary())
    return then_audit(run) if config.audit and status == 0 else status


if __name__ == "__main__":
    sys.exit(resolve.run(main))
