"""What an earlier run left in an output folder: told from a person's own files, removed, and swept after a kill."""

import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from library.errors import Faults, InputError
from library.file_table import AUDIT_DIR, CONFIG_HEADER, OUTPUT_DIR
from library.incoming.files import read_text
from library.incoming.texts import parse_toml, read_json
from library.leftovers import TEMPORARY, sweep
from library.tensor_files import read_tensors, remove_folder
from library.training.output_folder import OutputFolder

NUMBER = r"(-\d{6}|-step\d{8})?"  # of a LoRA file
AUDIT = re.compile(r"audit(\.old-\d+)?(?=/|$)")  # audits that were set aside lie as they were
WRITTEN = ("config.toml", "split.json", "log.jsonl", "proxy.safetensors")  # by every run, with the final LoRA
logger = logging.getLogger(__name__)


def check_earlier(folder: OutputFolder, *, overwrite: bool, resume: bool) -> None:
    """Look before the run whether it would replace, follow or remove anything that no run of this suite wrote.

    Args:
        resume: the folder holds the run that goes on; its config.toml may still have become another file.

    Raises:
        InputError: every such file and link.
    """
    faults = Faults()
    run = EarlierRun(folder)
    if overwrite:
        faults.attempt(run.files)
    for path in run.written():
        if path.is_symlink():
            faults.add(_link(path))
        elif os.path.lexists(path) and not run.owns(path) and (path == folder.config() or not resume):
            faults.add(
                f"'{path}' was not written by a run of this suite, and this run would replace it; move it, or give "
                "another --output_dir"
            )
    faults.raise_if_any()


def make_folder(folder: OutputFolder, *, clear: bool) -> None:
    """Make the folder, sweep it, and rename earlier audits; ``clear`` removes an earlier run first."""
    folder.path.mkdir(parents=True, exist_ok=True)
    places = ("", "sample", "state", folder.teachers().relative_to(folder.path).as_posix())
    sweep(folder.path, OUTPUT_DIR, within=places, age=0)  # the folder's lock is held
    if clear:
        clear_earlier(folder)
    set_audits_aside(folder)


def set_audits_aside(folder: OutputFolder) -> None:
    """Rename the audits of a LoRA that this run will replace: their answers do not apply to the new file."""
    for audit in (folder.path / "audit", folder.path / f"{folder.output_name}-audit"):
        if audit.is_symlink() or not audit.is_dir():
            continue
        if not any(AUDIT_DIR.rows_of(path.name, path.is_dir()) for path in audit.iterdir()):
            continue  # a folder of the person's own
        number = 1
        while (aside := audit.with_name(f"{audit.name}.old-{number}")).exists():
            number += 1
        audit.rename(aside)
        logger.warning("'%s' belongs to the LoRA before this run; it is now '%s'", audit, aside)


def clear_earlier(folder: OutputFolder) -> None:
    """Remove the files of an earlier run, so that none is mistaken for the new run's; all other files stay.

    Raises:
        InputError: a link among them; nothing is removed then.
    """
    found = EarlierRun(folder).files()
    for path in found:
        if path.parent.name == "state" and path.is_dir() and set(path.iterdir()) <= set(found):
            remove_folder(path)  # as a whole: a kill leaves no half state
    for path in found:
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # holds other files
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


