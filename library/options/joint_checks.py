"""Checks of options that depend on each other, and of paths that must exist."""

from collections.abc import Mapping
from pathlib import Path

from library.errors import Faults
from library.incoming.files import exists, is_file, is_folder
from library.lora_files.adapter_config import is_peft_folder
from library.options.audit_checks import check_audit
from library.options.declarations import TRAINERS, Config
from library.options.sources import with_origin
from library.plain_text import plain
from library.trainers import PRIVATE

FOLDERS = ("train_data_dir", "nonmember_data_dir", "reg_data_dir", "conditioning_data_dir", "resume", "public_data_dir")
FILES = (
    "in_json", "dataset_config", "split_file", "sample_prompts", "network_weights", "log_tracker_config",
    "inception_weights",
)  # fmt: skip
CHANGE_CAPTIONS = ("shuffle_caption", "caption_dropout_rate", "caption_dropout_every_n_epochs",
                   "caption_tag_dropout_rate", "token_warmup_step")  # fmt: skip


def check_together(door: str, config: Config, origins: Mapping[str, str], faults: Faults) -> None:
    """Collect the faults of options that are each valid alone.

    Args:
        origins: file and line, or command line, of each given option.
    """
    for name in (*FOLDERS, *FILES):
        path = getattr(config, name)
        where = f" ({origins[name]})" if name in origins else ""
        if path and not exists(path):
            faults.add(f"{name} '{path}' does not exist{where}{_way_out(name, Path(path))}", about=name)
        elif path and name == "network_weights" and is_peft_folder(Path(path)):
            continue
        elif path and is_folder(path) != (name in FOLDERS):
            kind = "a folder, and not a file" if name in FILES else "not a folder"
            faults.add(f"{name} '{path}' is {kind}{where}", about=name)
    for path in config.base_weights:
        if not is_file(path) and not is_peft_folder(Path(path)):
            place = f" ({origins['base_weights']})" if "base_weights" in origins else ""
            faults.add(f"base_weights '{path}' is neither a file nor a peft folder{place}", about="base_weights")
    if door not in TRAINERS:
        check_audit(config, faults)
        return
    together = Faults()
    _check_model(config, together)
    _check_network_args(config, together)
    _check_data(config, together)
    _check_privacy(config, together, faults.about) if door in PRIVATE else _check_game(door, config, together)
    _check_loss(config, together)
    _check_schedule(config, together)
    _check_saving(config, together)
    _check_device(config, together)
    for message in together.messages:
        faults.add(with_origin(message, origins))


def _way_out(name: str, path: Path) -> str:
    """How to go on where a folder is not there."""
    if name == "train_data_dir":
        return "; if the pictures were moved, give their folder with --train_data_dir"
    if name == "resume":
        from library.training.saved_state import whole_states  # slow to import

        return f"; {whole_states(path)}"
    return ""


def _check_network_args(config: Config, faults: Faults) -> None:
    from networks.given_args import check_given  # slow to import

    check_given(config.network_module, config.network_args, config.network_dropout, config.dim_from_weights, faults)


def _check_schedule(config: Config, faults: Faults) -> None:
    from library.training.optimization.lr_schedulers import COUNTS, READS  # slow to import

    finds_its_rate = "schedulefree" in config.optimizer_type.lower() or config.optimizer_type.lower() == "adafactor"
    if config.lr_scheduler_type or finds_its_rate:
        return
    for name, readers in READS.items():
        if getattr(config, name) and config.lr_scheduler not in readers:
            faults.add(f"{name} is not used by lr_scheduler {config.lr_scheduler}; it is for {', '.join(readers)}")
    for name, readers in COUNTS.items():
        if getattr(config, name) == 0 and config.lr_scheduler in readers:
            faults.add(f"{name} must be above 0 with lr_scheduler {config.lr_scheduler}, got 0; 1 is usual")


def _check_model(config: Config, faults: Faults) -> None:
    from library.diffusion import hub  # slow to import

    base = config.pretrained_model_name_or_path
    if not base:
        faults.add(
            "pretrained_model_name_or_path is needed: a diffusers folder, a checkpoint file, or a hub id",
            about="pretrained_model_name_or_path",
        )
    elif not exists(base) and not hub.is_hub_id(base):
        faults.add(hub.missing("pretrained_model_name_or_path", base), about="pretrained_model_name_or_path")
    if len(config.base_weights_multiplier) > len(config.base_weights):
        faults.add(
            f"base_weights_multiplier has {len(config.base_weights_multiplier)} numbers for "
            f"{len(config.base_weights)} base_weights; give one for each file"
        )
    if config.network_train_unet_only and config.network_train_text_encoder_only:
        faults.add("network_train_unet_only and network_train_text_encoder_only exclude each other")
    if config.dim_from_weights and not config.network_weights:
        faults.add("dim_from_weights takes the rank from network_weights, which is not set; give the LoRA file")


