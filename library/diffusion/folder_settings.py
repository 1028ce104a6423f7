"""What the JSON files of a diffusers folder may say, checked before a library builds anything by them."""

from pathlib import Path
from typing import Any

from library.errors import Faults
from library.incoming.files import MIB, MOST_LIST, check_regular, read_text
from library.incoming.pickles import check_pickle_file
from library.incoming.shapes import (
    WIDEST,
    Anything,
    Either,
    Flag,
    ListOf,
    Null,
    Number,
    Record,
    Shape,
    TableOf,
    Text,
    Whole,
    check_shape,
)
from library.incoming.texts import read_json
from library.tensor_files import tensor_names

MOST_CONFIG = 4 * MIB
WIDTH, COUNT, SIDE = Whole(1, 16384), Whole(1, 64), Whole(1, WIDEST)


def _some(shape: Shape) -> Shape:
    """One for all blocks, one for each, or none."""
    return Either((shape, ListOf(Either((shape, ListOf(shape, 1, 16))), 1, 16), Null()))


BLOCKS = ListOf(Text(100), 1, 8)
UNET = Record({}, {
    "block_out_channels": ListOf(WIDTH, 1, 8), "layers_per_block": _some(COUNT), "in_channels": COUNT,
    "out_channels": COUNT, "down_block_types": BLOCKS, "up_block_types": BLOCKS, "cross_attention_dim": _some(WIDTH),
    "attention_head_dim": _some(WIDTH), "num_attention_heads": _some(WIDTH), "sample_size": _some(SIDE),
    "transformer_layers_per_block": _some(COUNT), "norm_num_groups": Either((WIDTH, Null())),
    "use_linear_projection": Flag(), "num_class_embeds": Either((WIDTH, Null())),
    "addition_embed_type": Either((Text(100), Null())), "addition_time_embed_dim": Either((WIDTH, Null())),
    "projection_class_embeddings_input_dim": Either((WIDTH, Null())),
})  # fmt: skip
VAE = Record({}, {
    "block_out_channels": ListOf(WIDTH, 1, 8), "layers_per_block": COUNT, "in_channels": COUNT, "out_channels": COUNT,
    "down_block_types": BLOCKS, "up_block_types": BLOCKS, "latent_channels": COUNT, "norm_num_groups": WIDTH,
    "sample_size": _some(SIDE), "scaling_factor": Number(1e-6, 1e6),
})  # fmt: skip
TEXT_ENCODER = Record({}, {
    "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": COUNT, "num_attention_heads": WIDTH,
    "vocab_size": Whole(1, 200_000), "max_position_embeddings": SIDE, "projection_dim": WIDTH,
})  # fmt: skip
SCHEDULER = Record({}, {
    "num_train_timesteps": Whole(1, 10_000), "beta_start": Number(0, 1), "beta_end": Number(0, 1),
    "beta_schedule": Text(100), "trained_betas": Either((ListOf(Number(0, 1), 1, 10_000), Null())),
    "prediction_type": Text(100), "steps_offset": Whole(0, 10_000), "timestep_spacing": Text(100),
    "variance_type": Text(100),
})  # fmt: skip
WORDS = TableOf(Whole(0, 2**31))
PLAIN_NAMES = Record({"weight_map": TableOf(Text(255, r"[\w-][\w.-]*"))})
SHAPES: dict[str, Shape] = {
    "unet/config.json": UNET, "vae/config.json": VAE, "text_encoder/config.json": TEXT_ENCODER,
    "scheduler/scheduler_config.json": SCHEDULER, "tokenizer/vocab.json": WORDS, "tokenizer/added_tokens.json": WORDS,
}  # fmt: skip


def check_files(part: Path, role: str, faults: Faults) -> None:
    """Check every file of a part's folder: regular, JSON in its shape, weights without code. Faults are collected.

    Args:
        role: unet, vae, text_encoder, scheduler or tokenizer, whatever the folder is called.
    """
    for file in sorted(part.iterdir()):
        if not file.is_dir():
            faults.attempt(_check_file, file, SHAPES.get(f"{role}/{file.name}"))


def _check_file(file: Path, shape: Shape | None) -> None:
    name = f"'{file}'"
    check_regular(file, name)
    if file.suffix == ".json":
        most = MOST_LIST if file.name in ("vocab.json", "tokenizer.json") else MOST_CONFIG
        content: Any = read_json(file, name, most, huge=True)
        index = PLAIN_NAMES if file.name.endswith(".index.json") else TableOf(Anything())
        check_shape(content, shape or index, name)
    elif file.name in ("merges.txt", "vocab.txt"):  # the tokenizer reads them whole
        read_text(file, name, MOST_LIST)
    elif file.suffix == ".safetensors":
        tensor_names(file)
    elif file.suffix in (".bin", ".pt", ".ckpt", ".pth"):
        check_pickle_file(file, name)
