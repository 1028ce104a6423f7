"""A state on disk: what its state.json holds, whether it is whole, and which whole states lie near another one."""

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from library.errors import InputError, shortened
from library.incoming import files
from library.incoming.shapes import Anything, Flag, ListOf, Number, Record, Shape, TableOf, Text, Whole, check_shape
from library.incoming.texts import read_json
from library.plain_text import for_shell

NAME = "state.json"
ALWAYS = ("lora.safetensors", "proxy.safetensors", "optimizers.pt")  # in every state
MOST_OFFERED = 5
logger = logging.getLogger(__name__)
HEX = Text(pattern="[0-9a-f]{1,128}")
CHECK = Record({"epoch": Whole(), "balanced_accuracy": Number(0, 1), "members": Whole(1), "non_members": Whole(1)})
NUMBERS = ("learnt", "learnt_low", "learnt_high", "by_heart", "auc", "low", "high")
GAP = Record(
    dict.fromkeys(NUMBERS, Number())
    | {"done": Whole(), "members": Whole(1), "non_members": Whole(1), "is_first": Flag()}
)
CONTENT: Shape = Record(
    {"format": Whole(2, 2), "done": Whole(), "options": TableOf(Anything()), "checks": ListOf(CHECK)},
    {
        "gaps": ListOf(GAP),
        "spending": Record({"noise_multiplier": Number(0), "sampling_rate": Number(0, 1), "delta": Number(0, 1)}),
        "threads": Whole(1),
        "version": Text(100),
        "files": TableOf(HEX, key=Text(255, r"\w[\w.-]*")),
        "checksum": HEX,
    },
)
FORMAT = 2  # 1: the random streams depended only on the seed


def read_state(place: str | None) -> dict[str, Any]:
    """The progress of a state and the options of its training; without a state the progress of a fresh run.

    Raises:
        InputError: the folder is not a state of this version.
    """
    if place is None:
        return {"done": 0, "checks": [], "gaps": []}
    path = Path(place)
    try:
        content = read_json(path / NAME, f"'{path / NAME}'", finite=False)
        if isinstance(content, dict) and content.get("format") == 1:
            raise InputError(
                f"--resume '{path}' is a state of an earlier version, whose random draws depended only on the "
                "seed, and cannot be continued. Train again: a LoRA of that version reveals its members "
                "(docs/threat_model.md)"
            )
        check_shape(content, CONTENT, NAME)
    except InputError as error:
        if "earlier version" in str(error):
            raise
        raise InputError(
            f"--resume '{path}' is not a state folder of this suite ({error.messages[0]}); {whole_states(path)}"
        ) from error
    check_files(path, content)
    return content


def whole_states(path: Path) -> str:
    """The whole states in a folder, in its state/, beside it and in the folder above it, as options to type.

    The newest come first; the place itself is left out. Half states, and damaged ones, are not offered.
    """
    times: dict[str, int] = {}
    for place in (path, path / "state", path.parent, path.parent / "state"):
        with suppress(OSError, ValueError):
            for name in os.listdir(place):
                with suppress(OSError, ValueError):
                    times[os.path.realpath(place / name)] = os.stat(place / name / NAME).st_mtime_ns
    newest = sorted(set(times) - {os.path.realpath(path)}, key=lambda state: times[state], reverse=True)
    whole = list(itertools.islice((state for state in newest if _is_whole(Path(state))), MOST_OFFERED))
    if not whole:
        return "no whole state lies in it or near it; give e.g. --resume OUTPUT_DIR/state/last-step00000050-state"
    offered = ", ".join(for_shell(["--resume", state]) for state in whole)
    return f"whole states near it, the newest first: {offered}"


def _is_whole(path: Path) -> bool:
    """Whether a state of this version has all its files, undamaged as far as their checksums say."""
    if path.name.startswith("."):  # left by a kill
        return False
    try:
        content = read_json(path / NAME, f"'{path / NAME}'", finite=False)
        check_shape(content, CONTENT, NAME)
        return not _damaged(path, content)
    except (InputError, OSError):
        return False


def file_hash(file: Path) -> str:
    """SHA-256 (hex) of a file."""
    return files.file_hash(file, f"'{file}'")


def content_hash(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what a state.json says, but for this number."""
    rest = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def check_files(path: Path, content: Mapping[str, Any]) -> None:
    """Compare a state's files with the checksums in its state.json; states of earlier versions have none.

    Raises:
        InputError: the files that are missing or damaged.
    """
    if damaged := _damaged(path, content):
        raise InputError(
            f"--resume '{path}': {shortened(damaged)} differ from what was saved (damaged, changed or missing); "
            f"{whole_states(path)}"
        )
    if not _has_checksums(content):
        logger.warning("'%s' is a state of an earlier version, without checksums; damage would not be found", path)


def _damaged(path: Path, content: Mapping[str, Any]) -> list[str]:
    """Names of a state's files that are not what was saved."""
    if not _has_checksums(content):
        return [name for name in ALWAYS if not files.is_file(path / name)]
    if content.get("checksum") != content_hash(content):
        return [NAME]
    wanted = {**dict.fromkeys(ALWAYS, ""), **(content.get("files") or {})}
    return [
        name
        for name, hash in sorted(wanted.items())
        if not files.is_file(path / name) or file_hash(path / name) != hash
    ]


def _has_checksums(content: Mapping[str, Any]) -> bool:
    return "files" in content or "checksum" in content
