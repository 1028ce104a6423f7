"""How much of the GPUs' peak one member image takes: what the speed line's MFU rests on."""

from library.assembly.game import Game
from library.diffusion.flops import CHECKPOINTED_STEP, STEP, forward_flops, peak_flops


def mfu_of_one(game: Game, gradient_checkpointing: bool) -> float:
    """Share of all GPUs' peak that one member image a second takes, attacker and teachers included; 0 = not known.

    Text encoder, validation passes and previews are not counted, so the true share is a little higher.
    """
    unet, rules, processes = game.denoiser.unet, game.rules, game.accelerator.num_processes
    peak = peak_flops(game.accelerator.device, unet.dtype)
    if peak is None:
        return 0.0
    latent = game.pictures.shape(0)[1:]
    forward = forward_flops(unet, (latent[0], latent[1]))
    passes = CHECKPOINTED_STEP if gradient_checkpointing else STEP
    passes += 1 if rules.distill_folds else 0
    if rules.k_steps:
        passes *= 2 if rules.separate_noise else 1
        attacked = 2 * rules.k_steps * rules.images_per_side()
        passes += attacked * processes / game.members.images_per_step()
    return forward * passes / (peak * processes)
