"""A state that is not what was saved is refused before it is used."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from library import __version__
from library.errors import InputError
from library.plain_text import for_shell
from library.training.saved_state import read_state
from library.training.state import TrainingState, load_training_state, require_options, save_state

Optimizer = torch.optim.AdamW


def small_state(seed: int) -> TrainingState:
    """Two layers of two shapes after one step."""
    torch.manual_seed(seed)
    network, proxy = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.Linear(2, 1)
    optimizer, attacker = Optimizer(network.parameters(), lr=0.1), Optimizer(proxy.parameters(), lr=0.1)
    for module, moving in ((network, optimizer), (proxy, attacker)):
        module(torch.randn(4, 2)).square().sum().backward()
        moving.step()
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return TrainingState(network, optimizer, schedule, proxy, attacker, None, None)


def saved(folder: Path) -> Path:
    """A state on disk."""
    path = folder / "state" / "last-state"
    save_state(path, small_state(0), done=1, options={"seed": 1}, inputs={"split": "s"}, checks=[])
    return path


def load(path: Path) -> TrainingState:
    """As a resumed run does."""
    target = small_state(1)
    read_state(str(path))
    load_training_state(str(path), target)
    return target


def moments_changed(path: Path, change: Any) -> None:
    """Rewrite the moments, and the checksums with them: what an older version or a stranger may have written."""
    moving = torch.load(path / "optimizers.pt", weights_only=True)
    change(moving)
    torch.save(moving, path / "optimizers.pt")
    content = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({k: v for k, v in content.items() if k not in ("files", "checksum")}))


def test_a_whole_state_is_loaded(tmp_path: Path) -> None:
    loaded, wanted = load(saved(tmp_path)), small_state(0)
    for one, other in zip(loaded.network.parameters(), wanted.network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["lora.safetensors", "proxy.safetensors", "optimizers.pt", "state.json"])
def test_one_flipped_bit_is_found_and_its_file_named(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path)
    content = bytearray((path / name).read_bytes())
    place = content.index(b"seed") if name == "state.json" else len(content) - 40
    content[place] ^= 1
    (path / name).write_bytes(bytes(content))
    with pytest.raises(InputError, match=f"'{name}' differ from what was saved"):
        read_state(str(path))


def test_files_of_two_states_are_not_mixed_and_a_missing_one_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    other = tmp_path / "other-state"
    save_state(other, small_state(2), done=2, options={"seed": 1}, inputs={"split": "s"}, checks=[])
    (path / "optimizers.pt").write_bytes((other / "optimizers.pt").read_bytes())
    (path / "proxy.safetensors").unlink()
    with pytest.raises(InputError, match="'optimizers.pt', 'proxy.safetensors' differ from what was saved"):
        read_state(str(path))


def test_a_half_state_is_refused_with_the_whole_ones_beside_it_as_options_the_newest_first(tmp_path: Path) -> None:
    whole, half, newer, damaged = (tmp_path / "state" / f"it's {name}-state" for name in ("old", "half", "new", "bad"))
    for age, path in enumerate((newer, half, damaged, whole)):
        save_state(path, small_state(age), done=age, options={}, inputs={"split": "s"}, checks=[])
        os.utime(path / "state.json", (0, 1_000_000 - age))
    (half / "optimizers.pt").unlink()
    (damaged / "lora.safetensors").write_bytes(b"")
    offered = (
        f"; whole states near it, the newest first: {', '.join(for_shell(['--resume', p]) for p in (newer, whole))}"
    )
    with pytest.raises(InputError, match="'optimizers.pt' differ from what was saved") as caught:
        read_state(str(half))
    assert str(caught.value).endswith(offered)
    (half / "state.json").unlink()
    with pytest.raises(InputError, match="is not a state folder of this suite") as caught:
        read_state(str(half))
    assert str(caught.value).endswith(offered)
    moments_changed(whole, wrong_shape)  # found while loading
    with pytest.raises(InputError, match="has the shape") as caught:
        load(whole)
    assert str(caught.value).endswith(f"the newest first: {for_shell(['--resume', newer])}")


@pytest.mark.parametrize("lost", ["lora.safetensors", "proxy.safetensors", "optimizers.pt"])
def test_a_state_of_an_earlier_version_is_refused_where_a_file_is_missing(tmp_path: Path, lost: str) -> None:
    path = saved(tmp_path)
    moments_changed(path, lambda moving: None)
    (path / lost).unlink()
    with pytest.raises(
        InputError, match=f"'{lost}' differ from what was saved.*; no whole state lies in it or near it"
    ):
        read_state(str(path))


def wrong_shape(moving: dict) -> None:
    moving["optimizer"]["state"][0]["exp_avg"] = torch.zeros(7)


def exchanged(moving: dict) -> None:
    state = moving["optimizer"]["state"]
    state[0], state[2] = state[2], state[0]


def not_a_number(moving: dict) -> None:
    moving["attacker"]["state"][0]["exp_avg_sq"][0, 0] = float("nan")


def fewer(moving: dict) -> None:
    moving["optimizer"]["param_groups"][0]["params"].pop()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong_shape, r"exp_avg of parameter 0 has the shape \(7,\), and the parameter \(3, 2\)"),
        (exchanged, r"has the shape \(2, 3\), and the parameter \(3, 2\)"),
        (not_a_number, "exp_avg_sq of parameter 0 is not finite"),
        (fewer, "of an optimizer with other parameters"),
        (lambda moving: moving.update(optimizer=3), "holds no optimizer"),
    ],
    ids=["shape", "exchanged", "NaN", "fewer", "a number"],
)
def test_moments_that_do_not_fit_are_refused_also_without_checksums(
    tmp_path: Path, change: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path)
    moments_changed(path, change)
    with caplog.at_level(logging.WARNING, "library"), pytest.raises(InputError, match=said):
        load(path)
    assert "is a state of an earlier version, without checksums" in caplog.text


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path, state = tmp_path / "state" / "nan-state", small_state(0)
    with torch.no_grad():
        state.network[0].weight[0, 0] = float("inf")  # type: ignore[index]
    save_state(path, state, done=1, options={}, inputs={"split": "s"}, checks=[])
    with pytest.raises(InputError, match="lora.safetensors' holds NaN or infinity in '0.weight'"):
        load(path)


def test_an_option_that_the_states_version_did_not_have_is_told_as_such(tmp_path: Path, caplog) -> None:
    """At its default it asks for nothing; any other value would not be what the state was trained with."""
    path, defaults = saved(tmp_path), {"seed": 0, "huber_scale": 1.0, "skip_image_resolution": None}
    content = read_state(str(path))
    assert content["version"] == __version__
    require_options(str(path), content, {**defaults, "seed": 1}, defaults)
    assert (
        f"the state was written by version {__version__}, which had no such option: 'huber_scale', "
        "'skip_image_resolution'; the defaults are used" in caplog.text
    )
    with pytest.raises(InputError) as caught:
        require_options(str(path), content, {"seed": 2, "huber_scale": 2.0, "skip_image_resolution": "64"}, defaults)
    writer = f"the state was written by version {__version__}, which had no such option; leave it out"
    assert str(caught.value).splitlines() == [
        f"--resume '{path}': huber_scale is 2.0, and {writer}",
        f"--resume '{path}': skip_image_resolution is '64', and {writer}",
        f"--resume '{path}': seed was 1 and is 2 now; resume with the run's own config.toml",
    ]
    del content["version"]
    with pytest.raises(
        InputError, match="written by an earlier version with seed = 1, which this version does not have"
    ):
        require_options(str(path), content, {}, {})


def test_the_version_is_the_one_that_the_projects_files_state() -> None:
    root = Path(__file__).parent.parent.parent
    assert f'version = "{__version__}"' in (root / "pyproject.toml").read_text()
    assert f"version: {__version__}\n" in (root / "CITATION.cff").read_text()
