"""Fixed secrets for the tests, so that their splits and streams can be repeated."""

from pathlib import Path

from library.seeding import StreamKey, keyed_digest


def secret_of(number: int) -> bytes:
    """A secret that a test may know."""
    return keyed_digest(b"tests", number)


def key_of(number: int) -> StreamKey:
    """A key that a test may know."""
    return StreamKey(secret_of(number), number)


def write_secret(folder: Path, number: int = 7) -> Path:
    """A file for --split_secret_file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "secret.hex"
    file.touch(mode=0o600)
    file.write_text(f"{secret_of(number).hex()}\n")
    return file
