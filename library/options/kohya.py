"""kohya's options that this suite does not support, with reason and alternative, and old spellings that it accepts."""

RENAMED = {
    "caption_extention": "caption_extension",
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
}

# Old switches that set another option; the door reports it once.
STAND_FOR: dict[str, tuple[str, str | bool]] = {
    "use_8bit_adam": ("optimizer_type", "AdamW8bit"),
    "use_lion_optimizer": ("optimizer_type", "Lion"),
    "sdxl_no_half_vae": ("no_half_vae", True),  # the GUI's own names
    "sdxl_cache_text_encoder_outputs": ("cache_text_encoder_outputs", True),
}

_LOADING = "it chooses where weights are loaded to and when memory is given back, and the trainer sees to both"

# Accepted without effect, because what they ask for already happens; the door reports it once.
WITHOUT_EFFECT = {
    "sdpa": "PyTorch's scaled-dot-product attention is always used",
    "xformers": "PyTorch's scaled-dot-product attention is used instead",
    "mem_eff_attn": "PyTorch's scaled-dot-product attention is used instead",
    "max_data_loader_n_workers": "the trainer reads the pictures itself, without a data loader",
    "persistent_data_loader_workers": "the trainer reads the pictures itself, without a data loader",
    "skip_cache_check": "cache files are found by a fingerprint of picture, VAE and size; there is nothing to check",
    "cache_info": "sizes are read with the pictures' pixels, which the split needs anyway",
    "console_log_simple": "messages are plain lines already",
    "ddp_gradient_as_bucket_view": "gradients are averaged by the trainer itself, without buckets",
    "ddp_static_graph": "gradients are averaged by the trainer itself, without buckets",
    "noise_offset_type": "it is a setting of the GUI; noise_offset or multires_noise_iterations selects the noise",
    "lowram": _LOADING,
    "highvram": _LOADING,
    "disable_mmap_load_safetensors": "it chooses how a file is opened, and the tensors are the same",
    "cpu_offload_checkpointing": "it saves memory and changes no number; gradient_checkpointing is the option for that",
    "cache_text_encoder_outputs_to_disk": (
        "text states are made in seconds and stay in memory; on disk they would be one more file that reveals captions"
    ),
    "log_config": "the options name your folders and would leave this machine; config.toml keeps them beside the LoRA",
    "split_hash": "it names the split of the run that wrote this file, and an audit compares it with split.json",
    "console_log_file": "a message may name a private file; redirect the terminal (2> FILE) to keep the messages",
}

# Read only beside another option: without it they change nothing.
READ_ONLY_WITH = {
    "huggingface_repo_type": "huggingface_repo_id",
    "huggingface_path_in_repo": "huggingface_repo_id",
    "huggingface_repo_visibility": "huggingface_repo_id",
    "async_upload": "huggingface_repo_id",
    "zero_stage": "deepspeed",
    "offload_optimizer_device": "deepspeed",
    "offload_optimizer_nvme_path": "deepspeed",
    "offload_param_device": "deepspeed",
    "offload_param_nvme_path": "deepspeed",
    "zero3_init_flag": "deepspeed",
    "zero3_save_16bit_model": "deepspeed",
    "fp16_master_weights_and_gradients": "deepspeed",
    "validation_seed": "validation_split",
    "validate_every_n_steps": "validation_split",
    "validate_every_n_epochs": "validation_split",
    "max_validation_steps": "validation_split",
}

# Values of supported options that ask for what happens anyway; the door reports it once.
VALUES_WITHOUT_EFFECT = {
    "dynamo_backend": {"no": "it is the GUI's name for not compiling, which torch_compile decides"},
    "seed": {"-1": "random draws depend on the split's secret, which is fresh for every new split"},
    "zero_stage": {"2": "it is kohya's default and concerns only DeepSpeed"},
}

# A 0 means "off", as in kohya.
ZERO_IS_UNSET = (
    "noise_offset",
    "multires_noise_iterations",
    "adaptive_noise_scale",
    "ip_noise_gamma",
    "min_snr_gamma",
    "v_pred_like_loss",
    "scale_weight_norms",
    "max_train_epochs",
    "max_train_steps",
    "save_every_n_epochs",
    "save_every_n_steps",
    "save_n_epoch_ratio",
    "save_last_n_epochs",
    "save_last_n_steps",
    "save_last_n_epochs_state",
    "save_last_n_steps_state",
    "sample_every_n_epochs",
    "sample_every_n_steps",
    "vae_batch_size",
    "ddp_timeout",
    "lr_scheduler_timescale",
    "skip_image_resolution",
)

