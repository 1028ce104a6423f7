"""After a training: this process becomes the audit of the LoRA that it has written."""

import os
import sys
from pathlib import Path

from library.assembly.run import Run
from library.plain_text import for_shell

SUITE = Path(__file__).parents[2]  # where the doors are
OF_SEVERAL = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by a launch


def then_audit(run: Run) -> int:
    """Audit the run's folder with ``configs/audit.toml``; its exit status is the process's.

    The process is replaced, so that the memory of the training is free and Ctrl-C reaches the audit. Of several
    processes the main one audits; the others return 0.
    """
    if not run.accelerator.is_main_process:
        return 0
    words = ["audit.py", "--config_file", "configs/audit.toml", str(run.folder.path.resolve())]
    run.say("", f"auditing: {for_shell(['python', *words])}")
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, str(SUITE / words[0]), words[1], str(SUITE / words[2]), words[3]]
    environment = {name: value for name, value in os.environ.items() if name not in OF_SEVERAL}
    os.execve(sys.executable, command, environment)