class EarlierRun:
    """The run that wrote into an output folder before, known by the head of its config.toml or its split's secret."""

    def __init__(self, folder: OutputFolder) -> None:
        self.folder = folder
        self.config = _own_config(folder.config())
        self.is_there = self.config is not None or _has_secret(folder.split())
        names = {folder.output_name, str((self.config or {}).get("output_name", folder.output_name))}
        name = "|".join(map(re.escape, sorted(names)))
        self._lora = re.compile(rf"({name}){NUMBER}\.safetensors")
        self._preview = re.compile(rf"sample/({name})_.+\.png")

    def written(self) -> list[Path]:
        """The files that the next run writes in any case."""
        return [self.folder.lora(), *(self.folder.path / name for name in WRITTEN)]

    def owns(self, path: Path) -> bool:
        """Whether the earlier run wrote this file or folder: never a link, nor a config.toml of the person's own."""
        name, is_folder = self._name(path), path.is_dir()
        if name == "config.toml":
            return self.config is not None
        if self._lora.fullmatch(name):
            return self.is_there or _states_privacy(path)
        if not self.is_there or name == "run.lock":  # the lock is this run's
            return False
        if name == "wandb" or name.startswith("wandb/"):
            return (self.config or {}).get("log_with") in ("wandb", "all")
        if re.fullmatch(r"[^/]+\.safetensors", name):
            return name == "proxy.safetensors"
        if name.startswith("sample/"):
            return self._preview.fullmatch(name) is not None
        return bool(OUTPUT_DIR.rows_of(name, is_folder))

    def _name(self, path: Path) -> str:
        """The path inside the folder as the table of files has it."""
        match = TEMPORARY.fullmatch(path.name)
        whole = path.with_name(match["name"]) if match and match["name"] else path
        return AUDIT.sub("audit", whole.relative_to(self.folder.path).as_posix(), count=1)

    def files(self) -> list[Path]:
        """What it wrote, the inside of a folder before the folder, and config.toml last.

        Raises:
            InputError: links among it, or the output folder itself is one.
        """
        found, faults = [], Faults()
        for path in self._walk(self.folder.path):
            if path.is_symlink() and not self._name(path).startswith("wandb/"):  # wandb links to its latest run
                if self._looks_written(path):
                    faults.add(_link(path))
            elif self.owns(path):
                found.append(path)
        if found and self.folder.path.is_symlink():
            faults.add(
                f"output_dir '{self.folder.path}' is a link, and --overwrite removes files only from a folder that is "
                f"named itself: --output_dir '{self.folder.path.resolve()}'"
            )
        faults.raise_if_any()
        return sorted(found, key=lambda path: path == self.folder.config())  # a kill before leaves it recognisable

    def _looks_written(self, path: Path) -> bool:
        """Whether a link stands where the earlier run wrote a file or folder."""
        return self.is_there and any(OUTPUT_DIR.rows_of(self._name(path), is_folder) for is_folder in (True, False))

    def _walk(self, place: Path) -> Iterator[Path]:
        """Everything below, depth first; no link is followed."""
        for path in sorted(place.iterdir()) if place.is_dir() else []:
            if stat.S_ISDIR(path.lstat().st_mode) and self.owns(path):
                yield from self._walk(path)
            yield path


def _link(path: Path) -> str:
    return f"'{path}' is a link, and no link is followed or replaced; remove it, or give another --output_dir"


def _own_config(file: Path) -> dict[str, Any] | None:
    """The options in a config.toml that a run of this suite wrote, without sections; None for any other file."""
    if file.is_symlink() or not file.is_file():
        return None
    try:
        text = read_text(file, f"'{file}'")
        if not text.startswith(CONFIG_HEADER):
            return None
        tables = parse_toml(text, f"'{file}'")
    except InputError:
        return None
    return {name: value for table in tables.values() if isinstance(table, dict) for name, value in table.items()}


def _has_secret(file: Path) -> bool:
    """Whether a split.json was drawn by this suite; one that was written by hand for an audit has no secret."""
    if file.is_symlink() or not file.is_file():
        return False
    try:
        content = read_json(file, f"'{file}'")
    except InputError:
        return False
    return isinstance(content, dict) and isinstance(content.get("secret"), str)


def _states_privacy(file: Path) -> bool:
    """Whether a LoRA file says of itself that this suite trained it."""
    try:
        return "ss_privacy_method" in read_tensors(file)[1]
    except (InputError, OSError, ValueError):
        return False
