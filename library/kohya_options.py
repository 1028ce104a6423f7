"""kohya's options that this suite does not take, with reason and alternative, and old spellings that it does take."""

RENAMED = {
    "caption_extention": "caption_extension",
}

# Accepted without effect, because what they ask for already happens; the door says so once.
WITHOUT_EFFECT = {
    "sdpa": "PyTorch's scaled-dot-product attention is always used",
    "xformers": "PyTorch's scaled-dot-product attention is used instead",
    "mem_eff_attn": "PyTorch's scaled-dot-product attention is used instead",
    "max_data_loader_n_workers": "latents are cached before the first step, there is no loader to feed",
    "persistent_data_loader_workers": "latents are cached before the first step, there is no loader to feed",
    "prior_loss_weight": "no regularisation images are read, so there is no prior loss to weigh",
}

_UPLOAD = "the output folder holds split.json and states; upload the finished LoRA by hand"
_ACCELERATE = "several GPUs go through accelerate; set GPUS in the launcher"
_HALF = "the LoRA stays fp32 and frozen weights take the dtype of mixed_precision; use mixed_precision"
_VALIDATION = (
    "the split already holds images out; use nonmember_share or --split_file (log.jsonl carries the aux losses)"
)
_LATER = "not part of this suite yet"

REFUSED = {
    "use_8bit_adam": 'write optimizer_type = "AdamW8bit"',
    "use_lion_optimizer": f"{_LATER}; optimizer_type takes AdamW and AdamW8bit",
    "full_fp16": _HALF,
    "full_bf16": _HALF,
    "lowram": _HALF,
    "highvram": _HALF,
    "dataset_class": "it imports arbitrary code; give a folder",
    "debug_dataset": "--dry_run shows the data and prints the resolved options",
    "output_config": "--dry_run prints the resolved options, and every run writes config.toml",
    "wandb_api_key": "a secret must not reach config.toml; set the environment variable",
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
    "color_aug": "latents are cached, and a colour change would need the pictures again",
    "random_crop": "latents are cached, and a random crop would need the pictures again",
}

# Known to kohya and planned: refused by name until they work, instead of being called unknown.
PLANNED = """
    v2 v_parameterization vae tokenizer_cache_dir network_args network_weights dim_from_weights scale_weight_norms
    base_weights base_weights_multiplier lr_decay_steps lr_scheduler_timescale lr_scheduler_min_lr_ratio
    lr_scheduler_type lr_scheduler_args fused_backward_pass cpu_offload_checkpointing fp8_base fp8_base_unet
    torch_compile dynamo_backend ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph loss_type huber_schedule
    huber_c huber_scale scale_v_pred_loss_like_noise_pred v_pred_like_loss
    zero_terminal_snr noise_offset noise_offset_random_strength adaptive_noise_scale multires_noise_iterations
    multires_noise_discount ip_noise_gamma ip_noise_gamma_random_strength min_timestep max_timestep masked_loss
    alpha_mask conditioning_data_dir save_n_epoch_ratio metadata_title metadata_author metadata_description
    metadata_license metadata_tags metadata_usage_hint metadata_thumbnail metadata_merged_from
    metadata_trigger_phrase metadata_preprocessor metadata_is_negative_embedding log_with log_prefix
    log_tracker_name log_tracker_config wandb_run_name log_config console_log_level console_log_file
    console_log_simple dataset_config reg_data_dir in_json dataset_repeats skip_cache_check cache_info
    keep_tokens_separator secondary_separator enable_wildcard caption_prefix caption_suffix weighted_captions
    caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate token_warmup_min
    token_warmup_step flip_aug face_crop_aug_range resize_interpolation cache_text_encoder_outputs
    cache_text_encoder_outputs_to_disk disable_mmap_load_safetensors
""".split()
for _name in PLANNED:
    REFUSED.setdefault(_name, _LATER)
