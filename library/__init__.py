"""The suite's library: four rooms (data, diffusion, privacy, training), assembly and audit above, the ground below."""

import logging

# Imported by diffusers, it warns on every machine without a GPU about kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
