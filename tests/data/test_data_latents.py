"""Latents: encoded once, cached under a fingerprint of what made them, or made anew at each use."""

import os
from pathlib import Path

import pytest
import torch

from library.data.augmentation import use_of
from library.data.latents import Moments, View, encoded_moments, encoded_views
from library.errors import InputError
from tests.helpers import tiny
from tests.helpers.data_toy import read


class CountingEncoder:
    """Stands for the VAE: mean = mean pixel, and remembers how many pictures it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.seen += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 2)
        return mean, torch.full_like(mean, 0.1)


def encoded(examples, encoder, folder, size=(16, 16), vae="vae 1") -> list[Moments]:
    """Moments through the cache."""
    return encoded_moments(
        examples, [size] * len(examples), encoder, vae_fingerprint=vae, batch_size=2, cache_dir=folder
    )


def test_the_disk_cache_is_private_and_knows_the_picture_the_vae_and_the_bucket(tmp_path: Path) -> None:
    examples = read(tiny.write_pictures(tmp_path / "pictures", 3)).candidates
    encoder, cache = CountingEncoder(), tmp_path / "cache"
    first = encoded(examples, encoder, cache)
    again = encoded(examples, encoder, cache)
    assert encoder.seen == 3 and all(torch.equal(a.mean, b.mean) for a, b in zip(first, again, strict=True))
    files = list((cache / "latents").iterdir())
    assert len(files) == 3 and all(os.stat(file).st_mode & 0o777 == 0o600 for file in files)
    assert os.stat(cache / "latents").st_mode & 0o777 == 0o700
    assert not any("quokka" in file.name for file in files)
    encoded(examples, encoder, cache, vae="vae 2")
    encoded(examples, encoder, cache, size=(16, 32))
    tiny.write_picture(examples[0].path, 99)  # the same name, another picture
    changed = encoded(read(tmp_path / "pictures").candidates, encoder, cache)
    assert encoder.seen == 10 and not torch.equal(changed[0].mean, first[0].mean)


def test_a_damaged_cache_file_is_made_anew(tmp_path: Path) -> None:
    examples = read(tiny.write_pictures(tmp_path / "pictures", 1)).candidates
    encoder = CountingEncoder()
    encoded(examples, encoder, tmp_path / "cache")
    file = next((tmp_path / "cache" / "latents").iterdir())
    file.write_bytes(file.read_bytes()[:20])
    encoded(examples, encoder, tmp_path / "cache")
    assert encoder.seen == 2


def test_latents_that_are_not_finite_stop_with_the_name_of_the_picture(tmp_path: Path) -> None:
    examples = read(tiny.write_pictures(tmp_path / "pictures", 1)).candidates
    with pytest.raises(InputError, match="NaN or infinity for .*quokka000.png"):
        encoded(examples, lambda pixels: (pixels * torch.nan, pixels), None)


def views_of(examples, size=(16, 16), mirrored: bool = False) -> list[View]:
    """Views of one size."""
    return [View(example, size, mirrored) for example in examples]


def encode_all(views: list[View], encoder: CountingEncoder, folder: Path, rebuild: bool = False) -> list[Moments]:
    """Views through the cache."""
    return encoded_views(views, encoder, vae_fingerprint="vae", batch_size=2, cache_dir=folder, rebuild=rebuild)


def test_mirror_images_scaling_methods_and_rebuilt_caches_have_files_of_their_own(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path / "pictures", 2, sizes=((40, 40),))
    examples, encoder, cache = read(folder).candidates, CountingEncoder(), tmp_path / "cache"
    plain = encode_all(views_of(examples), encoder, cache)
    mirrored = encode_all(views_of(examples, mirrored=True), encoder, cache)
    assert all(torch.equal(a.mean, b.mean.flip(-1)) for a, b in zip(plain, mirrored, strict=True))
    nearest = encode_all(views_of(read(folder, resize_interpolation="nearest").candidates), encoder, cache)
    assert encoder.seen == 6 and not torch.equal(nearest[0].mean, plain[0].mean)
    encode_all(views_of(examples) + views_of(examples, mirrored=True), encoder, cache)
    assert encoder.seen == 6
    encode_all(views_of(examples), encoder, cache, rebuild=True)
    assert encoder.seen == 8 and len(list((cache / "latents").iterdir())) == 6


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_write_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    views = views_of(read(tiny.write_pictures(tmp_path / "pictures", 2)).candidates)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, cut)
        with pytest.raises(KeyboardInterrupt):
            encode_all(views, CountingEncoder(), tmp_path / "cache")
    assert list((tmp_path / "cache" / "latents").iterdir()) == []
    encoder = CountingEncoder()
    encode_all(views, encoder, tmp_path / "cache")
    assert encoder.seen == 2


@pytest.mark.parametrize("cached", [True, False], ids=["cached once", "encoded at every use"])
def test_a_picture_that_changes_after_the_draw_is_refused_by_name(tmp_path: Path, cached: bool) -> None:
    example = read(tiny.write_pictures(tmp_path / "pictures", 1)).candidates[0]
    tiny.write_picture(example.path, 99)
    with pytest.raises(InputError, match="quokka000.png' has changed since it was read for the split"):
        encoded([example], CountingEncoder(), None) if cached else use_of(example, (16, 16), torch.Generator())
    example.path.write_text("no picture")
    with pytest.raises(InputError, match="quokka000.png' was there when the split was drawn and cannot be decoded now"):
        encoded([example], CountingEncoder(), None)


def test_a_flipped_bit_in_cached_latents_is_found_and_told_once(tmp_path: Path, caplog) -> None:
    examples = read(tiny.write_pictures(tmp_path / "pictures", 1)).candidates
    encoder = CountingEncoder()
    first = encoded(examples, encoder, tmp_path / "cache")[0]
    file = next((tmp_path / "cache" / "latents").iterdir())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    again = encoded(examples, encoder, tmp_path / "cache")[0]
    assert encoder.seen == 2 and torch.equal(first.mean, again.mean) and torch.equal(first.std, again.std)
    assert caplog.text.count("is damaged and is rebuilt") == 1
    encoded(examples, encoder, tmp_path / "cache")
    assert encoder.seen == 2
