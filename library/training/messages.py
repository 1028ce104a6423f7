"""Messages on the terminal: the library's log messages, and how to continue at the end."""

import logging
import sys
from pathlib import Path

from library.lora_files.format import kinds_in
from library.plain_text import PlainFormatter, for_shell, plain, plain_lines
from library.training.output_folder import OutputFolder


def show_library_messages(*, wanted: bool, level: str) -> None:
    """Send the library's log messages to the terminal (never to a file) and silence those of the frameworks.

    Args:
        wanted: False for processes other than the main one.
        level: lowest level that is shown, "DEBUG" to "CRITICAL".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logger = logging.getLogger("library")
    logger.handlers = [handler]
    logger.setLevel(level if wanted else logging.ERROR)
    for name in ("transformers", "diffusers", "accelerate", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)


def split_summary(sizes: dict[str, int], inclusion: str) -> str:
    """Images per side in one line."""
    return f"split ({inclusion}): " + ", ".join(f"{count} {side}" for side, count in sizes.items())


def finished_before(folder: OutputFolder, done: int, total: int) -> str:
    """What is said where ``--resume`` finds a run without steps left."""
    lora = folder.lora()
    where = f"\nLoRA: {lora.resolve()}" if lora.is_file() else ""
    return (
        f"this run is finished: {done} of {total} steps are done. Nothing was trained and no file was changed.\n"
        f"To train longer, raise max_train_epochs or max_train_steps beside --resume.{plain_lines(where)}"
    )


def how_to_watch(tensorboard: str) -> str:
    """The command that shows a run's curves."""
    return f"curves: {for_shell(['tensorboard', '--logdir', tensorboard])}"


def how_to_use(folder: OutputFolder, sheet: Path | None) -> str:
    """Where the LoRA is and how to load it."""
    lora = folder.lora().resolve()
    kinds = kinds_in(lora)
    lines = [
        *([f"previews, base model against LoRA: {sheet}"] if sheet else []),
        f"loss and attacker over the run: {folder.curve()}",
        f"LoRA: {lora}",
        f"  A1111 / Forge: copy it to models/Lora, write <lora:{folder.output_name}:1> into the prompt",
        "  ComfyUI: copy it to models/loras and add a Load LoRA node",
        "  InvokeAI: add the file in the Model Manager, then select it beside the prompt",
        f"  diffusers: {_in_diffusers(lora, kinds)}",
        f"  before you share it: {for_shell(['bash', 'audit.sh', lora.parent])}",
        f"  keep private: everything else in {lora.parent} (split.json names your pictures; docs/files.md)",
    ]
    return "\n".join(plain(line) for line in lines)


def _in_diffusers(lora: Path, kinds: set[str]) -> str:
    """The call that loads the file, or the reason why diffusers does not load it."""
    if kinds == {"LoRA"}:
        return f"pipeline.load_lora_weights({str(lora.parent)!r}, weight_name={lora.name!r})"
    if kinds == {"LoRA", "DoRA"}:
        return "load_lora_weights ignores the DoRA scales of this file, so the pictures differ; use one of the others"
    strange = " and ".join(sorted(kinds - {"LoRA"}))
    return f"load_lora_weights does not read this file ({strange}); use one of the others"


def how_to_resume(door: str, folder: OutputFolder, state: str) -> str:
    """The command that continues from a state."""
    words = ["bash", f"{door}.sh", "--config_file", folder.config(), "--resume", state]
    return f"continue with: {for_shell(words)}"
