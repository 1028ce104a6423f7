"""What a run wrote, read for comparison; and a dataset_config that has everything."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.helpers import tiny


def records(folder: Path) -> list[dict]:
    """The run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_tensors(one: Path, other: Path) -> None:
    """Bit for bit."""
    left, right = load_file(one), load_file(other)
    assert set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


def two_datasets(tmp_path: Path, pictures: Path) -> Path:
    """One folder at two resolutions with two batch sizes, public regularisation images, and every caption rule."""
    public = tiny.write_pictures(tmp_path / "reg", 3, first=60, sizes=((24, 16),)) / "1_zebrafolder"
    file = tmp_path / "data.toml"
    file.write_text(f"""
        [general]
        shuffle_caption = true
        caption_dropout_rate = 0.2
        caption_tag_dropout_rate = 0.3
        flip_aug = true
        [[datasets]]
        resolution = 16
        batch_size = 2
          [[datasets.subsets]]
          image_dir = "{pictures / '1_zebrafolder'}"
          num_repeats = 2
          [[datasets.subsets]]
          image_dir = "{public}"
          is_reg = true
        [[datasets]]
        resolution = [32, 16]
        batch_size = 3
        caption_prefix = "sks"
          [[datasets.subsets]]
          image_dir = "{pictures / '1_zebrafolder'}"
        """)  # fmt: skip
    return file
