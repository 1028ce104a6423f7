"""Every option of the doors, declared once: section, default, help with its unit, bounds, and the doors that use it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from library.incoming.shapes import WIDEST
from library.trainers import GAME, PRIVATE, TRAINERS

AUDIT = ("audit",)
AUDITED = (
    "membership",
    "robustness",
    "reconstruction",
)  # words of the option attacks; each beside the first has a measure in assembly
EVERYWHERE = (*TRAINERS, *AUDIT)


def option(  # noqa: PLR0913  one call is one row of the table below, and its keywords are the columns
    section: str,
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    choices: tuple[Any, ...] | None = None,
    doors: tuple[str, ...] = TRAINERS,
    shapes_weights: bool = True,
    kohya: str = "",
) -> Any:
    """Declare one option.

    Args:
        section: heading in ``config.toml``, for the reader only.
        help: one line with the unit.
        least, most, above: bounds of a number; ``above`` is exclusive.
        choices: the values that are allowed; of a list, its words.
        doors: scripts that use the option; the others refuse it.
        shapes_weights: whether another value gives another LoRA (``--resume`` compares these).
        kohya: kohya's default and the reason for ours, if they differ.
    """
    facts = {
        "section": section,
        "help": help,
        "least": least,
        "most": most,
        "above": above,
        "choices": choices,
        "doors": doors,
        "shapes_weights": shapes_weights,
        "kohya": kohya,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=facts)
    return dataclasses.field(default=default, metadata=facts)


@dataclass(frozen=True)
class Config:
    """The resolved options of one run, read only by doors and tests; the library receives plain values."""

    # fmt: off
    pretrained_model_name_or_path: str = option("model", "", "diffusers folder, single SD 1.x / 2.x / SDXL file (.safetensors, .ckpt), or hub id", doors=EVERYWHERE)
    v2: bool = option("model", False, "the base model is SD 2.x; checked against the file", doors=EVERYWHERE)
    sdxl: bool = option("model", False, "the base model is SDXL, which is seen without this too; checked against the file", doors=EVERYWHERE, shapes_weights=False, kohya="not in kohya, which has scripts of its own for SDXL; front-ends write this key")
    v_parameterization: bool = option("model", False, "the base model predicts velocity (SD 2.x 768-v, some SDXL models); checked where the model states it", doors=EVERYWHERE)
    vae: str | None = option("model", None, "VAE that replaces the base model's own: diffusers folder, single file, or hub id", doors=EVERYWHERE)
    tokenizer_cache_dir: str | None = option("model", None, "folder for tokenizers that are fetched from the hub; those of single files come with the suite", shapes_weights=False)
    base_weights: list[str] = option("model", [], "LoRA files that are merged into the base model before training", doors=EVERYWHERE)
    base_weights_multiplier: list[str] = option("model", [], "strength of each of base_weights; missing ones are 1.0", doors=EVERYWHERE)
    clip_skip: int = option("model", 1, "hidden state of the text encoder that conditions the UNet, counted from the end (1 = last); without effect on SDXL, as in kohya", least=1, most=12, doors=EVERYWHERE)
    max_token_length: int = option("model", 75, "prompt tokens; longer prompts are encoded in pieces of 75", choices=(75, 150, 225), doors=EVERYWHERE)
    vae_batch_size: int = option("model", 1, "images encoded at once while latents are cached", least=1, shapes_weights=False)
    no_half_vae: bool = option("model", False, "keep the VAE in fp32 under mixed precision")

    train_data_dir: str = option("data", "", "kohya parent folder with <repeats>_<class> children, or a flat folder with --flat_data_dir", doors=EVERYWHERE)
    nonmember_data_dir: str | None = option("data", None, "folder of non-members; unset: a share of the training pictures is held out", kohya="not in kohya", doors=EVERYWHERE)
    reg_data_dir: str | None = option("data", None, "kohya parent folder of regularisation images; they are public and not part of the split", doors=(*GAME, *AUDIT))
    prior_loss_weight: float = option("data", 1.0, "weight of a regularisation image in the adaptation loss", least=0, doors=GAME)
    in_json: str | None = option("data", None, "fine-tune metadata (JSON or JSONL) with the captions of train_data_dir", doors=EVERYWHERE)
    dataset_repeats: int = option("data", 1, "repeats of every picture of in_json or dataset_name", least=1, doors=EVERYWHERE)
    dataset_config: str | None = option("data", None, "TOML or JSON file with [general], [[datasets]], [[datasets.subsets]]; replaces train_data_dir, reg_data_dir and in_json", doors=EVERYWHERE)
    dataset_name: str | None = option("data", None, "Hugging Face dataset: hub id, local parquet file, or folder (imagefolder with metadata.jsonl)", kohya="not in kohya; named as in diffusers", doors=EVERYWHERE)
    dataset_config_name: str | None = option("data", None, "configuration of dataset_name, where it has several", kohya="not in kohya; named as in diffusers", doors=EVERYWHERE)
    dataset_split: str = option("data", "train", "split of dataset_name", kohya="not in kohya", doors=EVERYWHERE)
    image_column: str = option("data", "image", "column of dataset_name that holds the pictures", kohya="not in kohya; named as in diffusers", doors=EVERYWHERE)
    caption_column: str = option("data", "text", "column of dataset_name that holds the captions", kohya="not in kohya; named as in diffusers", doors=EVERYWHERE)
    group_column: str | None = option("data", None, "column of dataset_name; pictures with the same value stay on one side of the split", kohya="not in kohya", doors=EVERYWHERE)
    flat_data_dir: bool = option("data", False, "use the images directly in train_data_dir, one repeat each", doors=EVERYWHERE, kohya="not in kohya")
    caption_extension: str | None = option("data", None, "ending of caption files; unset: .txt, then .caption", kohya="kohya: .caption; most people use .txt", doors=EVERYWHERE)
    resolution: str = option("data", "512", "training size in pixels, '512' or 'width,height'; unset with an SDXL base: 1024", kohya="kohya: none (needed); these are the families' own sizes", doors=EVERYWHERE)
    enable_bucket: bool = option("data", False, "keep aspect ratios: sort images into buckets of equal area", doors=EVERYWHERE)
    bucket_no_upscale: bool = option("data", False, "never enlarge an image; its bucket is its own size, rounded down", doors=EVERYWHERE)
    min_bucket_reso: int = option("data", 256, "smallest bucket side in pixels", least=8, most=WIDEST, doors=EVERYWHERE)
    max_bucket_reso: int = option("data", 1024, "largest bucket side in pixels; unset with an SDXL base and no resolution: 2048", least=8, most=WIDEST, doors=EVERYWHERE)
    bucket_reso_steps: int = option("data", 64, "bucket sides are multiples of this many pixels", least=8, most=WIDEST, doors=EVERYWHERE)
    skip_image_resolution: str | None = option("data", None, "pictures of at most this area are passed over, '512' or 'width,height'; unset: none", doors=EVERYWHERE, kohya="not in kohya's v0.10.1; newer versions have it")
    resize_interpolation: str | None = option("data", None, "how pictures are scaled; unset: area to shrink, lanczos to enlarge", choices=("lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area", "box"), doors=EVERYWHERE)
    shuffle_caption: bool = option("data", False, "shuffle the parts of a caption each time it is used")
    caption_separator: str = option("data", ",", "what separates the parts of a caption")
    keep_tokens: int = option("data", 0, "number of parts at the front that stay in place when captions are shuffled", least=0)
    keep_tokens_separator: str | None = option("data", None, "text that divides a caption into a fixed head, flexible parts and a fixed tail; overrides keep_tokens")
    secondary_separator: str | None = option("data", None, "text that is replaced by caption_separator at the very end, so that parts stay together")
    enable_wildcard: bool = option("data", False, "at each use, draw one of {a|b}, and one line of a caption with several lines")
    caption_prefix: str | None = option("data", None, "text put in front of every caption")
    caption_suffix: str | None = option("data", None, "text put behind every caption")
    weighted_captions: bool = option("data", False, "read (word:1.3), (word) and [word] as weights of the text states, as A1111 does")
    caption_dropout_rate: float = option("data", 0.0, "chance (0..1) that a caption is left empty for one use", least=0, most=1)
    caption_dropout_every_n_epochs: int = option("data", 0, "all captions are empty in every n-th epoch; 0 = never", least=0)
    caption_tag_dropout_rate: float = option("data", 0.0, "chance (0..1) that a flexible part of a caption is left out for one use", least=0, most=1)
    token_warmup_min: int = option("data", 1, "number of flexible parts of a caption in the first step of the warm-up", least=1)
    token_warmup_step: float = option("data", 0.0, "optimizer steps until captions are complete; below 1 = share of the run; 0 = no warm-up", least=0)
    flip_aug: bool = option("data", False, "mirror the picture in half of its uses; captions are unchanged")
    color_aug: bool = option("data", False, "change hue and gamma a little at each use; needs cache_latents = false")
    random_crop: bool = option("data", False, "crop anywhere instead of in the centre; needs cache_latents = false")
    face_crop_aug_range: str | None = option("data", None, "'least,most' scale of a random crop around a face named in the file; needs cache_latents = false")
    masked_loss: bool = option("data", False, "weight the adaptation loss by a mask per pixel; the proxy sees the whole error map")
    alpha_mask: bool = option("data", False, "the picture's alpha channel is its mask; turns masked_loss on")
    conditioning_data_dir: str | None = option("data", None, "folder with one mask for each picture, of the same file stem (red channel, 255 = full weight)")
    strict_captions: bool = option("data", False, "refuse images without a caption file even if the folder's class words could replace the caption", kohya="not in kohya")
    cache_latents: bool = option("data", True, "encode latents once, before the first step; false: encode at every use, which color_aug and random crops need", kohya="kohya: off; encoding costs more than the UNet's forward pass")
    cache_latents_mode: str = option("data", "moments", "moments: a fresh posterior draw at each use; sample: one draw that is kept, as in the released code; mean: no draw", choices=("moments", "sample", "mean"), kohya="not in kohya")
    cache_latents_to_disk: bool = option("data", False, "keep encoded latents in cache_dir for later runs (0600: they decode to the pictures)", shapes_weights=False)
    rebuild_cache: bool = option("data", False, "encode latents again even if cache_dir has them", shapes_weights=False, kohya="not in kohya")
    cache_text_encoder_outputs: bool = option("data", False, "stop if captions cannot be encoded once; they are encoded once anyway if the text encoder is frozen and captions are static", shapes_weights=False)
    cache_dir: str = option("data", "output/.cache", "folder of the disk caches (0700)", shapes_weights=False, doors=EVERYWHERE, kohya="not in kohya")

    nonmember_share: float = option("split", 0.5, "share of train_data_dir that is held out as non-members (0..1)", above=0, most=0.95)
    aux_share: float = option("split", 0.5, "share of each side that the proxy attacker learns from (0..1)", above=0, most=0.95)
    inclusion: str = option("split", "bernoulli", "bernoulli: an independent draw for each image or group; fixed: exact shares", choices=("bernoulli", "fixed"))
    group_by: str | None = option("split", None, "'folder', 'name' (up to the first _ or -), 'none', or a JSON file {stem: group}; unset: groups.json beside the images")
    split_secret_file: str | None = option("split", None, "file with the split's secret in hexadecimal digits (128 bits or more), to draw the same sides again; unset: a fresh secret, kept only in split.json", shapes_weights=False, kohya="not in kohya")
    split_file: str | None = option("split", None, "reuse the sides of an earlier run's split.json", doors=EVERYWHERE)

    network_module: str = option("network", "networks.lora", "module that makes the network: networks.lora, lycoris.kohya, or a module of an installed package that follows kohya's protocol", kohya="kohya: none (needed); nearly everyone uses networks.lora")
    network_args: list[str] = option("network", [], "key=value pairs for the network, e.g. conv_dim=8 conv_alpha=8 loraplus_lr_ratio=16")
    network_weights: str | None = option("network", None, "LoRA file to start from")
    dim_from_weights: bool = option("network", False, "take ranks and alphas from network_weights")
    scale_weight_norms: float | None = option("network", None, "largest norm of a module's product; larger ones are scaled down after every step; 1 is usual", above=0)
    network_dim: int = option("network", 4, "rank", least=1)
    network_alpha: float = option("network", 1.0, "scale = network_alpha / network_dim; 0 means network_dim", least=0)
    network_dropout: float = option("network", 0.0, "dropout on the low-rank activations (0..1)", least=0, most=0.95, kohya="kohya: none, which means 0")
    network_train_unet_only: bool = option("network", False, "no LoRA in the text encoder")
    network_train_text_encoder_only: bool = option("network", False, "no LoRA in the UNet")

    param_alpha: float = option("privacy", 0.05, "weight of the MI gain; the paper's lambda", least=0, doors=GAME)
    param_beta: float = option("privacy", 1.0, "additive constant of the ratio's denominator", least=0, doors=("SPLoRA",))
    k_steps: int = option("privacy", 1, "attacker steps per LoRA step; 0 switches the attacker off (only with param_alpha 0)", least=0, doors=GAME)
    attack_lr: float = option("privacy", 1e-5, "learning rate of the proxy attacker (Adam)", above=0, doors=GAME)
    attack_weight_decay: float = option("privacy", 1e-4, "weight decay of the proxy attacker", least=0, doors=GAME)
    attack_dropout: float = option("privacy", 0.5, "dropout of the proxy attacker (0..1)", least=0, most=0.95, doors=GAME)
    attack_batch_size: int | None = option("privacy", None, "images per side in an attacker step; unset: train_batch_size", least=1, doors=GAME)
    attack_eval_draws: int = option("privacy", 4, "fixed (timestep, noise) draws per aux image in each validation pass", least=1, most=100, shapes_weights=False, doors=GAME)
    separate_noise: bool = option("privacy", False, "a second UNet pass with fresh noise for the gain, as in the released code", doors=GAME)
    update_order: str = option("privacy", "attacker_first", "who takes the first step: the proxy attacker or the LoRA", choices=("attacker_first", "lora_first"), doors=GAME)
    proxy_mode: str = option("privacy", "eval", "mode of the proxy in the LoRA's step; train leaves dropout on, as in the released code", choices=("eval", "train"), doors=GAME)
    gain_limit: float | None = option("privacy", None, "upper limit of an image's cross-entropy in nats (ln 2 = 0.6931 is chance); unset: no limit", above=0, doors=GAME)
    proxy_input: str = option("privacy", "error_map", "what the proxy attacker sees. error_map: the squared error, as in the paper; calibrated: the errors with the LoRA on and off under the same noise, and the timestep, as auditors do (one more pass without gradient)", choices=("error_map", "calibrated"), kohya="not in kohya", doors=GAME)
    attack_draws: int = option("privacy", 1, "(timestep, noise) pairs per image that the proxy sees at once; a LoRA step costs so many times as much (calibrated only)", least=1, most=64, kohya="not in kohya", doors=GAME)
    gain_starts: str = option("privacy", "at_once", "when the MI gain counts. above_chance: once a validation pass finds the proxy above chance", choices=("at_once", "above_chance"), kohya="not in kohya", doors=GAME)
    target_auc: float | None = option("privacy", None, "stop before the aux members can be told from the aux non-members better than this (0.5..1): AUC of the calibrated loss; the file holds the weights that learnt most at or below it; unset: the planned length", above=0.5, most=0.99, kohya="not in kohya", doors=GAME)
    target_decay: float = option("privacy", 0.25, "length of the final decay of the learning rate that target_auc begins, as a share of the steps before it; 0 = stop at once", least=0, most=1, kohya="not in kohya", doors=GAME)
    distill_folds: int = option("privacy", 0, "cross-fitted distillation: so many teacher LoRAs are trained, each without one fold of the members (whole groups), and the LoRA learns of each member what the teacher predicts that never saw it, never the true noise; 0 = off", least=0, most=1000, kohya="not in kohya", doors=GAME)
    distill_teacher_epochs: int = option("privacy", 8, "epochs of each teacher over the members outside its fold; its learning rate rises and falls to zero within them; with target_auc at most so many", least=1, kohya="not in kohya", doors=GAME)
    distill_keep_teachers: bool = option("privacy", False, "leave the teachers in the run's state folder at its end; they hold what they learnt by heart, so never share them", shapes_weights=False, kohya="not in kohya", doors=GAME)

    dp_target_epsilon: float | None = option("dp", None, "epsilon that the whole run may spend: it sets the noise (or give dp_noise_multiplier)", above=0, doors=PRIVATE)
    dp_noise_multiplier: float | None = option("dp", None, "standard deviation of the noise on the summed gradients, in clipping norms (or give dp_target_epsilon); 0 = clipping alone, epsilon is infinite", least=0, most=200, doors=PRIVATE)
    dp_delta: float | None = option("dp", None, "delta of the guarantee, below 1 / units of privacy; unset: the power of ten at or below 1 / (10 units)", above=0, most=0.5, doors=PRIVATE)
    dp_max_grad_norm: float = option("dp", 0.01, "norm to which the gradient of each unit of privacy is clipped; about the median of log.jsonl's unit_gradient_norm", above=0, doors=PRIVATE)
    dp_batch_size: int = option("dp", 64, "units of privacy (the split's groups, or single pictures) of an optimizer step on average; each enters by a coin of its own", least=1, doors=PRIVATE)
    dp_draws: int = option("dp", 4, "(timestep, noise) pairs of each picture that a unit's loss is averaged over before clipping; costs time and memory, and no privacy", least=1, most=64, doors=PRIVATE)

    learning_rate: float = option("optimizer", 2e-6, "learning rate of the parts whose unet_lr or text_encoder_lr is unset", least=0)
    unet_lr: float | None = option("optimizer", None, "learning rate of the UNet's LoRA", least=0)
    text_encoder_lr: float | list[float] | None = option("optimizer", None, "learning rate of the text encoder's LoRA; of SDXL's two: one for both, or a list of two", least=0)
    optimizer_type: str = option("optimizer", "AdamW", "kohya's name of an optimizer, a class of torch.optim, or the dotted path of a class in an installed package")
    optimizer_args: list[str] = option("optimizer", [], "key=value pairs for the optimizer, e.g. weight_decay=0.01 betas=0.9,0.99")
    max_grad_norm: float = option("optimizer", 1.0, "gradient norm above which gradients are scaled down; 0 = never", least=0, doors=GAME)
    lr_scheduler: str = option("optimizer", "constant", "schedule of the learning rate", choices=(
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "adafactor",
        "piecewise_constant", "inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay"))
    lr_warmup_steps: float = option("optimizer", 0.0, "optimizer steps of warm-up; below 1 = share of the run", least=0)
    lr_decay_steps: float = option("optimizer", 0.0, "optimizer steps of the final decay (warmup_stable_decay); below 1 = share of the run", least=0)
    lr_scheduler_timescale: int | None = option("optimizer", None, "timescale of inverse_sqrt in optimizer steps; unset: the warm-up", least=1)
    lr_scheduler_min_lr_ratio: float | None = option("optimizer", None, "lowest rate of cosine_with_min_lr and warmup_stable_decay, as a share of the peak (0..1)", least=0, most=1)
    lr_scheduler_type: str = option("optimizer", "", "class of torch.optim.lr_scheduler, or dotted path of a class in an installed package; overrides lr_scheduler")
    lr_scheduler_args: list[str] = option("optimizer", [], "key=value pairs for lr_scheduler_type or for lr_scheduler piecewise_constant")
    lr_scheduler_num_cycles: int = option("optimizer", 1, "number of cycles of cosine_with_restarts", least=0)
    lr_scheduler_power: float = option("optimizer", 1.0, "exponent of polynomial", least=0)

    ema_decay: float | None = option("optimizer", None, "decay of a moving average of the LoRA, e.g. 0.999; the files then hold the average; unset: no average", above=0, most=0.99999, kohya="not in kohya", doors=GAME)

    loss_type: str = option("loss", "l2", "adaptation loss per element; the proxy always sees the squared error", choices=("l2", "l1", "huber", "smooth_l1"))
    huber_schedule: str = option("loss", "snr", "how the Huber threshold depends on the timestep", choices=("constant", "exponential", "snr"))
    huber_c: float = option("loss", 0.1, "Huber threshold at the noisy end", above=0)
    huber_scale: float = option("loss", 1.0, "factor of the whole Huber threshold", above=0)
    min_snr_gamma: float | None = option("loss", None, "min-SNR weight of the adaptation loss (5 is usual); unset or 0: none", least=0)
    debiased_estimation_loss: bool = option("loss", False, "weight the adaptation loss by 1/sqrt(SNR), which emphasises high noise")
    scale_v_pred_loss_like_noise_pred: bool = option("loss", False, "weight a velocity model's loss like a noise model's")
    v_pred_like_loss: float | None = option("loss", None, "factor of a velocity-like weight that is added to a noise model's loss", least=0)
    zero_terminal_snr: bool = option("loss", False, "rescale the noise schedule so that the last step has no signal (velocity models)", doors=EVERYWHERE)
    noise_offset: float | None = option("loss", None, "size of one random constant per channel added to the noise (0.05 is usual); unset or 0: none", least=0)
    noise_offset_random_strength: bool = option("loss", False, "draw the offset's size between 0 and noise_offset for each image")
    adaptive_noise_scale: float | None = option("loss", None, "factor of the absolute mean of a latent's channel that is added to noise_offset")
    multires_noise_iterations: int | None = option("loss", None, "levels of pyramid noise (6-10 is usual); unset or 0: none", least=0)
    multires_noise_discount: float = option("loss", 0.3, "weight of each coarser level of pyramid noise (0..1)", above=0, most=1)
    ip_noise_gamma: float | None = option("loss", None, "input perturbation: extra noise on the UNet's input only (0.1 is usual); unset or 0: none", least=0)
    ip_noise_gamma_random_strength: bool = option("loss", False, "draw the perturbation's size between 0 and ip_noise_gamma for each image")
    min_timestep: int | None = option("loss", None, "smallest timestep that training draws (0..999)", least=0, most=999)
    max_timestep: int | None = option("loss", None, "upper bound of the timesteps that training draws, exclusive (1..1000)", least=1, most=1000)

    train_batch_size: int = option("schedule", 1, "images per device and pass", least=1)
    gradient_accumulation_steps: int = option("schedule", 1, "passes per optimizer step", least=1, doors=GAME)
    max_train_steps: int = option("schedule", 1600, "optimizer steps", least=1, shapes_weights=False)
    max_train_epochs: int | None = option("schedule", None, "length in epochs; overrides max_train_steps if both are in the file, or both on the command line", least=1, shapes_weights=False)
    keep_exposures: bool = option("schedule", False, "shorten max_train_steps so that each member is used as often as kohya would use it, although a share of the pictures is held out", shapes_weights=False, kohya="not in kohya", doors=GAME)
    mixed_precision: str = option("schedule", "no", "dtype of frozen weights and activations", choices=("no", "fp16", "bf16"), doors=EVERYWHERE)
    torch_compile: bool = option("schedule", False, "compile the UNet's repeated blocks; every new bucket shape compiles again", shapes_weights=False, doors=GAME)
    dynamo_backend: str = option("schedule", "inductor", "backend of torch_compile", choices=("inductor", "eager", "aot_eager", "cudagraphs", "onnxrt", "tvm", "ipex"), shapes_weights=False, doors=GAME)
    ddp_timeout: int | None = option("schedule", None, "minutes until processes stop waiting for each other", least=1, shapes_weights=False)
    gradient_checkpointing: bool = option("schedule", False, "recompute activations: less memory, about 1.5 x the time", shapes_weights=False, doors=GAME)
    seed: int = option("schedule", 0, "distinguishes runs on one split; it need not be secret: every draw also depends on the split's secret", least=0, most=2**31 - 1, kohya="kohya: none, which draws a random seed; here the split's secret is random")

    output_dir: str | None = option("saving", None, "folder of the run; unset: a fresh dated folder under output/", shapes_weights=False)
    output_name: str = option("saving", "last", "stem of the LoRA files", shapes_weights=False)
    overwrite: bool = option("saving", False, "use an output_dir that holds a run again; its LoRA, split and logs are replaced", shapes_weights=False, kohya="not in kohya")
    save_model_as: str = option("saving", "safetensors", "file format of the LoRA", choices=("safetensors",), shapes_weights=False)
    save_precision: str = option("saving", "fp16", "dtype of the LoRA files", choices=("float", "fp16", "bf16"), shapes_weights=False, kohya="kohya: the training dtype; fp16 is what people share")
    save_every_n_epochs: int | None = option("saving", None, "epochs between LoRA files", least=1, shapes_weights=False)
    save_every_n_steps: int | None = option("saving", None, "optimizer steps between LoRA files", least=1, shapes_weights=False)
    save_n_epoch_ratio: int | None = option("saving", None, "number of LoRA files that a run saves, spread evenly over its epochs", least=1, shapes_weights=False)
    save_last_n_epochs: int | None = option("saving", None, "LoRA files of the last n epochs are kept, older ones are removed", least=1, shapes_weights=False)
    save_last_n_steps: int | None = option("saving", None, "LoRA files of the last n optimizer steps are kept, older ones are removed", least=1, shapes_weights=False)
    save_state: bool = option("saving", False, "save a resumable state beside every LoRA file", shapes_weights=False)
    save_state_on_train_end: bool = option("saving", False, "save a resumable state at the end", shapes_weights=False)
    save_last_n_epochs_state: int | None = option("saving", None, "states of the last n epochs are kept; unset: as for LoRA files", least=1, shapes_weights=False)
    save_last_n_steps_state: int | None = option("saving", None, "states of the last n optimizer steps are kept; unset: as for LoRA files", least=1, shapes_weights=False)
    resume: str | None = option("saving", None, "state folder to continue from, e.g. output/run/state/last-step00000050-state", shapes_weights=False)
    metadata: str = option("saving", "allowlist", "allowlist: what WebUIs need plus ss_privacy_*; full: also names, counts and the comment", choices=("allowlist", "full"), shapes_weights=False, kohya="not in kohya")
    no_metadata: bool = option("saving", False, "write only the six keys that WebUIs need to label the file correctly, and modelspec.architecture", shapes_weights=False)
    training_comment: str | None = option("saving", None, "free text for the LoRA file; needs --metadata full", shapes_weights=False)

    metadata_title: str | None = option("saving", None, "title of the LoRA (modelspec.title); needs --metadata full", shapes_weights=False)
    metadata_author: str | None = option("saving", None, "author of the LoRA (modelspec.author); needs --metadata full", shapes_weights=False)
    metadata_description: str | None = option("saving", None, "description of the LoRA (modelspec.description); needs --metadata full", shapes_weights=False)
    metadata_license: str | None = option("saving", None, "licence of the LoRA (modelspec.license); needs --metadata full", shapes_weights=False)
    metadata_tags: str | None = option("saving", None, "tags, separated by commas (modelspec.tags); needs --metadata full", shapes_weights=False)
    metadata_usage_hint: str | None = option("saving", None, "how to use the LoRA (modelspec.usage_hint); needs --metadata full", shapes_weights=False)
    metadata_thumbnail: str | None = option("saving", None, "data URL of a picture, PNG or JPEG (modelspec.thumbnail); needs --metadata full", shapes_weights=False)
    metadata_merged_from: str | None = option("saving", None, "what the LoRA was merged from (modelspec.merged_from); needs --metadata full", shapes_weights=False)
    metadata_trigger_phrase: str | None = option("saving", None, "words that trigger the LoRA (modelspec.trigger_phrase); needs --metadata full", shapes_weights=False)
    metadata_preprocessor: str | None = option("saving", None, "preprocessing of the training pictures (modelspec.preprocessor); needs --metadata full", shapes_weights=False)

    sample_prompts: str | None = option("previews", None, "prompts: .txt (one a line, with kohya's --n --w --h --d --l --s --ss), .toml or .json", shapes_weights=False)
    sample_every_n_epochs: int | None = option("previews", None, "epochs between previews; overrides sample_every_n_steps", least=1, shapes_weights=False)
    sample_every_n_steps: int | None = option("previews", None, "optimizer steps between previews", least=1, shapes_weights=False)
    sample_at_first: bool = option("previews", False, "also make previews of the unchanged base model before the first step", shapes_weights=False)
    sample_sampler: str = option("previews", "ddim", "sampler of the previews", shapes_weights=False, choices=(
        "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
        "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a"))
    aux_loss_share: float = option("previews", 0.1, "largest share of the training's UNet passes that validation passes take, where neither aux_loss_every_n_epochs nor aux_loss_every_n_steps is given: they come less often, and in a short run look at fewer pictures", least=0, most=1, kohya="not in kohya", shapes_weights=False, doors=GAME)
    aux_loss_every_n_epochs: int | None = option("previews", None, "epochs between validation passes: loss and the proxy's accuracy on both aux sides, at fixed timesteps and noise; unset: see aux_loss_share", least=1, kohya="not in kohya", shapes_weights=False, doors=GAME)
    aux_loss_every_n_steps: int | None = option("previews", None, "optimizer steps between further validation passes", least=1, kohya="not in kohya", shapes_weights=False, doors=GAME)
    log_with: str = option("previews", "tensorboard", "where figures are logged besides log.jsonl; wandb receives figures only", choices=("tensorboard", "wandb", "all"), shapes_weights=False, kohya="kohya: none, and no log without logging_dir; here a run always keeps its figures, in its own folder")
    log_prefix: str | None = option("previews", None, "write TensorBoard's files to a folder with this name and the date, below logging_dir", shapes_weights=False)
    log_tracker_name: str | None = option("previews", None, "project name at wandb; unset: private-lora", shapes_weights=False)
    log_tracker_config: str | None = option("previews", None, "TOML file with a [wandb] table of further arguments for wandb.init", shapes_weights=False)
    wandb_run_name: str | None = option("previews", None, "name of the run at wandb", shapes_weights=False)
    console_log_level: str = option("previews", "INFO", "lowest level of the messages on the terminal", choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), shapes_weights=False, doors=EVERYWHERE, kohya="kohya: none, which means INFO")
    logging_dir: str | None = option("previews", None, "TensorBoard folder; unset: output_dir/tensorboard", shapes_weights=False)

    outputs: list[str] = option("audit", [], "output folders of the trainers, or LoRA files (these need pretrained_model_name_or_path, train_data_dir and split_file); several are audited side by side", doors=AUDIT, shapes_weights=False)
    attacks: list[str] = option("audit", ["membership"], "what is tried on the LoRA, one or more of: membership: who was in it; robustness: how far small changes of a picture or of its text move the model, at several ranks of the LoRA; reconstruction: what the weights alone show of the private pictures", choices=AUDITED, doors=AUDIT, shapes_weights=False)
    profile: str = option("audit", "lite", "lite: about 26 UNet passes per image and state; full: about 119", choices=("lite", "full"), doors=AUDIT, shapes_weights=False)
    checkpoints: str = option("audit", "spread", "which LoRA files of an output folder are audited: spread: the last one and up to three earlier ones, evenly over the training, for the curve of AUC against exposures; all: every saved one; last: that alone", choices=("spread", "all", "last"), doors=AUDIT, shapes_weights=False)
    target_fpr: float = option("audit", 0.05, "false-positive rate (0..1); its threshold is set on the aux sides, and the report shows the rate that results on the test sides", above=0, most=0.5, doors=AUDIT, shapes_weights=False)
    fail_above: float | None = option("audit", None, "AUC (0.5..1) that the upper end of the main attack's 95 % interval may not exceed: the audit then ends with status 3, with 4 if it is invalid, else with 0; unset: with 0 whatever the verdict", least=0.5, most=1, doors=AUDIT, shapes_weights=False)
    undefended: str | None = option("audit", None, "output folder of an undefended LoRA of the same split; unset: the one among the outputs with param_alpha 0", doors=AUDIT, shapes_weights=False)
    generated_images: int = option("audit", 0, "images generated per caption for the black-box attack and the image quality; 0 = neither is measured", least=0, most=16, doors=AUDIT, shapes_weights=False)
    generation_captions: int = option("audit", 50, "number of captions per test side that images are generated for", least=2, doors=AUDIT, shapes_weights=False)
    generation_steps: int = option("audit", 30, "DDIM steps per generated image", least=1, most=1000, doors=AUDIT, shapes_weights=False)
    shadow_transfer: bool = option("audit", False, "also train a shadow LoRA with the same recipe on the aux non-members, fit every attack on it and apply it to this LoRA: an attacker without membership labels", doors=AUDIT, shapes_weights=False)
    shadow_loras: int = option("audit", 0, "number of shadow LoRAs, each trained on a random half of the candidates, for the likelihood-ratio attack; 0 = no such attack", least=0, most=256, doors=AUDIT, shapes_weights=False)
    inception_weights: str | None = option("audit", None, "Inception weights of torch-fidelity or pytorch-fid (.pth, TensorFlow's 2015-12-05): for FID and KID of the generated images; unset: distances in the VAE's space, under their own names", doors=AUDIT, shapes_weights=False)
    clip_model: str | None = option("audit", None, "CLIP (transformers folder, or hub id in the local cache): for the agreement of generated images and captions; unset: not measured", doors=AUDIT, shapes_weights=False)
    image_encoder: str | None = option("audit", None, "CLIP or DINOv2 (transformers folder, or hub id in the local cache) for the black-box attack; unset: the VAE's space", doors=AUDIT, shapes_weights=False)
    sweep_batch_size: int = option("audit", 16, "images per UNet pass", least=1, doors=AUDIT, shapes_weights=False)
    scores_only: bool = option("audit", False, "compute scores from cached answers, without UNet passes", doors=AUDIT, shapes_weights=False)
    publishable: str | None = option("audit", None, "fresh folder for the part of the audit that may be published: figures with two digits, n and interval, and a page without pictures; unset: not written", doors=AUDIT, shapes_weights=False)
    stamp: bool = option("audit", False, "write the measured figures into the LoRA file's ss_privacy_* metadata", doors=AUDIT, shapes_weights=False)
    robustness_eps: list[str] = option("audit", ["2/255", "4/255", "8/255", "16/255"], "sizes of the change, above 0 and at most 1: the most that a pixel in 0..1 may move (L-infinity), and the share of its own length by which a text state may (L2)", doors=AUDIT, shapes_weights=False)
    robustness_steps: int = option("audit", 20, "steps of projected gradient", least=1, most=1000, doors=AUDIT, shapes_weights=False)
    robustness_restarts: int = option("audit", 2, "starts of projected gradient; the best point of all counts", least=1, most=100, doors=AUDIT, shapes_weights=False)
    robustness_pictures: int = option("audit", 20, "pictures of each test side, at most two of a group", least=2, doors=AUDIT, shapes_weights=False)
    robustness_ranks: list[str] = option("audit", [], "ranks that the LoRA is also cut to, below its own; unset: its own halved again and again, down to 1", doors=AUDIT, shapes_weights=False)
    public_data_dir: str | None = option("audit", None, "kohya parent folder of public pictures with groups.json (whose each one is), for attacks reconstruction: shadow LoRAs of these persons are trained, and the attacks that learn from them run; unset: only those that need none", doors=AUDIT, shapes_weights=False)
    class_prompt: str = option("audit", "", "words that say what all the pictures show, such as portrait, for attacks reconstruction", doors=AUDIT, shapes_weights=False)
    reconstruction_shadows: int = option("audit", 100, "shadow LoRAs of public persons, at most; fewer where public_data_dir has fewer persons with 4 pictures", least=16, most=10000, doors=AUDIT, shapes_weights=False)
    reconstruction_steps: int = option("audit", 60, "optimizer steps of each shadow LoRA, with 2 pictures each", least=10, most=10000, doors=AUDIT, shapes_weights=False)
    audit_seed: int = option("audit", 0, "seed of folds, classifiers, bootstrap and permutations; the noise depends only on the images", least=0, most=2**31 - 1, doors=AUDIT, shapes_weights=False)

    audit: bool = option("run", False, "audit the LoRA when its training has ended (with configs/audit.toml), and end with the verdict", shapes_weights=False)
    verbose: bool = option("run", False, "show what every attack chose, and every other step, on the terminal", doors=AUDIT, shapes_weights=False)
    dry_run: bool = option("run", False, "check everything and print the plan, without training or writing files", shapes_weights=False)
    # fmt: on


def fields_of(door: str) -> dict[str, dataclasses.Field]:
    """The options that one door uses, by name."""
    return {field.name: field for field in dataclasses.fields(Config) if door in field.metadata["doors"]}
