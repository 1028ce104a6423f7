"""What several tests share: one tiny model a session, a folder of pictures, and a way to run a door."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

warnings.filterwarnings("ignore", message=".*SwigPy.*")

from tests.helpers import keys, tiny  # noqa: E402

torch.set_num_threads(1)  # tiny models: a second thread only waits for the first


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a diffusers folder."""
    return tiny.write_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A kohya folder of 16 captioned pictures."""
    return tiny.write_pictures(tmp_path / "pictures", 16)


@pytest.fixture
def flags(model_folder: Path, pictures: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Flags of a run of a few steps; keywords change or add options, None leaves one out."""

    def make(**changed: object) -> list[str]:
        options: dict[str, object] = {
            "pretrained_model_name_or_path": model_folder, "train_data_dir": pictures, "resolution": "16",
            "output_dir": tmp_path / "out", "max_train_steps": 3, "train_batch_size": 2, "network_dim": 2,
            "learning_rate": "1e-2", "seed": 7, "inclusion": "fixed", "attack_lr": "1e-3", "save_precision": "float",
        }  # fmt: skip
        if changed.get("split_file") is None:
            options["split_secret_file"] = keys.write_secret(tmp_path)
        options |= changed
        arguments = []
        for name, value in options.items():
            if value is True:
                arguments.append(f"--{name}")
            elif value is not None:
                arguments += [f"--{name}", str(value)]
        return arguments

    return make


@pytest.fixture(autouse=True)
def fresh_process_state() -> None:
    """What a door sets for its whole process does not reach the next test."""
    logging.getLogger("library").handlers = []
    logging.getLogger("library").setLevel(logging.NOTSET)
    AcceleratorState._reset_state()
    PartialState._reset_state()
