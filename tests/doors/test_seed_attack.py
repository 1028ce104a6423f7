"""What a stranger can redraw from a published LoRA, its seed and all the pictures: nothing."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import PLoRA
from library import seeding
from library.data import split
from library.data.examples import Example
from library.diffusion.model_files import load_model
from library.seeding import StreamKey
from networks.lora import create_network
from tests.helpers import tiny
from tests.helpers.runs import assert_same_tensors

SEEDS = range(64)  # stands for the 2^31 that a stranger tries in minutes
TRUE_SEED = 41
POOL = 60


def old_seed(seed: int, *purpose: str) -> int:
    """How streams were made when the seed was all they depended on."""
    text = "\x1f".join([str(seed), *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def old_coins(groups: list[str], share: float, seed: int, purpose: str) -> set[str]:
    """The old draw: one stream of coins over the groups in the order of their pixels."""
    generator = torch.Generator().manual_seed(old_seed(seed, "split", purpose))
    coins = torch.rand(len(groups), generator=generator).tolist()
    return {group for group, coin in zip(sorted(groups), coins, strict=True) if coin < share}


def old_split(candidates: list[Example], outsiders: list[Example], **rules: object) -> split.Split:
    """The old four sides of a run with the seed that the test knows."""

    def parted(examples: list[Example], purpose: str) -> tuple[list[Example], list[Example]]:
        drawn = old_coins([one.pixels for one in examples], 0.5, TRUE_SEED, purpose)
        return [one for one in examples if one.pixels in drawn], [one for one in examples if one.pixels not in drawn]

    assert not outsiders
    non_members, members = parted(split.in_fixed_order(candidates), "inclusion")
    sides = (*parted(members, "members-aux"), *parted(non_members, "non-members-aux"))
    return split.Split(dict(zip(split.SIDES, sides, strict=True)), rules["secret"], "bernoulli")  # type: ignore[arg-type]


def seed_the_old_way(seed: int) -> None:
    """The start of the network before."""
    torch.manual_seed(old_seed(seed, "network"))


def seed_with_a_guess(seed: int, secret: bytes = b"") -> None:
    """The start of the network now, by somebody who has the code and guesses the secret."""
    seeding.seed_published(StreamKey(secret, seed), "network")


def correlation(
    published: dict[str, torch.Tensor], model_folder: Path, start: Callable[[int], None], seed: int
) -> float:
    """Mean absolute correlation of the published down factors with those that a seed gives."""
    model = load_model(str(model_folder))
    start(seed)
    network = create_network(1.0, 2, 1.0, model.vae, model.text_encoder, model.unet)
    found = [
        np.corrcoef(published[f"{one.lora_name}.lora_down.weight"].flatten(), one.lora_down.weight.detach().flatten())
        for one in network.modules_of_both()
    ]
    return float(np.mean([abs(one[0, 1]) for one in found]))


def play(out: Path, model_folder: Path, pool: list[str], start: Callable[[int], None]) -> tuple[int, float, int]:
    """The attack: try every seed, redraw the split of the best; returns it, its correlation, and memberships right."""
    published = load_file(out / "last.safetensors")
    scores = [correlation(published, model_folder, start, seed) for seed in SEEDS]
    best = int(np.argmax(scores))
    accused = set(pool) - old_coins(pool, 0.5, best, "inclusion")
    truth = {
        entry["pixels"]: entry["side"].startswith("members")
        for entry in json.loads((out / "split.json").read_text())["images"]
    }
    return best, scores[best], sum((one in accused) == truth[one] for one in pool)


@pytest.fixture
def train(flags, tmp_path: Path) -> Callable[..., Path]:
    """A short run on a pool of pictures; returns its folder."""
    pictures = tiny.write_pictures(tmp_path / "pool", POOL)

    def run(name: str, **changed: object) -> Path:
        options = {"max_train_steps": 20, "inclusion": "bernoulli", "seed": TRUE_SEED, "train_data_dir": pictures}
        assert PLoRA.main(flags(output_dir=tmp_path / name, **{**options, **changed})) == 0
        return tmp_path / name

    return run


def pool_of(out: Path) -> list[str]:
    """The hash of every candidate picture: the stranger has them all."""
    return sorted(entry["pixels"] for entry in json.loads((out / "split.json").read_text())["images"])


@pytest.mark.slow
def test_the_old_way_gave_every_membership_away(train, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack can win: the draws of earlier versions, rebuilt here, fall to it whole."""
    old_start = lambda key, *purpose: torch.manual_seed(old_seed(key.seed, *purpose))  # noqa: E731
    monkeypatch.setattr("library.assembly.run.seed_published", old_start)
    monkeypatch.setattr("library.data.split_file.draw_split", old_split)
    out = train("old")
    best, score, right = play(out, model_folder, pool_of(out), seed_the_old_way)
    print(f"old way: seed {best}, correlation {score:.3f}, {right} of {POOL} memberships right")
    assert best == TRUE_SEED and score > 0.5 and right == POOL


