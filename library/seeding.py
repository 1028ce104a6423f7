"""Streams of chance: a generator for one named purpose, made from a key, without a state to save."""

import hashlib
import hmac
from dataclasses import dataclass, field

import numpy as np
import torch

SEED_BYTES = 8  # of a stream; torch's CPU generator uses 4 of them
STATE_WORDS = 624  # of the Mersenne twister behind torch's CPU generator, 32 bits each
STATE_OFFSET, WORD_BYTES = 24, 8  # where torch's serialised state keeps the words, and the room that each takes
STATE_BYTES = 5056  # of the serialised state


@dataclass(frozen=True)
class StreamKey:
    """What the private draws of a run depend on: the split's secret, and the seed that tells apart runs on one split.

    Who lacks the secret can redraw nothing, whatever else is known: seed, options, pictures, code.
    """

    secret: bytes = field(repr=False)
    seed: int

    def derived(self, *purpose: str | int) -> bytes:
        """32 bytes for one purpose: HMAC-SHA256 under the secret; other purposes and seeds give unrelated bytes."""
        return keyed_digest(self.secret, self.seed, *purpose)

    def fingerprint(self, text: str) -> str:
        """A text's HMAC under the key, hex: recognises it again without telling anything of it or of the key."""
        return self.derived("fingerprint", text).hex()


def keyed_digest(secret: bytes, *words: str | int) -> bytes:
    """HMAC-SHA256 of the words under the secret, 32 bytes."""
    return hmac.digest(secret, _text(*words), "sha256")


def _text(*words: str | int) -> bytes:
    return "\x1f".join(str(word) for word in words).encode()


def stream_seed(key: int | str | StreamKey, *purpose: str | int) -> int:
    """A 63-bit number that depends on the key and on every word of the purpose.

    Args:
        key: a run's key; or a plain number or text where anybody may repeat the draw (an audit's resampling, say).
    """
    digest = key.derived(*purpose) if isinstance(key, StreamKey) else hashlib.sha256(_text(key, *purpose)).digest()
    return int.from_bytes(digest[:SEED_BYTES], "big") >> 1


def stream(key: int | str | StreamKey, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``stream(key, "noise", step)``: the same words give the same stream.

    Nothing is carried from one draw to the next, so a resumed run needs the step number alone to go on exactly. The
    generator has 32 bits of its own: for draws that are not published.
    """
    return torch.Generator().manual_seed(stream_seed(key, *purpose))


def numpy_stream(key: int | str | StreamKey, *purpose: str | int) -> np.random.Generator:
    """The same for numpy: a generator for one purpose."""
    return np.random.default_rng(stream_seed(key, *purpose))


def uniforms(key: StreamKey, count: int, *purpose: str | int) -> np.ndarray:
    """[count] numbers in [0, 1), 53 bits each, from SHAKE-256 under the key.

    For draws on which a proof of privacy rests; the generators of torch and numpy are predictable from their output.
    """
    raw = hashlib.shake_256(key.derived(*purpose)).digest(8 * count)
    return (np.frombuffer(raw, dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normals(key: StreamKey, count: int, *purpose: str | int) -> np.ndarray:
    """[count] standard normal numbers from ``uniforms`` (Box and Muller, 1958), at most 8.6 in size."""
    pairs = (count + 1) // 2
    both = uniforms(key, 2 * pairs, *purpose)
    radius, angle = np.sqrt(-2 * np.log1p(-both[:pairs])), 2 * np.pi * both[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def permutation(count: int, key: int | StreamKey, *purpose: str | int) -> list[int]:
    """The numbers 0 .. count - 1 in an order drawn from the stream."""
    return torch.randperm(count, generator=stream(key, *purpose)).tolist()


def seed_modules(key: StreamKey, step: int, rank: int = 0) -> None:
    """Seed torch's own global generators for one step: dropout and third-party modules draw from them."""
    torch.manual_seed(stream_seed(key, "modules", step, rank))


def seed_published(key: StreamKey, *purpose: str | int) -> None:
    """Give torch's global CPU generator a whole state from the key, for draws that are published.

    The start of a LoRA's down factors can still be recognised in the finished file. ``manual_seed`` keeps 32 bits, so
    all its starts can be tried; here all 624 words of the state come from the key (SHAKE-256), and a network module
    of any make draws from it.

    Raises:
        RuntimeError: a torch whose generator keeps its state in another form.
    """
    torch.manual_seed(stream_seed(key, *purpose))  # for the other devices' generators
    state = torch.get_rng_state()
    if state.numel() != STATE_BYTES:
        raise RuntimeError(f"torch {torch.__version__} keeps {state.numel()} bytes of random state, not {STATE_BYTES}")
    words = hashlib.shake_256(key.derived(*purpose)).digest(4 * STATE_WORDS)
    slots = state[STATE_OFFSET : STATE_OFFSET + WORD_BYTES * STATE_WORDS].view(STATE_WORDS, WORD_BYTES)
    slots[:, :4] = torch.frombuffer(bytearray(words), dtype=torch.uint8).view(STATE_WORDS, 4)
    slots[:, 4:] = 0
    torch.set_rng_state(state)
