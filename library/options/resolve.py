"""From a TOML file and flags to one Config, and the faults that were found on the way, with file and line."""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from library.errors import Faults
from library.options.declarations import Config, fields_of
from library.options.help_text import help_text
from library.options.joint_checks import check_together
from library.options.known_keys import check_sdxl, known_keys
from library.options.kohya import REFUSED, WITHOUT_EFFECT
from library.options.notices import Notices
from library.options.settled import settled
from library.options.sources import Given, read_file, read_flags
from library.options.values import TYPES, leaves_unset, typed_values
from library.plain_text import plain
from library.prompt_exit import run as run  # the doors say resolve.run

# A flag of the first leaves out the file's own second one, since both together would contradict each other.
GIVES_WAY = {
    "max_train_steps": "max_train_epochs",
    "dp_target_epsilon": "dp_noise_multiplier",
    "dp_noise_multiplier": "dp_target_epsilon",
}


def tell(text: str) -> None:
    """Print one line on the terminal."""
    print(plain(text))


@dataclass(frozen=True)
class ReadOptions:
    """The options of one door as they were read, before anything that they name is opened."""

    door: str
    config: Config  # an option that cannot be used has its default
    origins: Mapping[str, str]  # file and line, or command line, of each given option
    faults: Faults

    def checked(self) -> Config:
        """The config. Raises: InputError with every fault."""
        self.faults.raise_if_any()
        return self.config


def read_config(door: str, arguments: Sequence[str], notice: Callable[[str], None] = tell) -> Config:
    """The options of one door, with no fault in them.

    Raises:
        InputError: all unknown, refused, misplaced, mistyped and out-of-bounds options in one message.
        SystemExit: after ``--help``.
    """
    return read_options(door, arguments, notice).checked()


def read_options(door: str, arguments: Sequence[str], notice: Callable[[str], None] = tell) -> ReadOptions:
    """Resolve the options of one door: defaults, then ``--config_file``, then flags; faults are collected.

    Args:
        door: name of the script without ending, e.g. "SPLoRA".
        arguments: the command line without the program's name.
        notice: called with a line about each option that has no effect.

    Raises:
        InputError: a config_file that cannot be read, or of another kind.
        SystemExit: after ``--help``.
    """
    faults = Faults()
    if "--help" in arguments or "-h" in arguments:
        try:
            print(help_text(door), flush=True)
        except BrokenPipeError:  # "| head" has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0)
    notices = Notices(notice)
    both = collect_options(door, arguments, faults, notices)
    values = typed_values(both, faults)
    config = settled(door, dataclasses.replace(Config(), **values), both, notices)
    notices.finish()
    origins = {name: entry.origin for name, entry in both.items()}
    check_together(door, config, origins, faults)
    return ReadOptions(door, config, origins, faults)


def collect_options(door: str, arguments: Sequence[str], faults: Faults, notices: Notices) -> dict[str, Given]:
    """The given options by the names of ``Config``: flags override the file, kohya's old names are resolved.

    Raises:
        InputError: a file that cannot be read; a config of another kind, in one sentence (dataset file, another
            family than the base model's).
    """
    switches = [name for name in fields_of(door) if TYPES[name] is bool] + [*WITHOUT_EFFECT, *REFUSED]
    lists = [name for name in TYPES if TYPES[name] == list[str]] + ["text_encoder_lr"]
    flags, config_file = read_flags(arguments, switches=switches, lists=lists, faults=faults)
    written = read_file(config_file, faults, notices.tell) if config_file else {}
    check_sdxl((written or {}) | flags)
    file = known_keys(door, written or {}, faults, notices)
    known = known_keys(door, flags, faults, notices)
    if written is None:
        faults.raise_if_any()
    for name, other in GIVES_WAY.items():
        flag = known.get(name)
        if flag is not None and not leaves_unset(name, flag) and other not in known and other in file:
            left_out = file.pop(other)
            if name.startswith("dp_"):  # what a guarantee rests on is never left out in silence
                notices.tell(f"{other} {left_out.value} ({left_out.origin}) gives way to --{name} {flag.value}")
    return file | known


def given_options(door: str, arguments: Sequence[str]) -> list[str]:
    """Names of the options that the file or the flags set, after ``read_config`` found no fault in them."""
    return list(collect_options(door, arguments, Faults(), Notices(lambda text: None)))


def typed_settings(settings: Mapping[str, Any], file: str) -> dict[str, Any]:
    """What a run's config.toml says, in the declared types and bounds; keys that are no options are left out.

    Raises:
        InputError: every value that its option does not take.
    """
    faults = Faults()
    given = {name: Given(value, file) for name, value in settings.items() if name in TYPES}
    typed = typed_values(given, faults)
    faults.raise_if_any()
    sealed = settings.get("split_hash")  # a fact beside the options, by which the audit knows the run's split
    return typed if not isinstance(sealed, str) else {**typed, "split_hash": sealed}


def recipe_of(door: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options that another training needs to repeat a run's recipe: no output, preview, audit or seed.

    Args:
        settings: options of the run by name; unknown names are ignored.
    """
    apart = ("saving", "previews", "audit", "run")
    return {
        name: settings[name]
        for name, field in fields_of(door).items()
        if name in settings
        and (field.metadata["section"] not in apart or name == "save_precision")
        and name not in ("seed", "split_file", "split_secret_file")
    }


VALIDATION = ("attack_eval_draws", "aux_loss_every_n_epochs", "aux_loss_every_n_steps")


def weight_options(door: str, config: Config) -> dict[str, Any]:
    """The options that shape the weights; ``--resume`` compares them."""
    names = [name for name, field in fields_of(door).items() if field.metadata["shapes_weights"]]
    if config.target_auc is not None or config.gain_starts != "at_once":
        names += VALIDATION  # then what a validation pass finds decides how the run goes on
    return {name: getattr(config, name) for name in names}
