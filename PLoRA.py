"""PrivateLoRA: LoRA against a proxy attacker, objective L - alpha * CE (arXiv 2402.11989 eq. 6)."""

import sys
from pathlib import Path

import torch

from library import seeding, tensor_files, toml_config
from library.assembly.game import Game, GameRules, LossRules, NoiseRules
from library.assembly.painter import Painter
from library.assembly.pictures import encode_pictures
from library.check import Faults
from library.data import batches, buckets, duplicates, folders, split
from library.diffusion import compiling, memory, model_files, previews
from library.privacy import objectives
from library.rules import pick
from library.training import average, checkpoints, course, device, interruption, memory_advice, messages, metadata
from library.training import optimizers, output_folder, records, sample_folder, saver, schedules, state, stepping
from library.training import trackers
from networks import protocol

DOOR = Path(__file__).stem


def main(arguments: list[str]) -> int:
    """Train one LoRA; returns 0, 130 after Ctrl-C, or 1 when the loss stopped being finite."""
    config = toml_config.read_config(DOOR, arguments)
    options, seed = toml_config.weight_options(DOOR, config), config.seed
    accelerator = device.open_accelerator(config.mixed_precision, config.ddp_timeout)
    say, is_main = accelerator.print, accelerator.is_main_process
    messages.show_library_messages(wanted=is_main, level=config.console_log_level)
    folder = output_folder.choose_folder(config.output_dir, config.output_name, DOOR, config.resume)
    size = buckets.parse_resolution(config.resolution)
    game_rules, log_rules = pick(config, GameRules), pick(config, trackers.LogRules)

    # Who is a member, and of what model: whatever is wrong is said before anything is written
    faults = Faults()
    with faults.gathered():
        output_folder.check_folder(folder, overwrite=config.overwrite, resume=config.resume is not None)
        trackers.check_trackers(log_rules)
    with faults.gathered():
        candidates, outsiders = (folders.read_folder(
            place, flat=config.flat_data_dir, caption_extension=config.caption_extension, option_name=name,
            strict_captions=config.strict_captions, group_by=config.group_by) if place else [] for name, place in (
                ("train_data_dir", config.train_data_dir), ("nonmember_data_dir", config.nonmember_data_dir)))
        sides = split.reuse_split(config.split_file, candidates + outsiders) if config.split_file else split.draw_split(
            candidates, outsiders, nonmember_share=config.nonmember_share, aux_share=config.aux_share,
            inclusion=config.inclusion, seed=seed)
        sides.require_aux(game_rules.images_per_side() if config.k_steps else 1)
    with faults.gathered():
        model = model_files.load_model(config.pretrained_model_name_or_path, stepping.DTYPES[config.mixed_precision])
        prompts = previews.read_prompts(config.sample_prompts, size, seed, model.side_multiple())
    faults.raise_if_any()
    duplicates.warn_of_near_duplicates(sides)
    sizes = buckets.assign_buckets(
        sides.in_order(), resolution=size, enable_bucket=config.enable_bucket, multiple=model.side_multiple(),
        bucket_no_upscale=config.bucket_no_upscale, step=config.bucket_reso_steps, smallest=config.min_bucket_reso,
        largest=config.max_bucket_reso)
    repeats = [example.repeats for example in sides.members()]
    plan = course.plan_course(batches.steps_per_epoch(
        sizes[: len(repeats)], repeats, batch_size=config.train_batch_size, processes=accelerator.num_processes,
        accumulation=config.gradient_accumulation_steps), config.max_train_steps, config.max_train_epochs)
    saved = state.read_state(config.resume, options, sides.hash())

    # The LoRA
    torch.manual_seed(seeding.stream_seed(seed, "network"))
    network = protocol.inject(
        config.network_module, config.network_dim, config.network_alpha, config.network_dropout, model,
        accelerator.device, text_encoder=not config.network_train_unet_only,
        unet=not config.network_train_text_encoder_only)
    groups = network.prepare_optimizer_params(config.text_encoder_lr, config.unet_lr, config.learning_rate)
    optimizer = optimizers.build_optimizer(network, groups, pick(config, optimizers.OptimizerRules))
    schedule = schedules.build_schedule(optimizer, pick(config, schedules.ScheduleRules), plan.total_steps)
    ema = average.begin_average(config.ema_decay, optimizer)
    batch = course.BatchSize(config.train_batch_size, config.gradient_accumulation_steps, accelerator.num_processes)
    say(messages.split_in_words(sides.sizes(), sides.inclusion),
        plan.in_words(repeats, batch, config.max_train_epochs), sep="\n")
    if config.dry_run:
        say(memory.estimate_in_words(model, max(sizes), optimizers.trained_numbers(optimizer), config.train_batch_size),
            toml_config.resolved_toml(DOOR, config), sep="\n")
        return 0

    # The proxy attacker, and the pictures that both players look at
    model.prepare(accelerator.device, full_precision_vae=config.no_half_vae,
                  gradient_checkpointing=config.gradient_checkpointing)
    pictures = encode_pictures(
        sides, sizes, model, max_token_length=config.max_token_length, vae_batch_size=config.vae_batch_size, seed=seed,
        cache_dir=config.cache_dir if config.cache_latents_to_disk else None, keep_tokens=config.keep_tokens,
        cache_latents_mode=config.cache_latents_mode, shuffle_caption=config.shuffle_caption,
        caption_separator=config.caption_separator)
    game = Game.begin(accelerator, model, pictures, sides, size, seed, game_rules, pick(config, NoiseRules),
                      pick(config, LossRules))
    compiling.compile_unet(model, pick(config, compiling.CompileRules), size)
    optimizer, guard, done = accelerator.prepare(optimizer), interruption.FiniteGuard(), saved["done"]
    players = state.Players(network, optimizer, schedule, game.proxy, game.attacker, accelerator.scaler, ema)
    state.load_players(config.resume, players)
    game.watch.remember(saved["checks"])

    # What is written, and when
    def facts(done: int) -> dict[str, str]:
        return metadata.written(
            metadata.network_facts(config.network_module, config.network_dim, config.network_alpha, size,
                                   config.clip_skip, model.scheduler.config.prediction_type, model.file_hashes),
            metadata.privacy_facts(DOOR, options, epochs=plan.epochs(done), exposures=plan.exposures(done, repeats),
                                   verdict=game.watch.word(), base_fingerprint=model.fingerprint),
            metadata.full_facts(config.output_name, config.training_comment, len(repeats), plan.total_steps),
            no_metadata=config.no_metadata, full=config.metadata == "full")

    writer = saver.Saver(folder, plan, pick(config, checkpoints.KeepRule), players, config.save_precision,
                         config.save_state, config.save_state_on_train_end, options, sides.hash(), facts,
                         game.watch.checks, is_main)
    painter = Painter(accelerator, model, prompts, players, folder, config.sample_sampler, config.clip_skip,
                      config.max_token_length)
    if is_main:
        output_folder.make_folder(folder, clear=config.overwrite and not config.resume)
        split.write_split(sides, folder.split())
        tensor_files.write_whole(folder.config(), toml_config.resolved_toml(DOOR, config))

    # The game
    short_of_memory = memory_advice.out_of_memory_explained(pick(config, memory_advice.AdviceRules))
    with short_of_memory, interruption.StopSignal() as stop, records.Recorder(
            folder, log_rules, total=plan.total_steps, done=done, images_per_step=batch.images(),
            mfu_of_one=game.mfu_of_one(config.gradient_checkpointing), active=is_main) as recorder:
        if done == 0:
            recorder.epoch(0, 0, game.check_aux(0, players))
            painter.show("base", 0, recorder, wanted=config.sample_at_first)
        for step in range(done, plan.total_steps):
            seeding.seed_modules(seed, step, accelerator.process_index)
            network.on_epoch_start(model.text_encoder, model.unet)
            figures = game.attacker_turn(step) if config.update_order == "attacker_first" else {}
            parts = recorder.speed.waiting(game.members.of_step, step)
            sums = torch.zeros(3, device=accelerator.device)
            for part, images in enumerate(parts):
                adaptation, attack_loss = game.member_losses(images, step, part)
                loss = objectives.sum_objective(adaptation, attack_loss, config.param_alpha)
                accelerator.backward(loss / len(parts))
                sums += torch.stack([loss, adaptation, attack_loss]).detach() / len(parts)
            figures |= stepping.take_step(accelerator, players, config.max_grad_norm, sums, guard)
            figures |= game.attacker_turn(step) if config.update_order == "lora_first" else {}
            done, epoch = step + 1, plan.epoch_of(step)
            recorder.step(done, epoch, figures)
            if plan.look_is_due(done, config.aux_loss_every_n_epochs, config.aux_loss_every_n_steps):
                recorder.epoch(done, epoch, game.check_aux(epoch, players))
            writer.after_step(done)
            painter.show(plan.stage(done, config.sample_every_n_epochs), done, recorder,
                         wanted=plan.is_due(done, config.sample_every_n_epochs, config.sample_every_n_steps))
            if guard.is_lost() or (stop.received and done < plan.total_steps):
                say(guard.report(done, figures), writer.stopped(DOOR, done, lost=guard.is_lost()), sep="\n")
                return 1 if guard.is_lost() else 130
        writer.finish(done)
        painter.show("final", done, recorder)
    if is_main:
        say(recorder.in_words(), game.watch.verdict(),
            messages.how_to_use(folder, sample_folder.write_sheet(folder)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(toml_config.run(main))
