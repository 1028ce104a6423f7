"""kohya's train_network.py: every flag with its default (sd-scripts 48d368fa, v0.10.1 and a little after).

None is unset, False a switch. ``SDXL`` flags belong to its sister scripts.
"""

from typing import Any

SWITCHES = """
v2 v_parameterization no_half_vae lowram highvram
dim_from_weights network_train_unet_only network_train_text_encoder_only
use_8bit_adam use_lion_optimizer fused_backward_pass
gradient_checkpointing cpu_offload_checkpointing full_fp16 full_bf16 fp8_base fp8_base_unet sdpa xformers mem_eff_attn
torch_compile persistent_data_loader_workers ddp_gradient_as_bucket_view ddp_static_graph
deepspeed zero3_init_flag zero3_save_16bit_model fp16_master_weights_and_gradients
debiased_estimation_loss scale_v_pred_loss_like_noise_pred zero_terminal_snr
noise_offset_random_strength ip_noise_gamma_random_strength masked_loss alpha_mask
save_state save_state_on_train_end skip_until_initial_step no_metadata sample_at_first
log_config console_log_simple
save_state_to_huggingface resume_from_huggingface async_upload output_config
debug_dataset enable_bucket bucket_no_upscale
cache_latents cache_latents_to_disk skip_cache_check cache_info
shuffle_caption enable_wildcard weighted_captions flip_aug color_aug random_crop
""".split()

UNSET = """
pretrained_model_name_or_path vae tokenizer_cache_dir
network_module network_args network_dropout network_weights scale_weight_norms base_weights base_weights_multiplier
unet_lr text_encoder_lr optimizer_args lr_scheduler_timescale lr_scheduler_min_lr_ratio lr_scheduler_args
max_train_epochs seed ddp_timeout offload_optimizer_device offload_optimizer_nvme_path offload_param_device
offload_param_nvme_path
min_snr_gamma v_pred_like_loss noise_offset adaptive_noise_scale multires_noise_iterations ip_noise_gamma
min_timestep max_timestep conditioning_data_dir
output_dir save_every_n_epochs save_every_n_steps save_n_epoch_ratio save_last_n_epochs save_last_n_steps
save_last_n_epochs_state save_last_n_steps_state resume initial_epoch initial_step training_comment
metadata_title metadata_author metadata_description metadata_license metadata_tags metadata_usage_hint
metadata_thumbnail metadata_merged_from metadata_trigger_phrase metadata_preprocessor metadata_is_negative_embedding
sample_prompts sample_every_n_steps sample_every_n_epochs
logging_dir log_with log_prefix log_tracker_name log_tracker_config wandb_run_name wandb_api_key
console_log_level console_log_file
validation_seed validate_every_n_steps validate_every_n_epochs max_validation_steps
huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token huggingface_repo_visibility
dataset_config train_data_dir reg_data_dir in_json dataset_class resolution
caption_extention keep_tokens_separator secondary_separator caption_prefix caption_suffix
face_crop_aug_range resize_interpolation
""".split()

VALUES: dict[str, Any] = {
    "clip_skip": 1,  # unset, which means 1
    "max_token_length": 75,  # unset, which means 75
    "network_dim": 4,  # unset, which means 4
    "network_alpha": 1.0,
    "learning_rate": 2e-6,
    "optimizer_type": "AdamW",  # empty, which means AdamW
    "max_grad_norm": 1.0,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "lr_decay_steps": 0,
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1.0,
    "lr_scheduler_type": "",
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "max_train_steps": 1600,
    "mixed_precision": "no",
    "dynamo_backend": "inductor",
    "max_data_loader_n_workers": 8,
    "zero_stage": 2,
    "loss_type": "l2",
    "huber_schedule": "snr",
    "huber_c": 0.1,
    "huber_scale": 1.0,
    "multires_noise_discount": 0.3,
    "prior_loss_weight": 1.0,
    "output_name": "last",  # unset, which means last
    "save_model_as": "safetensors",
    "save_precision": None,  # the training dtype
    "sample_sampler": "ddim",
    "validation_split": 0.0,
    "dataset_repeats": 1,
    "min_bucket_reso": 256,
    "max_bucket_reso": 1024,
    "bucket_reso_steps": 64,
    "vae_batch_size": 1,
    "caption_extension": ".caption",
    "caption_separator": ",",
    "keep_tokens": 0,
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "token_warmup_min": 1,
    "token_warmup_step": 0,
}

SDXL = ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk", "disable_mmap_load_safetensors")

FLAGS: dict[str, Any] = {
    **dict.fromkeys(SWITCHES, False),
    **dict.fromkeys(UNSET),
    **VALUES,
    **dict.fromkeys(SDXL, False),
}
CHOICES = {
    "save_model_as": ("safetensors", "ckpt", "pt"),
    "save_precision": ("float", "fp16", "bf16"),
    "mixed_precision": ("no", "fp16", "bf16"),
    "max_token_length": (150, 225),
    "loss_type": ("l2", "l1", "huber", "smooth_l1"),
    "huber_schedule": ("constant", "exponential", "snr"),
    "log_with": ("tensorboard", "wandb", "all"),
    "lr_scheduler": tuple("""linear cosine cosine_with_restarts polynomial constant constant_with_warmup adafactor
        piecewise_constant inverse_sqrt cosine_with_min_lr warmup_stable_decay""".split()),
    "dynamo_backend": tuple("""eager aot_eager inductor aot_ts_nvfuser nvprims_nvfuser cudagraphs ofi fx2trt onnxrt
        tensort ipex tvm""".split()),
    "sample_sampler": tuple("""ddim pndm lms euler euler_a heun dpm_2 dpm_2_a dpmsolver dpmsolver++ dpmsingle k_lms
        k_euler k_euler_a k_dpm_2 k_dpm_2_a""".split()),
    "resize_interpolation": ("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"),
}  # fmt: skip
