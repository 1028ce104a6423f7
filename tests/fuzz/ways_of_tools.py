"""The tools on LoRA files as ways in: a damaged LoRA or checkpoint, the command as a person types it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from networks import check_lora_weights, extract_lora_from_models, merge_lora, resize_lora
from tests.fuzz import sound
from tests.fuzz.way_in import WayIn

LORA, SECOND, BASE, TUNED = "lora.safetensors", "second.safetensors", "base", "tuned"
UNET = "unet/diffusion_pytorch_model.safetensors"


def laid_down(folder: Path) -> None:
    """Two LoRAs of a tiny model, the model, and the model with a LoRA in it."""
    for name in (LORA, SECOND):
        sound.copied(sound.whole_lora(), folder / name)
    sound.copied(sound.model(), folder / BASE)
    sound.copied(sound.tuned(), folder / TUNED)


def command(tool: ModuleType, *words: str) -> Callable[[Path], None]:
    """The tool with these words; ``@`` stands for the case's folder."""

    def read(folder: Path) -> None:
        shutil.rmtree(folder / MERGED, ignore_errors=True)  # a folder is never replaced
        tool.main([word.replace("@", f"{folder}/", 1) for word in words])

    return read


RESULT, MERGED = "written/result.safetensors", "written/merged"
TO_FILE = ("--save_to", f"@{RESULT}", "--overwrite")
INTO_BASE = command(merge_lora, "--sd_model", f"@{BASE}", "--models", f"@{LORA}", "--save_to", f"@{MERGED}")
TOOL_WAYS = [
    WayIn("tool: check", LORA, "tensors", laid_down,
          command(check_lora_weights, f"@{LORA}", "--show_all_keys", "--strip", f"@{RESULT}", "--overwrite")),
    WayIn("tool: resize", LORA, "tensors", laid_down,
          command(resize_lora, "--model", f"@{LORA}", "--new_rank", "1", *TO_FILE)),
    WayIn("tool: merge LoRAs", SECOND, "tensors", laid_down,
          command(merge_lora, "--models", f"@{LORA}", f"@{SECOND}", "--ratios", "0.5", "1", *TO_FILE)),
    WayIn("tool: merge into a checkpoint", LORA, "tensors", laid_down, INTO_BASE),
    WayIn("tool: merge, the checkpoint", f"{BASE}/{UNET}", "tensors", laid_down, INTO_BASE),
    WayIn("tool: merge, the checkpoint's settings", f"{BASE}/unet/config.json", "json", laid_down, INTO_BASE),
    WayIn("tool: extract", f"{TUNED}/{UNET}", "tensors", laid_down,
          command(extract_lora_from_models, "--model_org", f"@{BASE}", "--model_tuned", f"@{TUNED}", "--dim", "1",
                  *TO_FILE)),
]  # fmt: skip
