"""From captions to what the UNet attends to: tokens in pieces of 75, clip skip, joined hidden states."""

from typing import Any

import torch
from torch import Tensor

PIECE = 75  # prompt tokens per piece; with start and end token 77 positions


def tokenize(tokenizer: Any, captions: list[str], max_token_length: int) -> Tensor:
    """Token ids of captions, [B, pieces, 77].

    Each piece of 75 gets its own start and end token; what is longer than ``max_token_length`` (75, 150 or 225) is cut.
    """
    pieces = max_token_length // PIECE
    rows: list[list[list[int]]] = []
    for ids in tokenizer(captions, add_special_tokens=False, truncation=False, verbose=False).input_ids:
        kept = ids[: pieces * PIECE]
        row: list[list[int]] = []
        for start in range(0, pieces * PIECE, PIECE):
            part = kept[start : start + PIECE]
            padding = [tokenizer.pad_token_id] * (PIECE - len(part))
            row.append([tokenizer.bos_token_id, *part, tokenizer.eos_token_id, *padding])
        rows.append(row)
    return torch.tensor(rows)


def encode_text(text_encoder: Any, tokens: Tensor, clip_skip: int) -> Tensor:
    """Hidden states for cross-attention, [B, 75 * pieces + 2, D].

    Args:
        tokens: [B, pieces, 77].
        clip_skip: n takes the n-th hidden state from the end, then the final layer norm; 1 is the usual output.
    """
    batch, pieces, length = tokens.shape
    output = text_encoder(tokens.reshape(batch * pieces, length), output_hidden_states=True)
    inner = getattr(text_encoder, "text_model", text_encoder)  # transformers below 5.6 nests the model once more
    hidden = inner.final_layer_norm(output.hidden_states[-clip_skip])  # [B * pieces, 77, D]
    if pieces == 1:
        return hidden
    hidden = hidden.reshape(batch, pieces, length, -1)
    middle = [hidden[:, piece, 1:-1] for piece in range(pieces)]
    return torch.cat([hidden[:, 0, :1], *middle, hidden[:, -1, -1:]], dim=1)
