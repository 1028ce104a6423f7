"""From captions to the text states of the UNet: tokens in pieces of 75 with weights, clip skip, joined states."""

import re
from typing import Any

import torch
from torch import Tensor

PIECE = 75  # prompt tokens per piece; with start and end token 77 positions
UP, DOWN = 1.1, 1 / 1.1  # a pair of round, of square brackets
MARKS = re.compile(r"\\([\\()\[\]])|([(\[\])])|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|.", re.DOTALL)


def read_captions(
    tokenizer: Any, captions: list[str], max_token_length: int, *, weighted: bool
) -> tuple[Tensor, Tensor | None]:
    """Token ids of captions, [B, pieces, 77], and the weight of each position where brackets are weights, else None.

    Args:
        tokenizer: of two (SDXL) the ids are [B, 2, pieces, 77]; their word lists are one, so the weights are too.
        max_token_length: 75, 150 or 225; longer captions are cut.
        weighted: captions are in A1111's syntax; else brackets are plain text.
    """
    if isinstance(tokenizer, list):
        each = [read_captions(one, captions, max_token_length, weighted=weighted) for one in tokenizer]
        return torch.stack([ids for ids, _ in each], dim=1), each[0][1]
    if weighted:
        return tokenize_weighted(tokenizer, captions, max_token_length)
    return tokenize(tokenizer, captions, max_token_length), None


def token_counts(tokenizer: Any, captions: list[str], *, weighted: bool) -> list[int]:
    """Prompt tokens of each caption before it is cut, without start and end."""
    if not weighted:
        ids = tokenizer(captions, add_special_tokens=False, truncation=False, verbose=False).input_ids
        return [len(row) for row in ids]
    return [
        sum(token_counts(tokenizer, [text for text, _ in parse_weights(caption)], weighted=False)) if caption else 0
        for caption in captions
    ]


def tokenize(tokenizer: Any, captions: list[str], max_token_length: int) -> Tensor:
    """Token ids of captions, [B, pieces, 77].

    Each piece of 75 has its own start and end token; longer captions are cut at ``max_token_length`` (75, 150 or 225).
    """
    ids = tokenizer(captions, add_special_tokens=False, truncation=False, verbose=False).input_ids
    return torch.tensor([_in_pieces(tokenizer, row, max_token_length) for row in ids])


def tokenize_weighted(tokenizer: Any, captions: list[str], max_token_length: int) -> tuple[Tensor, Tensor]:
    """Token ids of captions in A1111's syntax, [B, pieces, 77], and the weight of each position, the same shape.

    Stretches of one weight are tokenised separately; start, end and padding have weight 1.
    """
    ids: list[list[list[int]]] = []
    weights: list[list[list[float]]] = []
    for caption in captions:
        row: list[int] = []
        row_weights: list[float] = []
        for text, weight in parse_weights(caption):
            part = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
            row += part
            row_weights += [weight] * len(part)
        ids.append(_in_pieces(tokenizer, row, max_token_length))
        kept = row_weights[:max_token_length] + [1.0] * (max_token_length - len(row_weights))
        weights.append([[1.0, *kept[start : start + PIECE], 1.0] for start in range(0, max_token_length, PIECE)])
    return torch.tensor(ids), torch.tensor(weights)


def parse_weights(caption: str) -> list[tuple[str, float]]:
    """A caption in A1111's syntax as stretches of (plain text, weight).

    ``(x)`` multiplies the weight of x by 1.1, ``[x]`` by 1 / 1.1, ``(x:1.3)`` by 1.3. Brackets nest; after a backslash
    a bracket is plain text. An opening bracket without its partner reaches to the end, a closing one is plain text.
    """
    stretches: list[tuple[str, float]] = []
    open_marks: list[tuple[str, int]] = []  # bracket, and the stretch that it starts at

    def scale(start: int, factor: float) -> None:
        stretches[start:] = [(text, weight * factor) for text, weight in stretches[start:]]

    for match in MARKS.finditer(caption):
        escaped, bracket, number = match.groups()
        innermost = open_marks[-1][0] if open_marks else ""
        if escaped:
            stretches.append((escaped, 1.0))
        elif bracket in ("(", "["):
            open_marks.append((bracket, len(stretches)))
        elif number and innermost == "(":
            scale(open_marks.pop()[1], float(number))
        elif (bracket == ")" and innermost == "(") or (bracket == "]" and innermost == "["):
            scale(open_marks.pop()[1], UP if bracket == ")" else DOWN)
        else:
            stretches.append((match[0], 1.0))
    for bracket, start in open_marks:
        scale(start, UP if bracket == "(" else DOWN)
    merged: list[tuple[str, float]] = []
    for text, weight in stretches:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        else:
            merged.append((text, weight))
    return merged


def _in_pieces(tokenizer: Any, ids: list[int], max_token_length: int) -> list[list[int]]:
    """Token ids of one caption cut into padded pieces of 77 positions."""
    row: list[list[int]] = []
    for start in range(0, max_token_length, PIECE):
        part = ids[:max_token_length][start : start + PIECE]
        padding = [tokenizer.pad_token_id] * (PIECE - len(part))
        row.append([tokenizer.bos_token_id, *part, tokenizer.eos_token_id, *padding])
    return row


def encode_text(text_encoder: Any, tokens: Tensor, clip_skip: int, token_weights: Tensor | None = None) -> Tensor:
    """Hidden states for cross-attention, [B, 75 * pieces + 2, D].

    Args:
        tokens: [B, pieces, 77].
        clip_skip: n selects the n-th hidden state from the end, before the final layer norm; 1 is the usual output.
        token_weights: [B, pieces, 77], factors of the hidden states, not renormalised; None = all 1.
    """
    batch, pieces, length = tokens.shape
    output = text_encoder(tokens.reshape(batch * pieces, length), output_hidden_states=True)
    inner = getattr(text_encoder, "text_model", text_encoder)  # transformers below 5.6 nests the model once more
    hidden = inner.final_layer_norm(output.hidden_states[-clip_skip])  # [B * pieces, 77, D]
    return joined_pieces(hidden, (batch, pieces), token_weights)


def joined_pieces(hidden: Tensor, shape: tuple[int, int], token_weights: Tensor | None) -> Tensor:
    """States of whole captions [B, 75 * pieces + 2, D] from those of their pieces [B * pieces, 77, D].

    Args:
        shape: (B, pieces).
        token_weights: [B, pieces, 77], factors of the states; None = all 1.
    """
    if token_weights is not None:
        hidden = hidden * token_weights.reshape(len(hidden), -1, 1).to(hidden)
    if shape[1] == 1:
        return hidden
    hidden = hidden.reshape(*shape, *hidden.shape[1:])
    middle = [hidden[:, piece, 1:-1] for piece in range(shape[1])]
    return torch.cat([hidden[:, 0, :1], *middle, hidden[:, -1, -1:]], dim=1)
