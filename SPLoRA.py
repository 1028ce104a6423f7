"""Stable PrivateLoRA: LoRA against a proxy attacker, objective L / (beta + alpha * CE) (arXiv 2402.11989 eq. 10)."""

import dataclasses
import sys
from importlib import import_module
from pathlib import Path

import torch
from accelerate import Accelerator

from library import seeding, tensor_files, toml_config
from library.assembly.game import Game
from library.assembly.pictures import encode_pictures
from library.check import Faults, InputError
from library.data import batches, buckets, duplicates, folders, split
from library.diffusion import denoising, memory, model_files, previews
from library.privacy import objectives, proxy, vigilance
from library.training import checkpoints, course, interruption, messages, metadata, optimizers, output_folder
from library.training import records, sample_folder, saver, state, stepping

DOOR = Path(__file__).stem


def main(arguments: list[str]) -> int:
    """Train one LoRA; returns 0, 130 after Ctrl-C, or 1 when the loss stopped being finite."""
    config = toml_config.read_config(DOOR, arguments)
    options, seed = toml_config.weight_options(DOOR, config), config.seed
    messages.show_library_messages()
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    is_main, say = accelerator.is_main_process, accelerator.print
    folder = output_folder.choose_folder(config.output_dir, config.output_name, DOOR, config.resume)
    size, attack_batch = buckets.parse_resolution(config.resolution), config.attack_batch_size or config.train_batch_size

    # Who is a member, and of what model: whatever is wrong is said before anything is written
    faults = Faults()
    with faults.gathered():
        output_folder.check_folder(folder, overwrite=config.overwrite, resume=config.resume is not None)
    with faults.gathered():
        candidates, outsiders = (folders.read_folder(
            place, flat=config.flat_data_dir, caption_extension=config.caption_extension, option_name=name,
            strict_captions=config.strict_captions, group_by=config.group_by) if place else [] for name, place in (
                ("train_data_dir", config.train_data_dir), ("nonmember_data_dir", config.nonmember_data_dir)))
        sides = split.reuse_split(config.split_file, candidates + outsiders) if config.split_file else split.draw_split(
            candidates, outsiders, nonmember_share=config.nonmember_share, aux_share=config.aux_share,
            inclusion=config.inclusion, seed=seed)
        sides.require_aux(attack_batch if config.k_steps else 1)
    with faults.gathered():
        model = model_files.load_model(config.pretrained_model_name_or_path, stepping.DTYPES[config.mixed_precision])
        prompts = previews.read_prompts(config.sample_prompts, size, seed, model.side_multiple())
    faults.raise_if_any()
    duplicates.warn_of_near_duplicates(sides)
    sizes = buckets.assign_buckets(
        [(example.width, example.height) for example in sides.in_order()], resolution=size, enable_bucket=config.enable_bucket,
        bucket_no_upscale=config.bucket_no_upscale, smallest=config.min_bucket_reso, largest=config.max_bucket_reso,
        step=config.bucket_reso_steps, multiple=model.side_multiple())

    # The LoRA
    torch.manual_seed(seeding.stream_seed(seed, "network"))
    network = import_module(config.network_module).create_network(
        1.0, config.network_dim, config.network_alpha, model.vae, model.text_encoder, model.unet, config.network_dropout)
    network.apply_to(model.text_encoder, model.unet, not config.network_train_unet_only,
                     not config.network_train_text_encoder_only)
    network.to(accelerator.device).prepare_grad_etc(model.text_encoder, model.unet)
    groups = network.prepare_optimizer_params(config.text_encoder_lr, config.unet_lr, config.learning_rate)
    optimizer = optimizers.build_optimizer(groups, config.optimizer_type, config.optimizer_args)
    trained = [parameter for group in groups for parameter in group["params"]]
    plan = course.plan_course(batches.steps_per_epoch(
        sizes[: len(sides.members())], [example.repeats for example in sides.members()], batch_size=config.train_batch_size,
        accumulation=config.gradient_accumulation_steps, processes=accelerator.num_processes),
        config.max_train_steps, config.max_train_epochs)
    say(toml_config.resolved_toml(DOOR, config), messages.split_in_words(sides.sizes(), sides.inclusion),
        course.course_in_words(plan, sum(example.repeats for example in sides.members()), len(sides.members())), sep="\n")
    if config.dry_run:
        say(memory.estimate_in_words(model, max(sizes), sum(tensor.numel() for tensor in trained), config.train_batch_size))
        return 0

    saved = state.read_state(Path(config.resume), options, sides.hash()) if config.resume else {"done": 0, "checks": []}

    # The proxy attacker, and what both players look at
    model.prepare(accelerator.device, full_precision_vae=config.no_half_vae,
                  gradient_checkpointing=config.gradient_checkpointing)
    pictures = encode_pictures(
        sides, sizes, model, max_token_length=config.max_token_length, seed=seed,
        vae_batch_size=config.vae_batch_size, cache_dir=config.cache_dir if config.cache_latents_to_disk else None,
        shuffle_caption=config.shuffle_caption, keep_tokens=config.keep_tokens, caption_separator=config.caption_separator)
    members = batches.MemberBatches(
        pictures, batch_size=config.train_batch_size, accumulation=config.gradient_accumulation_steps, seed=seed,
        rank=accelerator.process_index, processes=accelerator.num_processes)
    adversary = proxy.ProxyAttacker(
        model.latent_shape(size), pooled=not pictures.one_shape(), dropout=config.attack_dropout).to(accelerator.device)
    attacker = torch.optim.Adam(adversary.parameters(), lr=config.attack_lr, weight_decay=config.attack_weight_decay)
    game = Game(
        accelerator=accelerator, pictures=pictures, proxy=adversary, attacker=attacker, seed=seed, k_steps=config.k_steps,
        denoiser=denoising.Denoiser(model.unet, model.text_encoder, model.scheduler,
                                    latent_scale=model.vae.config.scaling_factor, clip_skip=config.clip_skip),
        aux_members=batches.AuxCycle(sides.rows("members-aux"), seed, "members-aux"),
        aux_non_members=batches.AuxCycle(sides.rows("non-members-aux"), seed, "non-members-aux"),
        batch_size=attack_batch, separate_noise=config.separate_noise,
        proxy_mode=config.proxy_mode, gain_limit=config.gain_limit, eval_draws=config.attack_eval_draws)

    # What is written, and when
    schedule = optimizers.build_schedule(
        optimizer, config.lr_scheduler, warmup=config.lr_warmup_steps, total_steps=plan.total_steps,
        cycles=config.lr_scheduler_num_cycles, power=config.lr_scheduler_power)
    optimizer, watch, guard = accelerator.prepare(optimizer), vigilance.Vigilance(), interruption.FiniteGuard()
    players = state.Players(network, optimizer, schedule, adversary, attacker, accelerator.scaler)
    if config.resume:
        state.load_players(Path(config.resume), players)
        watch.checks += [vigilance.ProxyCheck(**check) for check in saved["checks"]]
    keep = checkpoints.KeepRule(
        config.save_every_n_epochs, config.save_every_n_steps, config.save_last_n_epochs, config.save_last_n_steps,
        config.save_last_n_epochs_state, config.save_last_n_steps_state)

    def facts(done: int) -> dict[str, str]:
        exposures = plan.epochs(done) * len(members.rows) / len(sides.members())
        return metadata.reduced({
            **metadata.network_facts(config.network_module, config.network_dim, config.network_alpha, size, config.clip_skip,
                                     model.scheduler.config.prediction_type, model.file_hashes),
            **metadata.privacy_facts(DOOR, options, epochs=plan.epochs(done), exposures=exposures, verdict=watch.word(),
                                     base_fingerprint=model.fingerprint),
            **metadata.full_facts(config.output_name, config.training_comment, len(sides.members()), plan.total_steps),
        }, no_metadata=config.no_metadata, full=config.metadata == "full")

    writer = saver.Saver(
        folder, plan, keep, players, config.save_precision, config.save_state, options, sides.hash(), facts,
        lambda: [dataclasses.asdict(check) for check in watch.checks], is_main)
    if is_main:
        output_folder.make_folder(folder, clear=config.overwrite and not config.resume)
        split.write_split(sides, folder.split())
        tensor_files.write_whole(folder.config(), toml_config.resolved_toml(DOOR, config))

    def preview(stage: str, done: int) -> None:
        if prompts and is_main:
            with accelerator.autocast():
                images = previews.paint(model, prompts, sampler=config.sample_sampler, clip_skip=config.clip_skip,
                                        max_token_length=config.max_token_length)
            sample_folder.write_previews(folder.samples(), config.output_name, stage, images)
            recorder.pictures(done, images)

    def look(done: int, epoch: int) -> None:
        proxy_check, figures = game.check_aux(epoch)
        watch.checks += [proxy_check] if proxy_check else []
        recorder.epoch(done, epoch, figures)

    # The game
    done = int(saved["done"])
    with interruption.StopSignal() as stop, records.Recorder(
            folder.log(), Path(config.logging_dir or folder.tensorboard()), total=plan.total_steps, done=done,
            images_per_step=members.images_per_step(), active=is_main) as recorder:
        if done == 0:
            look(0, 0)
            if config.sample_at_first:
                preview("base", 0)
        for step in range(done, plan.total_steps):
            seeding.seed_modules(seed, step, accelerator.process_index)
            network.on_epoch_start(model.text_encoder, model.unet)
            figures = game.attacker_turn(step) if config.update_order == "attacker_first" else {}
            parts = members.of_step(step)
            sums = torch.zeros(3, device=accelerator.device)
            for part, batch in enumerate(parts):
                adaptation, attack_loss = game.member_losses(batch, step, part)
                loss = objectives.ratio_objective(adaptation, attack_loss, config.param_alpha, config.param_beta)
                accelerator.backward(loss / len(parts))
                sums += torch.stack([loss, adaptation, attack_loss]).detach() / len(parts)
            taken, averages = stepping.take_step(accelerator, optimizer, trained, config.max_grad_norm, sums, guard)
            if taken:
                schedule.step()
            if config.update_order == "lora_first":
                figures = game.attacker_turn(step)
            done = step + 1
            recorder.step(done, plan.epoch_of(step), {**averages, **figures, "learning_rate": schedule.get_last_lr()[0]})
            if guard.is_lost():
                say(guard.report(done, averages), messages.how_to_resume(DOOR, writer.write_state("-stopped", done)), sep="\n")
                return 1
            if plan.ends_epoch(done):
                look(done, plan.epoch_of(step))
            writer.after_step(done)
            if done < plan.total_steps and plan.is_due(done, config.sample_every_n_epochs, config.sample_every_n_steps):
                preview(plan.stage(done, config.sample_every_n_epochs), done)
            if stop.received:
                break
        writer.write_lora("", done)
        if done < plan.total_steps:
            say(messages.how_to_resume(DOOR, writer.write_state(output_folder.step_number(done), done)))
            return 130
        if config.save_state or config.save_state_on_train_end:
            writer.write_state("", done)
        preview("final", done)
    sheet = sample_folder.write_sheet(folder.samples(), config.output_name)
    say(watch.verdict(), messages.how_to_use(folder, sheet), sep="\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        sys.exit(toml_config.stop_with(error))
