"""training.png: what it is drawn from, and what it must not tell."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.training.training_curve import course, of_the_start, smoothed, write_curve


def log_of(folder: Path, steps: int, accuracy: float | None = 0.7) -> Path:
    """A log of a step a line, with five validation passes."""
    lines = []
    for done in range(steps + 1):
        if done % (steps // 4) == 0:
            checks = {"adaptation_loss_members_aux": 0.2 - 0.1 * done / steps, "adaptation_loss_non_members_aux": 0.2,
                      "images_members_aux": 27}  # fmt: skip
            checks |= {} if accuracy is None else {"proxy_balanced_accuracy": accuracy}
            lines.append({"step": done, "epoch": done, **checks})
        if done:
            lines.append({"step": done, "epoch": 1, "adaptation_loss": 0.3})
    file = folder / "log.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_figure_runs_over_the_share_of_the_training_that_is_done() -> None:
    records = [{"step": 0, "a": 4.0}, {"step": 5, "b": 1.0}, {"step": 5, "a": 3.0}, {"step": 20, "a": "nan"}]
    assert course(records, "a") == [(0.0, 4.0), (0.25, 3.0)]  # what is not finite stands in the log as text
    assert of_the_start(course(records, "a")) == [(0.0, 100.0), (0.25, 75.0)]
    assert of_the_start([]) == []


def test_the_loss_of_the_batches_is_averaged_over_windows_of_the_run() -> None:
    assert smoothed([(0.0, 1.0), (0.01, 3.0), (0.03, 5.0)]) == [(0.005, 2.0), (0.03, 5.0)]


@pytest.mark.parametrize("accuracy", [0.7, None])
def test_the_picture_is_the_owners_and_holds_no_text_of_its_own(tmp_path: Path, accuracy: float | None) -> None:
    write_curve(log_of(tmp_path, 40, accuracy), tmp_path / "training.png")
    picture = tmp_path / "training.png"
    assert picture.stat().st_mode & 0o777 == 0o600
    with Image.open(picture) as image:
        assert image.size[0] >= 700 and set(image.info) <= {"dpi"}  # no software, no date
        assert np.asarray(image.convert("L")).std() > 5


def test_runs_of_other_lengths_with_one_course_give_one_picture(tmp_path: Path) -> None:
    """Steps per epoch would give the number of members: no step, epoch or count stands in the picture."""
    pictures = []
    for steps in (100, 200):
        folder = tmp_path / str(steps)
        folder.mkdir()
        write_curve(log_of(folder, steps), folder / "training.png")
        pictures.append(np.asarray(Image.open(folder / "training.png").convert("L"), dtype=float))
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0] - pictures[1]).mean() < 0.5
