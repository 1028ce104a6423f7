"""PrivateLoRA: LoRA against a proxy attacker, objective L - alpha * CE (arXiv 2402.11989 eq. 6)."""

import sys
from functools import partial
from pathlib import Path

import torch

from library import seeding, tensor_files
from library.assembly.game import Game, GameRules, LossRules, NoiseRules
from library.assembly.pictures import EncodingRules, encode_pictures
from library.assembly.previews import Painter
from library.data import dataset_config, duplicates, read_pictures, split
from library.data.training_set import build_training_set
from library.diffusion import compiling, memory, model_files, previews
from library.errors import Faults
from library.lora_files import metadata
from library.options import resolve, write
from library.privacy import objectives
from library.rules import pick
from library.training import average, checkpoint_schedule, checkpoint_writer, device, interruption, lr_schedulers
from library.training import messages, optimizer_step, optimizers, output_folder, run_log, sample_folder, state
from library.training import trackers, training_plan
from networks import protocol

DOOR = Path(__file__).stem


def main(arguments: list[str]) -> int:
    """Train one LoRA; returns 0, 130 after Ctrl-C, or 1 when the loss stopped being finite."""
    config = resolve.read_config(DOOR, arguments)
    options = resolve.weight_options(DOOR, config)
    accelerator = device.open_accelerator(config.mixed_precision, config.ddp_timeout)
    say, is_main = accelerator.print, accelerator.is_main_process
    fresh_secret = device.agreed(accelerator, split.new_secret())  # of a new split; an earlier one keeps its own
    messages.show_library_messages(wanted=is_main, level=config.console_log_level)
    folder = output_folder.choose_folder(config.output_dir, config.output_name, DOOR, config.resume)
    size = dataset_config.main_resolution(config.dataset_config, config.resolution)
    game_rules, log_rules = pick(config, GameRules), pick(config, trackers.LogRules)

    # Who is a member, and of what model: whatever is wrong is said before anything is written
    faults, key = Faults(), seeding.StreamKey(fresh_secret, config.seed)
    with faults.gathered():
        output_folder.check_folder(folder, overwrite=config.overwrite, resume=config.resume is not None)
        trackers.check_trackers(log_rules)
    with faults.gathered():
        optimizers.check_optimizer(pick(config, optimizers.OptimizerRules))
    with faults.gathered():
        found = read_pictures.read_sources(*read_pictures.pick_rules(config))
        sides = split.open_split(pick(config, split.SplitRules), found.candidates, found.outsiders,
                                 fresh_secret)
        key = sides.key(config.seed)
        sides.require_aux(game_rules.images_per_side() if config.k_steps else 1)
    with faults.gathered():
        model = model_files.open_base(
            pick(config, model_files.ModelRules), optimizer_step.DTYPES[config.mixed_precision])
        with faults.gathered():
            prompts = previews.prompts_for(model, pick(config, previews.PreviewRules), size, config.seed)
        seeding.seed_published(key, "network")
        network, stated = protocol.inject(pick(config, protocol.NetworkRules), model, accelerator.device, options)
    faults.raise_if_any()
    duplicates.warn_of_near_duplicates(sides)
    training_set = build_training_set(sides, found.regularisation, config.prior_loss_weight, model.side_multiple())
    repeats = training_set.member_uses()
    plan = training_plan.plan_training(
        training_set.steps_per_epoch(accelerator.num_processes, config.gradient_accumulation_steps),
        config.max_train_steps, config.max_train_epochs)
    run_hash = key.fingerprint(training_set.hash())
    saved = state.read_state(config.resume, options, run_hash)

    # How the LoRA is trained
    groups = protocol.parameter_groups(network, model, config.text_encoder_lr, config.unet_lr, config.learning_rate)
    optimizer = optimizers.build_optimizer(network, groups, pick(config, optimizers.OptimizerRules))
    schedule = lr_schedulers.build_schedule(optimizer, pick(config, lr_schedulers.ScheduleRules), plan.total_steps)
    ema = average.begin_average(config.ema_decay, optimizer)
    batch = training_plan.BatchSize(
        training_set.largest_batch(), config.gradient_accumulation_steps, accelerator.num_processes)
    say(messages.split_summary(sides.sizes(), sides.inclusion),
        plan.summary(repeats, batch, config.max_train_epochs), sep="\n")
    if config.dry_run:
        say(memory.memory_summary(model, max(training_set.sizes), optimizers.trained_numbers(optimizer),
            training_set.largest_batch(), pick(config, memory.MemoryRules)),
            write.explained_toml(DOOR, config, arguments), sep="\n")
        return 0

    # The proxy attacker, and the pictures that both players look at
    model.prepare(accelerator.device, full_precision_vae=config.no_half_vae,
                  gradient_checkpointing=config.gradient_checkpointing)
    pictures = encode_pictures(training_set, model, pick(config, EncodingRules), steps_per_epoch=plan.steps_per_epoch,
                               total_steps=plan.total_steps, key=key)
    game = Game.begin(accelerator, model, pictures, sides, training_set.common_size(size), key, game_rules,
                      pick(config, NoiseRules), pick(config, LossRules))
    compiling.compile_unet(model, pick(config, compiling.CompileRules), size)
    optimizer, guard, done = accelerator.prepare(optimizer), interruption.FiniteGuard(), saved["done"]
    training_state = state.TrainingState(network, optimizer, schedule, game.proxy, game.attacker, accelerator.scaler,
        ema)
    state.load_training_state(config.resume, training_state)
    game.proxy_history.remember(saved["checks"])
    settle = partial(protocol.after_step, network, config.scale_weight_norms, accelerator.device)

    # What is written, and when
    about = pick(config, metadata.FileRules)

    def facts(done: int) -> dict[str, str]:
        return metadata.written(
            metadata.network_facts(about, stated, size, model.version(), model.scheduler.config.prediction_type,
                                   model.file_hashes),
            metadata.privacy_facts(DOOR, options, exposures=plan.exposures(done, repeats),
                                   verdict=game.proxy_history.word(), base_fingerprint=model.fingerprint),
            metadata.full_facts(about, len(repeats), plan.total_steps),
            no_metadata=config.no_metadata, full=config.metadata == "full")

    writer = checkpoint_writer.CheckpointWriter(folder, plan, pick(config, checkpoint_schedule.KeepRule),
        training_state, config.save_precision,
                         config.save_state, config.save_state_on_train_end, options, run_hash, facts,
                         game.proxy_history.checks, is_main)
    painter = Painter(accelerator, model, prompts, training_state, folder, pick(config, previews.PreviewRules))
    if is_main:
        output_folder.make_folder(folder, clear=config.overwrite and not config.resume)
        split.write_split(sides, folder.split())
        tensor_files.write_whole(folder.config(), write.resolved_toml(DOOR, config), private=True)

    # The game
    short_of_memory = memory.out_of_memory_explained(pick(config, memory.AdviceRules))
    with short_of_memory, interruption.StopSignal() as stop, run_log.Recorder(
            folder, log_rules, total=plan.total_steps, done=done, images_per_step=game.members.images_per_step(),
            mfu_of_one=game.mfu_of_one(config.gradient_checkpointing), active=is_main) as recorder:
        if done == 0:
            recorder.epoch(0, 0, game.check_aux(0, training_state))
            painter.show("base", 0, recorder, wanted=config.sample_at_first)
        for step in range(done, plan.total_steps):
            seeding.seed_modules(key, step, accelerator.process_index)
            figures = game.attacker_turn(step) if config.update_order == "attacker_first" else {}
            parts = recorder.speed.waiting(game.members.of_step, step)
            sums = torch.zeros(3, device=accelerator.device)
            for part, images in enumerate(parts):
                protocol.before_pass(network, model, starts_epoch=part == 0 and plan.starts_epoch(step))
                adaptation, attack_loss = game.member_losses(images, step, part)
                loss = objectives.sum_objective(adaptation, attack_loss, config.param_alpha)
                accelerator.backward(loss / len(parts))
                sums += torch.stack([loss, adaptation, attack_loss]).detach() / len(parts)
            figures |= optimizer_step.take_step(accelerator, training_state, config.max_grad_norm, sums, guard, settle)
            figures |= game.attacker_turn(step) if config.update_order == "lora_first" else {}
            done, epoch = step + 1, plan.epoch_of(step)
            recorder.step(done, epoch, figures)
            if plan.validation_is_due(done, config.aux_loss_every_n_epochs, config.aux_loss_every_n_steps):
                recorder.epoch(done, epoch, game.check_aux(epoch, training_state))
            writer.after_step(done)
            painter.show(plan.stage(done, config.sample_every_n_epochs), done, recorder,
                         wanted=plan.is_due(done, config.sample_every_n_epochs, config.sample_every_n_steps))
            if guard.is_lost() or (stop.asked(accelerator) and done < plan.total_steps):
                recorder.tell(guard.report(done, figures), writer.stopped(DOOR, done, lost=guard.is_lost()))
                return 1 if guard.is_lost() else 130
        writer.finish(done)
        painter.show("final", done, recorder)
    if is_main:
        say(recorder.summary(), game.proxy_history.verdict(),
            messages.how_to_use(folder, sample_folder.write_sheet(folder)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(resolve.run(main))
