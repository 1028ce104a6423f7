"""Streams of chance: a generator for one named purpose, made from the one seed, without a state to save."""

import hashlib

import torch


def stream_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit number that depends on the seed and on every word of the purpose."""
    text = "\x1f".join([str(seed), *(str(word) for word in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``stream(seed, "noise", step)``: the same words give the same stream.

    Nothing is carried from one draw to the next, so a resumed run needs the step number alone to go on exactly.
    """
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))


def permutation(count: int, seed: int, *purpose: str | int) -> list[int]:
    """The numbers 0 .. count - 1 in an order drawn from the stream."""
    return torch.randperm(count, generator=stream(seed, *purpose)).tolist()


def seed_modules(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch's own global generators for one step: dropout and third-party modules draw from them."""
    torch.manual_seed(stream_seed(seed, "modules", step, rank))
