"""Folders, captions, buckets, latents and batches."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from library.check import InputError
from library.data.batches import AuxCycle, MemberBatches, Pictures
from library.data.buckets import assign_buckets, bucket_sizes, nearest_bucket, shrunk_bucket
from library.data.captions import training_caption
from library.data.examples import open_picture, pixel_hash
from library.data.folders import read_folder
from library.data.latents import Moments, encoded_moments, fitted_pixels
from library.seeding import stream
from tests import tiny
from tests.test_split import example


def read(folder: Path, **changed):
    """Read a folder with the usual options."""
    options = {"flat": False, "caption_extension": None, "strict_captions": False, "group_by": None} | changed
    return read_folder(str(folder), **options)


def test_repeats_captions_and_identity_come_from_a_kohya_folder(tmp_path: Path) -> None:
    examples = read(tiny.write_pictures(tmp_path, 5, repeats=10))
    assert [example.repeats for example in examples] == [10] * 5
    assert examples[3].caption == "walrus003, ocelot picture"
    assert examples[0].pixels == pixel_hash(open_picture(examples[0].path))


def test_identity_is_the_pixels_not_the_file(tmp_path: Path) -> None:
    tiny.write_picture(tmp_path / "a.png", 1)
    Image.open(tmp_path / "a.png").save(tmp_path / "b.webp", lossless=True)
    Image.open(tmp_path / "a.png").save(tmp_path / "c.bmp")
    assert len({pixel_hash(open_picture(tmp_path / name)) for name in ("a.png", "b.webp", "c.bmp")}) == 1


def test_a_folder_one_level_too_deep_names_its_parent(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path / "set", 2) / "1_zebrafolder"
    with pytest.raises(InputError, match=f"give its parent '{tmp_path / 'set'}'"):
        read(folder)


def test_a_folder_one_level_too_high_names_its_child(tmp_path: Path) -> None:
    tiny.write_pictures(tmp_path / "set", 2)
    with pytest.raises(InputError, match=f"one level too high; give '{tmp_path / 'set'}'"):
        read(tmp_path)


def test_pictures_without_a_named_folder_point_to_the_switch(tmp_path: Path) -> None:
    for index in range(3):
        tiny.write_picture(tmp_path / f"{index}.png", index)
    with pytest.raises(InputError, match="has 3 images and no folder named <repeats>_<class>; use --flat_data_dir"):
        read(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no pictures"):
        read(tmp_path)


def test_a_folder_whose_name_has_no_repeats_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    tiny.write_pictures(tmp_path, 2)
    (tmp_path / "extra").mkdir()
    tiny.write_picture(tmp_path / "extra" / "x.png", 9)
    with pytest.raises(InputError, match="no repeats in front of 'extra'"):
        read(tmp_path)


def test_corrupt_pictures_and_bad_captions_are_reported_together(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path, 4) / "1_zebrafolder"
    (folder / "quokka000.png").write_bytes(b"\x89PNG no picture")
    (folder / "quokka001.txt").write_text("\n")
    (folder / "quokka002.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError) as caught:
        read(tmp_path)
    text = str(caught.value)
    assert "quokka000.png' cannot be decoded" in text
    assert "quokka001.txt' is empty" in text and "quokka002.txt' is not UTF-8" in text


def test_a_truncated_picture_is_reported(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path, 4) / "1_zebrafolder"
    whole = (folder / "quokka000.png").read_bytes()
    (folder / "quokka000.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="quokka000.png' cannot be decoded"):
        read(tmp_path)


def test_missing_captions_are_an_error_where_nothing_can_stand_in(tmp_path: Path) -> None:
    tiny.write_picture(tmp_path / "a.png", 1)
    with pytest.raises(InputError, match="1 images have no caption file.*'a.png'"):
        read(tmp_path, flat=True)


def test_class_words_stand_in_for_missing_captions_unless_captions_are_strict(tmp_path: Path) -> None:
    tiny.write_picture(tiny.write_pictures(tmp_path, 1) / "1_zebrafolder" / "a.png", 50)
    assert {example.caption for example in read(tmp_path)} == {"zebrafolder", "walrus000, ocelot picture"}
    with pytest.raises(InputError, match="no caption file"):
        read(tmp_path, strict_captions=True)


def test_groups_come_from_a_file_the_folder_or_the_name(tmp_path: Path) -> None:
    tiny.write_pictures(tmp_path, 3)
    (tmp_path / "groups.json").write_text('{"quokka000": "kin", "quokka001": "kin"}')
    groups = [example.group for example in read(tmp_path)]
    assert groups[0] == groups[1] == "kin" and groups[2] not in ("kin", None)
    assert {example.group for example in read(tmp_path, group_by="folder")} == {"1_zebrafolder"}
    assert len({example.group for example in read(tmp_path, group_by="none")}) == 3
    with pytest.raises(InputError, match="group_by must be"):
        read(tmp_path, group_by="identity")


@pytest.mark.parametrize(("resolution", "largest", "count"), [(512, 1024, 17), (768, 1024, 19), (1024, 2048, 41)])
def test_bucket_sets_are_kohyas(resolution: int, largest: int, count: int) -> None:
    assert len(bucket_sizes((resolution, resolution), 256, largest, 64)) == count


def test_buckets_are_chosen_by_aspect_ratio_and_shrink_only_where_asked() -> None:
    sizes = bucket_sizes((512, 512), 256, 1024, 64)
    assert nearest_bucket(1000, 1000, sizes) == (512, 512)
    assert nearest_bucket(2000, 1000, sizes) == (704, 320)
    assert nearest_bucket(320, 704, sizes) == (320, 704)
    assert shrunk_bucket(300, 200, (512, 512), 64) == (256, 192)
    assert shrunk_bucket(2048, 2048, (512, 512), 64) == (512, 512)


def test_a_resolution_that_the_model_cannot_take_is_refused() -> None:
    with pytest.raises(InputError, match="resolution must be a multiple of 64 pixels for this model, got 500"):
        assign_buckets(
            [example(1)],
            resolution=(500, 512),
            enable_bucket=False,
            bucket_no_upscale=False,
            smallest=256,
            largest=1024,
            step=64,
            multiple=64,
        )


def test_pixels_are_scaled_to_cover_and_cropped_in_the_centre() -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (10, 0, 30, 20))
    pixels = fitted_pixels(picture, (10, 10))
    assert pixels.shape == (3, 10, 10) and torch.all(pixels == 1)


def test_captions_shuffle_behind_the_kept_part() -> None:
    results = {
        training_caption("a, b, c, d", shuffle=True, keep_tokens=1, separator=",", generator=stream(1, index))
        for index in range(200)
    }
    assert len(results) == 6 and all(result.startswith("a, ") for result in results)
    assert training_caption("a,b", shuffle=False, keep_tokens=0, separator=",", generator=stream(1)) == "a,b"


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
    examples = read(tiny.write_pictures(tmp_path / "pictures", 3))
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
    changed = encoded(read(tmp_path / "pictures"), encoder, cache)
    assert encoder.seen == 10 and not torch.equal(changed[0].mean, first[0].mean)


def test_a_damaged_cache_file_is_made_anew(tmp_path: Path) -> None:
    examples = read(tiny.write_pictures(tmp_path / "pictures", 1))
    encoder = CountingEncoder()
    encoded(examples, encoder, tmp_path / "cache")
    file = next((tmp_path / "cache" / "latents").iterdir())
    file.write_bytes(file.read_bytes()[:20])
    encoded(examples, encoder, tmp_path / "cache")
    assert encoder.seen == 2


def test_latents_that_are_not_finite_stop_with_the_name_of_the_picture(tmp_path: Path) -> None:
    examples = read(tiny.write_pictures(tmp_path / "pictures", 1))
    with pytest.raises(InputError, match="NaN or Inf for .*quokka000.png"):
        encoded(examples, lambda pixels: (pixels * torch.nan, pixels), None)


def make_pictures(
    count: int, members: int, repeats: int = 1, shapes: tuple[tuple[int, ...], ...] = ((4, 8, 8),)
) -> Pictures:
    """Pictures without pixels; the first ``members`` are members."""
    examples = [type(example(0))(**(vars(example(index)) | {"repeats": repeats})) for index in range(count)]
    moments = [
        Moments(torch.zeros(shapes[index % len(shapes)]), torch.ones(shapes[index % len(shapes)]))
        for index in range(count)
    ]
    return Pictures(
        examples,
        moments,
        [index < members for index in range(count)],
        lambda captions: torch.zeros(len(captions), 1, 77, dtype=torch.long),
        shuffle_caption=False,
        keep_tokens=0,
        caption_separator=",",
        seed=0,
    )


def rows_of(members: MemberBatches, steps: range) -> list[tuple[int, ...]]:
    """Rows of every batch of some steps."""
    return [batch.rows for step in steps for batch in members.of_step(step)]


@pytest.mark.parametrize(("batch_size", "accumulation", "processes"), [(1, 1, 1), (4, 1, 1), (3, 2, 1), (2, 1, 2)])
def test_every_member_is_used_repeats_times_an_epoch_and_no_non_member_ever(
    batch_size, accumulation, processes
) -> None:
    """Exposures over three epochs match the split: method.md section 13, check 7."""
    pictures = make_pictures(20, 12, repeats=3, shapes=((4, 8, 8), (4, 8, 16)))
    counted: Counter[int] = Counter()
    for rank in range(processes):
        members = MemberBatches(
            pictures, batch_size=batch_size, accumulation=accumulation, seed=1, rank=rank, processes=processes
        )
        for step in range(3 * members.steps_per_epoch):
            for batch in members.of_step(step):
                assert batch.is_member.all()
                counted.update(batch.rows)
    assert set(counted) == set(range(12)) and all(count == 9 for count in counted.values())


def test_the_order_is_a_function_of_seed_and_epoch_and_can_be_entered_anywhere() -> None:
    pictures = make_pictures(20, 10)
    one, other = (MemberBatches(pictures, batch_size=3, accumulation=1, seed=1) for _ in range(2))
    straight = rows_of(one, range(12))
    assert rows_of(other, range(7, 12)) == straight[7:] and rows_of(other, range(0, 7)) == straight[:7]
    assert straight[:4] != straight[4:8]
    assert rows_of(MemberBatches(pictures, batch_size=3, accumulation=1, seed=2), range(4)) != straight[:4]


def test_membership_belongs_to_the_picture_whatever_the_order() -> None:
    """R1 of method.md: shuffling, bucketing and re-opening never move a picture to another side."""
    pictures = make_pictures(30, 11, shapes=((4, 8, 8), (4, 4, 8), (4, 8, 4)))
    for seed in range(3):
        for batch in pictures.batches_by_shape(list(torch.randperm(30, generator=stream(seed)).tolist()), 4, 0, "look"):
            assert batch.is_member.tolist() == [row < 11 for row in batch.rows]


def test_aux_cycles_are_endless_reshuffled_and_never_repeat_a_stale_batch() -> None:
    cycle = AuxCycle(list(range(100, 107)), 1, "members-aux")
    taken = [row for start in range(0, 28, 4) for row in cycle.take(start, 4)]
    rounds = [taken[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(one) == list(range(100, 107)) for one in rounds) and len({tuple(one) for one in rounds}) > 1
