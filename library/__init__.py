"""The suite's library: assembly and options above audit, audit above four rooms (data, diffusion, privacy, training),
lora_files and the ground below them."""

import logging

__version__ = "0.1.0"  # as in pyproject.toml and CITATION.cff

# Imported by diffusers, it warns on every machine without a GPU about kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
