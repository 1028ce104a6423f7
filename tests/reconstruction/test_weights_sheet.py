"""The picture of docs/pictures_from_weights.md, drawn from what a measurement kept."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from library.audit.reconstruction.pictures.contact_sheet import GAP, LABEL, LINE
from library.errors import InputError
from library.tensor_files import write_tensors
from tools.pictures_from_weights import main

RED = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]


def kept(folder: Path, rows: str = "#attacks\nencoder\nprivate pictures") -> Path:
    """Two persons: two outputs, four private pictures each; the second person's last private picture is red."""
    private = torch.full((2, 4, 3, 8, 8), 40, dtype=torch.uint8)
    private[1, 3] = RED
    tensors = {"encoder": private[:, :2].clone(), "private pictures": private, "#attacks": torch.zeros(1)}
    write_tensors(folder / "sheet.safetensors", tensors, {"rows": rows, "title": "two persons"})
    return folder


def test_every_row_is_a_line_and_every_person_a_column(tmp_path) -> None:
    assert main([str(kept(tmp_path))], tmp_path) == 0
    picture = Image.open(tmp_path / "pictures_from_weights.png").convert("RGB")
    column = 4 * 8 + GAP
    assert picture.size == (LABEL + 2 * column, 2 * LINE + 2 * (8 + 2))
    last = (LABEL + column + 3 * 8 + 4, 2 * LINE + (8 + 2) + 4)
    assert picture.getpixel(last) == (255, 0, 0)


def test_a_folder_without_a_finished_measurement_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"sheet.safetensors' is missing; run benchmarks/pictures_of_weights.py"):
        main([str(tmp_path)], tmp_path)
    with pytest.raises(InputError, match="does not name its rows"):
        main([str(kept(tmp_path, "encoder"))], tmp_path)
    with pytest.raises(InputError, match="takes the --out"):
        main([], tmp_path)