@pytest.mark.slow
def test_a_published_lora_ends_the_attack_at_chance(train, model_folder: Path) -> None:
    out = train("new")
    for start in (seed_the_old_way, seed_with_a_guess):
        best, score, right = play(out, model_folder, pool_of(out), start)
        print(f"{start.__name__}: seed {best}, correlation {score:.3f}, {right} of {POOL} memberships right")
        assert score < 0.2 and abs(right - POOL / 2) < 12  # 3.1 standard deviations of a fair coin


@pytest.mark.slow
def test_whoever_has_the_secret_finds_the_start(train, model_folder: Path) -> None:
    """The correlation is a test that can succeed on the new file too."""
    out = train("known")
    secret = bytes.fromhex(json.loads((out / "split.json").read_text())["secret"])
    published = load_file(out / "last.safetensors")
    assert correlation(published, model_folder, lambda seed: seed_with_a_guess(seed, secret), TRUE_SEED) > 0.5


@pytest.mark.slow
def test_two_runs_with_one_seed_have_nothing_in_common(train) -> None:
    one, other = (train(name, split_secret_file=None) for name in ("one", "other"))
    sides = [
        {entry["pixels"]: entry["side"] for entry in json.loads((out / "split.json").read_text())["images"]}
        for out in (one, other)
    ]
    assert 2 < sum(sides[0][pixels] == sides[1][pixels] for pixels in sides[0]) < 45  # a quarter of 60 by chance
    downs = [
        torch.cat(
            [value.flatten() for name, value in load_file(out / "last.safetensors").items() if "lora_down" in name]
        )
        for out in (one, other)
    ]
    assert abs(float(np.corrcoef(*downs)[0, 1])) < 0.1


@pytest.mark.slow
def test_one_seed_on_one_split_is_one_run_bit_for_bit(train, tmp_path: Path) -> None:
    first = train("first", split_secret_file=None)
    second = train("second", split_file=first / "split.json")
    assert_same_tensors(first / "last.safetensors", second / "last.safetensors")
    assert (first / "split.json").read_bytes() == (second / "split.json").read_bytes()
    third = train("third", split_file=first / "split.json", seed=TRUE_SEED + 1)
    one, other = (load_file(out / "last.safetensors") for out in (first, third))
    assert all(not torch.equal(one[name], other[name]) for name in one if "lora_down" in name)


def test_a_published_start_comes_from_the_whole_key(tmp_path: Path) -> None:
    """torch's generator state word for word, compared with another implementation of the same generator."""
    key = StreamKey(b"k" * 32, 5)
    seeding.seed_published(key, "network")
    drawn = torch.empty(3, dtype=torch.int64).random_(0, 2**31)  # the second word of each pair, in torch
    words = np.frombuffer(hashlib.shake_256(key.derived("network")).digest(4 * 624), dtype="<u4")
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words.copy(), "pos": 624}}
    assert drawn.tolist() == [int(word) % 2**31 for word in twister.random_raw(6)[1::2]]


@pytest.mark.slow
def test_a_file_of_the_run_does_not_hold_the_secret(train) -> None:
    out = train("quiet", save_state=True, logging_dir=None)
    secret = json.loads((out / "split.json").read_text())["secret"]
    for file in (file for file in out.rglob("*") if file.is_file() and file.name != "split.json"):
        content = file.read_bytes()
        assert secret.encode() not in content and bytes.fromhex(secret) not in content, file.name