def _check_data(config: Config, faults: Faults) -> None:
    given = [name for name in ("train_data_dir", "dataset_config", "dataset_name") if getattr(config, name)]
    if not given:
        faults.add(
            "train_data_dir is needed: the folder with your pictures (or dataset_config, or dataset_name)",
            about="train_data_dir",
        )
    if "dataset_name" in given and len(given) > 1:
        faults.add(f"{' and '.join(given)} exclude each other; name one source of pictures")
    if config.in_json and not config.train_data_dir:
        faults.add("in_json names pictures of train_data_dir, and that is unset; give the folder")
    if config.enable_bucket and config.min_bucket_reso > config.max_bucket_reso:
        faults.add(f"min_bucket_reso {config.min_bucket_reso} is above max_bucket_reso {config.max_bucket_reso}")
    _check_caches_and_masks(config, faults)
    if config.cache_text_encoder_outputs:
        _check_text_states(config, faults)


def _check_text_states(config: Config, faults: Faults) -> None:
    """What keeps captions from being encoded once, as far as the options show it."""
    rates = config.learning_rate if config.text_encoder_lr is None else config.text_encoder_lr
    is_trained = any(rate > 0 for rate in (rates if isinstance(rates, list) else [rates]))
    if is_trained and not config.network_train_unet_only:
        faults.add(
            "cache_text_encoder_outputs cannot be: the text encoder is trained; set network_train_unet_only = true, or "
            "text_encoder_lr = 0"
        )
    changing = [name for name in CHANGE_CAPTIONS if getattr(config, name)]
    if changing and not config.dataset_config:  # whose subsets may say otherwise
        named = ", ".join(changing)
        faults.add(f"cache_text_encoder_outputs cannot be: {named} changes captions from use to use; leave it out")


def _check_caches_and_masks(config: Config, faults: Faults) -> None:
    """What is kept of each picture, and what is asked of its masks."""
    if config.cache_latents:
        for name in ("color_aug", "random_crop", "face_crop_aug_range"):
            if getattr(config, name):
                faults.add(
                    f"{name} changes the picture at every use, and cache_latents keeps one encoding of it; set "
                    f"cache_latents = false, or leave {name} out"
                )
    elif config.cache_latents_to_disk or config.rebuild_cache:
        faults.add("cache_latents_to_disk and rebuild_cache need cache_latents = true")
    if config.conditioning_data_dir and not config.masked_loss:
        faults.add("conditioning_data_dir holds masks, and masked_loss is off; set masked_loss = true")
    if config.masked_loss and not (config.conditioning_data_dir or config.alpha_mask or config.dataset_config):
        faults.add("masked_loss needs masks: set conditioning_data_dir, or alpha_mask = true")


def _check_game(door: str, config: Config, faults: Faults) -> None:
    if door == "SPLoRA" and config.param_alpha == 0 and config.param_beta == 0:
        faults.add("param_alpha and param_beta are both 0, so the ratio would divide by 1e-5; set param_beta = 1.0")
    if door == "SPLoRA" and config.param_beta == 0 and (config.reg_data_dir or config.dataset_config):
        faults.add(
            "param_beta is 0, but a batch that holds only regularisation images has no attacker's loss to divide by; "
            "set param_beta above 0 (the paper: 1.0), or leave the regularisation images out"
        )
    if config.param_alpha > 0 and config.k_steps == 0:
        faults.add(
            "k_steps 0 switches the attacker off, but param_alpha is "
            f"{config.param_alpha}; set k_steps = 1 or param_alpha = 0"
        )
    if config.distill_folds == 1:
        faults.add(
            "distill_folds 1: the one teacher would be trained without any member; set 2 or more (4 to 8 are usual), "
            "or 0 for no distillation"
        )
    if config.k_steps == 0:
        for name, value in (("proxy_input", "error_map"), ("attack_draws", 1), ("gain_starts", "at_once")):
            if getattr(config, name) != value:
                faults.add(
                    f"{name} {getattr(config, name)} is about the proxy attacker, and k_steps 0 switches it off; set "
                    f"k_steps = 1, or leave {name} out"
                )
    elif config.attack_draws > 1 and config.proxy_input != "calibrated":
        faults.add(
            f"attack_draws {config.attack_draws}: a proxy on error maps sees one pair at a time; set "
            'proxy_input = "calibrated", or attack_draws = 1'
        )


