"""A small LoRA that leaks, trained by the door as a user would, and flags of its audit."""

from pathlib import Path

import PLoRA
from tests.helpers import keys, tiny


def train(model_folder: Path, place: Path, **changed: object) -> Path:
    """An output folder of a LoRA that saw its few members some forty times; keywords change options."""
    flags: dict[str, object] = {
        "pretrained_model_name_or_path": model_folder, "train_data_dir": place / "pictures", "resolution": 16,
        "seed": 7, "split_secret_file": keys.write_secret(place), "output_dir": place / "out", "max_train_epochs": 4,
        "train_batch_size": 8, "network_dim": 8,
        "network_alpha": 8, "learning_rate": 5e-3, "inclusion": "fixed", "param_alpha": 0, "k_steps": 0,
        "save_precision": "float",
    }  # fmt: skip
    tiny.write_pictures(place / "pictures", 80, repeats=10)
    assert PLoRA.main([word for name, value in (flags | changed).items() for word in (f"--{name}", str(value))]) == 0
    return place / "out"


def options(trained: Path, *more: object) -> list[str]:
    """Flags that keep a test's audit fast and its caches apart."""
    return [str(word) for word in ("--cache_dir", trained.parent / "cache", "--target_fpr", 0.1, *more)]
