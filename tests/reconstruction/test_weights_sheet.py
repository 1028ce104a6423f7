"""Tables and picture of painted pictures, from what a measurement kept."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from library.audit.reconstruction.pictures.attribution import HELD_OUT, OF_CODES, PRIVATE, Likeness
from library.audit.reconstruction.pictures.contact_sheet import GAP, LABEL, LINE
from library.audit.reconstruction.pictures.picture_rows import CODE
from library.audit.reconstruction.pictures.picture_table import table
from library.errors import InputError
from library.seeding import stream
from library.tensor_files import write_tensors
from tools.pictures_from_weights import main, painted_table

DOCS = Path(__file__).parents[2] / "docs"
RED = torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
VICTIMS = 25


def likeness(own: float, seed: int) -> Likeness:
    noise = 0.1 * torch.randn(VICTIMS, VICTIMS, generator=stream(seed))
    return Likeness(noise + own * torch.eye(VICTIMS), range(VICTIMS), 2)


def measured(code: float) -> dict:
    """A table whose encoder sees this much of a person, and whose controls see nothing."""
    rows = {CODE: likeness(code, 0)} | {name: likeness(0.0, seed) for seed, name in enumerate(OF_CODES, start=1)}
    lines = table({PRIVATE: rows, HELD_OUT: rows}, "VAE, whitened")
    return {"victims": VICTIMS, "encoder_steps": 7, "table": lines, "capacity": lines}


def kept(folder: Path, rows: str = "#attacks\nencoder\nprivate pictures") -> Path:
    """Two persons: two outputs, four private pictures each; the second person's last private picture is red."""
    private = torch.full((2, 4, 3, 8, 8), 40, dtype=torch.uint8)
    private[1, 3] = RED
    tensors = {"encoder": private[:, :2].clone(), "private pictures": private, "#attacks": torch.zeros(1)}
    write_tensors(folder / "sheet.safetensors", tensors, {"rows": rows, "title": "two persons"})
    (folder / "pictures.json").write_text(json.dumps(measured(0.0), default=asdict))
    shutil.copy(DOCS / "pictures_from_weights.md", folder)
    return folder


def test_every_row_is_a_line_and_every_person_a_column(tmp_path) -> None:
    assert main([str(kept(tmp_path))], tmp_path) == 0
    picture = Image.open(tmp_path / "pictures_from_weights.png").convert("RGB")
    column = 4 * 8 + GAP
    assert picture.size == (LABEL + 2 * column, 2 * LINE + 2 * (8 + 2))
    last = (LABEL + column + 3 * 8 + 4, 2 * LINE + (8 + 2) + 4)
    assert picture.getpixel(last) == (255, 0, 0)


def test_the_page_says_what_the_table_says(tmp_path) -> None:
    main([str(kept(tmp_path))], tmp_path)
    page = (tmp_path / "pictures_from_weights.md").read_text()
    assert "25 victims; the encoder took 7 steps" in page and "nothing was read from the weights" in page
    assert page.count("| mean code |") == 2  # painted, and on the base


def test_a_code_that_was_read_is_credited_on_the_page_and_a_control_never_is() -> None:
    lines = {line.split("|")[1].strip(): line for line in painted_table(measured(1.0)).splitlines() if "|" in line}
    assert "yes / yes" in lines[CODE]
    assert all(lines[name].endswith("| control |") for name in OF_CODES)


def test_a_folder_without_a_finished_measurement_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"sheet.safetensors' is missing; run benchmarks/pictures_of_weights.py"):
        main([str(tmp_path)], tmp_path)
    with pytest.raises(InputError, match="does not name its rows"):
        main([str(kept(tmp_path, "encoder"))], tmp_path)
    (kept(tmp_path) / "pictures.json").write_text("{}")
    with pytest.raises(InputError, match="holds no tables"):
        main([str(tmp_path)], tmp_path)
    with pytest.raises(InputError, match="takes the --out"):
        main([], tmp_path)