def _check_privacy(config: Config, faults: Faults, about: set[str]) -> None:
    """What the accounting of DP-SGD needs.

    Args:
        about: options whose values cannot be used.
    """
    target, noise = config.dp_target_epsilon, config.dp_noise_multiplier
    if target is None and noise is None:
        faults.add(
            "dp_target_epsilon or dp_noise_multiplier is needed: what may the run spend, or how much noise it adds"
        )
    elif target is not None and noise is not None:
        faults.add(
            f"dp_target_epsilon {target:g} and dp_noise_multiplier {noise:g} exclude each other: one follows from the "
            "other; leave one out"
        )
    if (target is None) == (noise is None):
        about.update(("dp_target_epsilon", "dp_noise_multiplier"))
    if config.network_module != "networks.lora":
        faults.add(
            f"network_module {config.network_module}: DPLoRA reads gradients of networks.lora's factors; use that"
        )
    if config.mixed_precision == "fp16":
        faults.add('mixed_precision fp16 leaves steps out by what the pictures do to its scale; use "bf16" or "no"')


def _check_loss(config: Config, faults: Faults) -> None:
    first, end = config.min_timestep or 0, 1000 if config.max_timestep is None else config.max_timestep
    if first >= end:
        faults.add(f"min_timestep {first} must be below max_timestep {end} (exclusive)")
    if config.lr_scheduler == "constant" and config.lr_warmup_steps > 0 and not config.lr_scheduler_type:
        faults.add(
            f"lr_warmup_steps {config.lr_warmup_steps:g}: lr_scheduler constant has no warm-up; "
            "use constant_with_warmup"
        )
    if not config.noise_offset and (config.adaptive_noise_scale is not None or config.noise_offset_random_strength):
        faults.add(
            "adaptive_noise_scale and noise_offset_random_strength change noise_offset, which is not set; set it"
        )
    if not config.ip_noise_gamma and config.ip_noise_gamma_random_strength:
        faults.add("ip_noise_gamma_random_strength changes ip_noise_gamma, which is not set; set it")
    if config.huber_scale != 1 and config.huber_schedule == "snr" and config.loss_type in ("huber", "smooth_l1"):
        faults.add(
            f"huber_scale {config.huber_scale} has no effect with huber_schedule snr, as in kohya; "
            "use exponential or constant, or change huber_c"
        )
    if config.v_pred_like_loss and config.v_parameterization:
        faults.add("v_pred_like_loss is for models that predict noise, but v_parameterization is set; leave one out")
    if config.scale_v_pred_loss_like_noise_pred and not config.v_parameterization:
        faults.add(
            "scale_v_pred_loss_like_noise_pred is for models that predict velocity; set v_parameterization, or leave "
            "it out"
        )


def _check_saving(config: Config, faults: Faults) -> None:
    for name in ("output_name", "log_prefix"):  # they become parts of file names in the given folders
        stem = getattr(config, name)
        if stem and ("/" in stem or "\\" in stem or stem.startswith(".") or plain(stem) != stem):
            faults.add(f"{name} must be a plain file stem without slashes and control characters, got {stem!r}")
    if config.output_name == "proxy":
        faults.add(
            "output_name 'proxy' is the name of the proxy attacker's file, which would overwrite the LoRA; use "
            "another name"
        )
    if config.no_metadata and config.metadata == "full":
        faults.add('no_metadata and metadata = "full" exclude each other; leave one out')


def _check_device(config: Config, faults: Faults) -> None:
    """Refuse what needs a CUDA GPU where there is none."""
    import torch

    if torch.cuda.is_available():
        return
    if "8bit" in config.optimizer_type.lower() or config.optimizer_type.lower().startswith("paged"):
        faults.add(
            f'optimizer_type {config.optimizer_type} needs a CUDA GPU, which this machine does not have; use "AdamW" '
            'or "Lion"'
        )
    if config.mixed_precision == "fp16":
        faults.add('mixed_precision fp16 needs a CUDA GPU, which this machine does not have; use "bf16" or "no"')
