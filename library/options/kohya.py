"""kohya's options that this suite does not support, with reason and alternative, and old spellings that it accepts."""

RENAMED = {
    "caption_extention": "caption_extension",
}

# Old switches that set another option; the door reports it once.
STAND_FOR = {
    "use_8bit_adam": ("optimizer_type", "AdamW8bit"),
    "use_lion_optimizer": ("optimizer_type", "Lion"),
}

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
)

_UPLOAD = "the output folder holds split.json and states; upload the finished LoRA by hand"
_ACCELERATE = "several GPUs go through accelerate; set gpus in the launcher"
_HALF = "the LoRA stays in fp32 and frozen weights have the dtype of mixed_precision; use mixed_precision"
_VALIDATION = (
    "the four-sided split already holds images out (nonmember_share, --split_file); "
    "aux_loss_every_n_epochs and aux_loss_every_n_steps set how often validation runs on its aux sides"
)
_SDXL = "it belongs to kohya's SDXL, SD3 and FLUX scripts; this suite trains SD 1.x and 2.x"
_FP8 = "frozen weights have the dtype of mixed_precision; use bf16 and gradient_checkpointing to save memory"

REFUSED = {
    "full_fp16": _HALF,
    "full_bf16": _HALF,
    "lowram": _HALF,
    "highvram": _HALF,
    "fp8_base": _FP8,
    "fp8_base_unet": _FP8,
    "dataset_class": "it imports arbitrary code; give a metadata file (in_json) or a dataset (dataset_name)",
    "debug_dataset": "--dry_run shows the data and prints the resolved options",
    "output_config": "--dry_run prints the resolved options, and every run writes config.toml",
    "wandb_api_key": "a secret must not reach config.toml; set the environment variable WANDB_API_KEY",
    "log_config": "the options name your folders and would leave this machine; config.toml keeps them beside the LoRA",
    "console_log_file": "a message may name a private file; redirect the terminal (2> FILE) to keep the messages",
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
    "cpu_offload_checkpointing": "it is experimental in kohya; use gradient_checkpointing",
    "fused_backward_pass": _SDXL,
    "cache_text_encoder_outputs_to_disk": (
        "text states are made in seconds and stay in memory; on disk they would be one more file that reveals captions"
    ),
    "disable_mmap_load_safetensors": _SDXL,
    "sdxl": _SDXL,
    "epoch": "it is a setting of the GUI, which kohya's scripts ignore; write max_train_epochs, or remove the line",
    "datasets": "[[datasets]] belongs in a file of its own; give that file as dataset_config",
    "metadata_is_negative_embedding": "a LoRA is not an embedding; leave it out",
}

_PICKLE = "a pickle runs code when it is opened; every WebUI reads safetensors"
_GONE = "current PyTorch no longer has this backend; use inductor"

# Values of supported options that kohya has and this suite does not.
REFUSED_VALUES: dict[str, dict[str, str]] = {
    "save_model_as": {"ckpt": _PICKLE, "pt": _PICKLE},
    "dynamo_backend": {
        "aot_ts_nvfuser": _GONE,
        "nvprims_nvfuser": _GONE,
        "ofi": _GONE,
        "fx2trt": _GONE,
        "tensort": _GONE,
    },
}
