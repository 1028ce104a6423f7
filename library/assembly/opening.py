"""The opening of a run, step by step: every fault is told in one round, and so is what could not be looked at."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from library.diffusion.hub import is_hub_id
from library.errors import Faults, InputError
from library.options.resolve import ReadOptions
from library.options.sources import with_origin

PICTURES = ("train_data_dir", "nonmember_data_dir", "reg_data_dir", "in_json", "dataset_config", "dataset_name",
            "dataset_config_name", "dataset_split", "image_column", "caption_column", "group_column", "flat_data_dir",
            "caption_extension", "strict_captions", "group_by", "masked_loss", "alpha_mask", "conditioning_data_dir",
            "skip_image_resolution", "cache_latents", "enable_wildcard", "caption_separator",
            "face_crop_aug_range")  # fmt: skip
# Steps by the options that they stand on: where one of these cannot be used, the step would find faults that are none.
STANDS_ON: Mapping[str, Sequence[str]] = {
    "the device": (),
    "the output folder": ("output_dir", "output_name", "overwrite", "resume"),
    "the trackers": ("log_with", "log_tracker_config"),
    "the optimizer": ("optimizer_type", "optimizer_args"),
    "the state": ("resume",),
    "the pictures and captions": PICTURES,
    "the split": ("split_file", "split_secret_file", "nonmember_share", "aux_share", "inclusion", "resume",
                  "attack_batch_size", "train_batch_size", "k_steps"),
    "the base model": ("pretrained_model_name_or_path", "vae", "v2", "sdxl", "v_parameterization", "zero_terminal_snr",
                       "clip_skip"),
    "the prompts": ("sample_prompts", "sample_sampler", "resolution"),
    "network_weights and base_weights": ("network_weights", "base_weights", "base_weights_multiplier"),
    "the network": ("network_module", "network_args", "network_weights", "dim_from_weights", "network_dim",
                    "network_dropout", "network_train_unet_only", "network_train_text_encoder_only", "base_weights",
                    "base_weights_multiplier"),
    "sizes and steps": ("resolution", "enable_bucket", "bucket_no_upscale", "min_bucket_reso", "max_bucket_reso",
                        "bucket_reso_steps", "max_train_steps", "max_train_epochs", "gradient_accumulation_steps",
                        "dp_batch_size", "dp_delta", "train_batch_size"),
    "the accounting": ("dp_batch_size", "dp_delta", "dp_noise_multiplier", "dp_target_epsilon", "dp_max_grad_norm",
                       "dp_draws", "resume", "max_train_steps", "max_train_epochs"),
    "the learning rates": ("learning_rate", "unet_lr", "text_encoder_lr", "optimizer_type", "optimizer_args",
                           "lr_scheduler", "lr_scheduler_type", "lr_scheduler_args", "lr_warmup_steps",
                           "lr_decay_steps", "lr_scheduler_min_lr_ratio", "ema_decay", "max_train_steps",
                           "max_train_epochs"),
}  # fmt: skip
ABOUT = {"the base model": "pretrained_model_name_or_path"}  # what messages without an option's name are about


class Opening:
    """Takes the steps of a run's opening and collects their faults, beside those of the options."""

    def __init__(self, options: ReadOptions) -> None:
        self.options = options
        self.faults = Faults()
        for message in options.faults.messages:
            self.faults.add(message)
        self._left_out: list[str] = []

    def attempt(self, step: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the function returns; None after a fault, and where the step cannot be taken because of another one.

        Args:
            step: one of STANDS_ON.
            args: with a None among them, the result of a step that failed, this one is not taken.
            kwargs: these may be None.
        """
        if any(one is None for one in args) or set(STANDS_ON[step]) & self.options.faults.about:
            self._left_out.append(step)
            return None
        if reason := self._would_be_fetched(step):
            self._left_out.append(f"{step} ({reason})")
            return None
        try:
            return function(*args, **kwargs)
        except InputError as error:
            for message in error.messages:
                self.faults.add(with_origin(message, self.options.origins, ABOUT.get(step, "")))
            return None

    def _would_be_fetched(self, step: str) -> str:
        """Why a step waits for a round without faults: nothing large is fetched for a run that stops anyway."""
        config = self.options.config
        if not self.faults.messages:
            return ""
        if step == "the base model" and is_hub_id(config.pretrained_model_name_or_path):
            return f"'{config.pretrained_model_name_or_path}' is fetched for a run without faults"
        if step == "the pictures and captions" and config.dataset_name and not Path(config.dataset_name).exists():
            return f"'{config.dataset_name}' is fetched for a run without faults"
        return ""

    def raise_if_any(self) -> None:
        """Raises: InputError with every fault, and what was not looked at because of them."""
        if self.faults.messages and self._left_out:
            self.faults.add(
                f"not looked at yet, because of what stands above: {', '.join(dict.fromkeys(self._left_out))}"
            )
        self.faults.raise_if_any()
