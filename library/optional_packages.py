"""Packages that frameworks import when they are installed, and that often are installed broken."""

import importlib
import importlib.util
import logging
import sys

logger = logging.getLogger(__name__)


def hide_broken(*names: str) -> None:
    """Make packages that are installed but cannot be imported look absent, and say so.

    diffusers imports bitsandbytes and xformers wherever it finds them, and fails with them: a build for another CUDA
    or another torch would then stop runs that need neither. Must be called before diffusers is imported.
    """
    for name in names:
        if name in sys.modules or importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            sys.modules[name] = None  # type: ignore[assignment]  # what Python itself takes for "not there"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            logger.warning("%s is installed and cannot be imported (%s); the run goes on without it", name, reason)
