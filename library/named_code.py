"""Code that a config names: which modules may be imported for it, and from where."""

import importlib.util
import logging
import os
import site
import sysconfig
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from library.errors import InputError

logger = logging.getLogger(__name__)

# What the suite itself supports by name. These alone are imported in --dry_run.
LISTED = (
    "networks.lora", "lycoris.kohya", "torch.optim", "torch.optim.lr_scheduler", "torch.optim.swa_utils",
    "transformers.optimization", "diffusers.optimization", "bitsandbytes.optim", "lion_pytorch", "dadaptation",
    "dadaptation.experimental", "prodigyopt", "schedulefree",
)  # fmt: skip
OWN = ("networks.lora",)  # of the suite, whose place is the folder it was unpacked into


class NotImportedError(InputError):
    """Nothing was run: the module is not there, or it is not one that a config may name."""


@dataclass(frozen=True)
class Wanted:
    """A module and what named it."""

    option: str
    value: str  # as it stands in the config
    module: str
    dry_run: bool

    def is_listed(self) -> bool:
        """Whether the suite knows the module by name."""
        return self.module in LISTED


def installed_places() -> list[Path]:
    """Where pip and the system put packages for this interpreter; sys.path, PYTHONPATH and .pth files do not count."""
    places: list[str] = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    places += [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [Path(place) for place in dict.fromkeys(places)]


def imported(wanted: Wanted) -> ModuleType | None:
    """The module, once it is sure that it comes from an installed package; None where --dry_run leaves it alone.

    Nothing is run to find out: a top-level name is looked up without an import, and each further part only after the
    one before it has passed.

    Raises:
        NotImportedError: no such module; one that lies elsewhere, with its place.
        ImportError, RuntimeError, OSError, ValueError: what the module itself raises while it is imported.
    """
    if wanted.module in OWN:
        return import_module(wanted.module)
    parts = wanted.module.split(".")
    if not all(part.isidentifier() for part in parts):
        raise NotImportedError(f"{wanted.option} '{wanted.value}' is no name of a module")
    _check_place(wanted, parts[0])
    if wanted.dry_run and not wanted.is_listed():
        logger.warning(
            "%s '%s' is not imported in --dry_run: %s is installed and not among the modules that the suite knows; "
            "what it takes is checked when training starts",
            wanted.option,
            wanted.value,
            parts[0],
        )
        return None
    for count in range(1, len(parts)):
        import_module(".".join(parts[:count]))
        _check_place(wanted, ".".join(parts[: count + 1]))
    return import_module(wanted.module)


def _check_place(wanted: Wanted, name: str) -> None:
    """Raises: NotImportedError unless the module's file lies among the installed packages."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError) as error:  # stubs without a spec; a parent that is no package
        raise NotImportedError(f"{wanted.option} '{wanted.value}': {name} cannot be found ({error})") from error
    if spec is None:
        raise NotImportedError(
            f"{wanted.option} '{wanted.value}': no module {name} is installed here; use {_known_names(wanted.option)}"
        )
    place = _place_of(spec)
    if place is not None and _is_installed(place):
        return
    if place is None and spec.submodule_search_locations is None:
        where = "is part of Python itself"
    elif place is None:
        folders = ", ".join(f"'{folder}'" for folder in list(spec.submodule_search_locations or [])[:3])
        where = f"is a bare folder without a package in it: {folders}"
    else:
        where = f"lies in '{place}'"
    raise NotImportedError(
        f"{wanted.option} '{wanted.value}' is not imported: the module {name} {where}, and a config may name installed "
        "packages alone, since an import runs code; install it with pip (not with -e) if you trust it, or use "
        f"{_known_names(wanted.option)}"
    )


def _is_installed(file: Path) -> bool:
    """Whether a file lies among the installed packages, as it is named and with its links followed."""
    places = installed_places()
    found = [folder for folder in places if file.is_relative_to(folder) or file.is_relative_to(folder.resolve())]
    return bool(found) and any(file.resolve().is_relative_to(folder.resolve()) for folder in places)


def _place_of(spec: ModuleSpec) -> Path | None:
    """The file that an import would run; None for what has no file."""
    if not spec.has_location or spec.origin is None:
        return None
    return Path(os.path.abspath(spec.origin))


def _known_names(option: str) -> str:
    return {"network_module": "networks.lora or lycoris.kohya", "optimizer_type": '"AdamW"'}.get(option, '"constant"')