_UPLOAD = "the output folder holds split.json and states; upload the finished LoRA by hand"
_ACCELERATE = "several GPUs go through accelerate; set gpus in the launcher"
_HALF = "the LoRA stays in fp32 and frozen weights have the dtype of mixed_precision; use mixed_precision"
_VALIDATION = (
    "the four-sided split already holds images out (nonmember_share, --split_file); "
    "aux_loss_every_n_epochs and aux_loss_every_n_steps set how often validation runs on its aux sides"
)
_FUSED = "a step needs its whole gradient, to clip it and to leave out one that is not finite"
_FP8 = "frozen weights have the dtype of mixed_precision; use bf16 and gradient_checkpointing to save memory"

REFUSED = {
    "full_fp16": _HALF,
    "full_bf16": _HALF,
    "fp8_base": _FP8,
    "fp8_base_unet": _FP8,
    "dataset_class": "it imports arbitrary code; give a metadata file (in_json) or a dataset (dataset_name)",
    "debug_dataset": "--dry_run shows the data and prints the resolved options",
    "output_config": "--dry_run prints the resolved options, and every run writes config.toml",
    "wandb_api_key": "a secret must not reach config.toml; set the environment variable WANDB_API_KEY",
    "deepspeed": _ACCELERATE,
    "zero_stage": _ACCELERATE,
    "offload_optimizer_device": _ACCELERATE,
    "offload_optimizer_nvme_path": _ACCELERATE,
    "offload_param_device": _ACCELERATE,
    "offload_param_nvme_path": _ACCELERATE,
    "zero3_init_flag": _ACCELERATE,
    "zero3_save_16bit_model": _ACCELERATE,
    "fp16_master_weights_and_gradients": _ACCELERATE,
    "huggingface_repo_id": _UPLOAD,
    "huggingface_repo_type": _UPLOAD,
    "huggingface_path_in_repo": _UPLOAD,
    "huggingface_token": _UPLOAD,
    "huggingface_repo_visibility": _UPLOAD,
    "save_state_to_huggingface": _UPLOAD,
    "resume_from_huggingface": _UPLOAD,
    "async_upload": _UPLOAD,
    "validation_seed": _VALIDATION,
    "validation_split": _VALIDATION,
    "validate_every_n_steps": _VALIDATION,
    "validate_every_n_epochs": _VALIDATION,
    "max_validation_steps": _VALIDATION,
    "initial_epoch": "--resume continues epoch, step and data order by itself",
    "initial_step": "--resume continues epoch, step and data order by itself",
    "skip_until_initial_step": "--resume continues epoch, step and data order by itself",
    "fused_backward_pass": _FUSED,
    "datasets": "[[datasets]] belongs in a file of its own; give that file as dataset_config",
    "stop_text_encoder_training": (
        "the text encoder's LoRA is trained for the whole run; leave it out, or set network_train_unet_only = true"
    ),
    "additional_parameters": "it holds flags for another script; write each of them as an option of its own",
    "extra_accelerate_launch_args": _ACCELERATE,
    "metadata_is_negative_embedding": "a LoRA is not an embedding; leave it out",
}

_PICKLE = "a pickle runs code when it is opened; every WebUI reads safetensors"
_GONE = "current PyTorch no longer has this backend; use inductor"

# Values of supported options that kohya has and this suite does not.
REFUSED_VALUES: dict[str, dict[str, str]] = {
    "network_module": {
        "networks.dylora": "it trains a rank that is drawn anew in each step; use networks.lora with one network_dim",
        "networks.lora_fa": "it freezes half of each factor pair; use networks.lora",
        "networks.oft": 'it is in another package here; use lycoris.kohya with network_args = ["algo=diag-oft"]',
        "networks.loha": 'it is in another package here; use lycoris.kohya with network_args = ["algo=loha"]',
        "networks.lokr": 'it is in another package here; use lycoris.kohya with network_args = ["algo=lokr"]',
    },
    "save_model_as": {"ckpt": _PICKLE, "pt": _PICKLE},
    "dynamo_backend": {
        "aot_ts_nvfuser": _GONE,
        "nvprims_nvfuser": _GONE,
        "ofi": _GONE,
        "fx2trt": _GONE,
        "tensort": _GONE,
    },
}
