"""Sizes and looks: buckets, scaling, crops, colours, masks."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from library.data.augmentation import (
    METHODS,
    Crop,
    as_tensor,
    centre_crop,
    chosen_crop,
    face_crop,
    face_of,
    face_range,
    fitted_pixels,
    plain_framing,
    random_crop,
    recoloured,
    use_of,
)
from library.data.buckets import (
    assign_buckets,
    bucket_sizes,
    cropped_share,
    nearest_bucket,
    report_buckets,
    shrunk_bucket,
)
from library.data.examples import Example, open_picture, picture_of, pixel_hash
from library.data.latent_source import CachedLatents, FreshLatents, latent_mask, plain_mask
from library.errors import InputError
from library.seeding import stream
from tests.helpers import tiny
from tests.helpers.data_toy import example, read, subset


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


def test_without_upscaling_the_rounding_with_the_smaller_aspect_error_wins() -> None:
    """1000 x 700 to the area of 512 x 512: 611.9 x 428.4.

    Width rounded to 576 gives 576 x 403 -> 576 x 384 (1.5); height rounded to 384 gives 548 x 384 -> 512 x 384 (1.33).
    The picture has 1.4286: log errors 0.0488 and 0.0690, so the width is kept.
    """
    assert shrunk_bucket(1000, 700, (512, 512), 64) == (576, 384)
    assert shrunk_bucket(700, 1000, (512, 512), 64) == (384, 576)


def test_without_upscaling_no_picture_is_ever_enlarged() -> None:
    for width in range(64, 1400, 37):
        for height in range(64, 1400, 41):
            wide, high = shrunk_bucket(width, height, (512, 512), 64)
            assert wide <= width and high <= height and wide * high <= 512 * 512
            assert wide % 64 == high % 64 == 0


def test_each_picture_gets_its_size_from_its_own_rules() -> None:
    small = example(1, resolution="64")
    wide = replace(example(2, resolution="64", enable_bucket=True, min_bucket_reso=32, bucket_reso_steps=8), width=64)
    assert assign_buckets([small, wide], 8) == [(64, 64), (128, 32)]


def test_sizes_that_the_model_cannot_take_are_refused_for_all_datasets_at_once() -> None:
    with pytest.raises(InputError) as caught:
        assign_buckets(
            [example(1, resolution="500,512"), example(2, enable_bucket=True, bucket_reso_steps=24),
             example(3, enable_bucket=True, min_bucket_reso=250)], 64,
        )  # fmt: skip
    for text in ("resolution must be a multiple of 64 pixels for this model, got 500", "bucket_reso_steps must be a",
                 "min_bucket_reso must be a multiple of 64 pixels for this model, got 250"):  # fmt: skip
        assert text in str(caught.value)


def test_enlarged_and_heavily_cropped_images_and_thin_buckets_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    examples = [example(1, batch_size=4), replace(example(2, batch_size=4), width=100, height=40)]
    assert cropped_share(examples[1], (32, 32)) == pytest.approx(0.6)
    with caplog.at_level(logging.INFO, "library"):
        report_buckets(examples, [(32, 32), (32, 32)], [1, 1])
    assert "1 of 2 images are smaller than their training size" in caplog.text
    assert "1 of 2 images lose more than 20 %" in caplog.text
    assert "1 buckets have fewer images per epoch than a batch" in caplog.text and "32x32 (2)" in caplog.text
    caplog.clear()
    report_buckets(examples, [(16, 16), (100, 40)], [4, 0])
    assert caplog.text == ""


def test_pixels_are_scaled_to_cover_and_cropped_in_the_centre() -> None:
    picture = Image.new("RGB", (40, 20), "black")
    picture.paste("white", (10, 0, 30, 20))
    pixels = fitted_pixels(picture, (10, 10))
    assert pixels.shape == (3, 10, 10) and torch.all(pixels == 1)


def test_every_scaling_method_works_and_the_unset_one_is_area_to_shrink_and_lanczos_to_enlarge() -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    for size, method in (((20, 20), "area"), ((60, 60), "lanczos")):
        results = {name: fitted_pixels(noise, size, name) for name in METHODS}
        assert torch.equal(results[method], fitted_pixels(noise, size))
        assert len({tuple(one.flatten().tolist()) for one in results.values()}) == 5


def painted(folder: Path, name: str = "ramp.png", size: tuple[int, int] = (64, 32), **rules: object) -> Example:
    """A picture whose red level is the column and whose green level the row, times 3 and 7."""
    levels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    levels[..., 0] = np.arange(size[0]) * 3
    levels[..., 1] = np.arange(size[1])[:, None] * 7
    Image.fromarray(levels).save(folder / name)
    identity = pixel_hash(open_picture(folder / name))
    return replace(
        example(1, pixels=identity), path=folder / name, width=size[0], height=size[1], subset=subset(**rules)
    )


def test_random_crops_reach_every_place_and_keep_to_the_picture() -> None:
    crops = [random_crop(64, 32, (32, 32), stream(1, index)) for index in range(600)]
    assert {crop.left for crop in crops} == set(range(33)) and {crop.top for crop in crops} == {0}
    assert centre_crop(64, 32, (32, 32)).left == 16


def test_faces_are_read_from_the_end_of_the_name() -> None:
    named = replace(example(1), path=Path("/p/my_cat_100_50_20_30.png"))
    assert face_of(named) == (100, 50, 20, 30)
    for name in ("cat.png", "100_50_20_30.png", "cat_a_50_20_30.png", "cat_1_2_0_5.png"):
        assert face_of(replace(named, path=Path(name))) is None
    for text in ("2", "3,2", "0,1", "a,b", "1,2,3"):
        with pytest.raises(InputError, match="face_crop_aug_range must be 'least,most'"):
            face_range(text)


def test_face_crops_keep_the_face_in_the_centre_at_a_scale_between_the_two_bounds() -> None:
    """A face of 100 px in 1000 x 800, training size 64: the side holds 2 .. 4 faces, so the scale is 0.16 .. 0.32."""
    one = replace(example(1), path=Path("/p/a_500_400_100_80.png"), width=1000, height=800)
    crops = [face_crop(one, (64, 64), (2.0, 4.0), False, stream(1, index)) for index in range(300)]
    scales = [crop.covered[0] / 1000 for crop in crops]
    assert min(scales) >= 0.16 and max(scales) <= 0.32 and max(scales) - min(scales) > 0.14
    for crop, scale in zip(crops, scales, strict=True):
        assert abs(crop.left + 32 - 500 * scale) <= 1 and abs(crop.top + 32 - 400 * scale) <= 1
    corner = replace(one, path=Path("/p/a_990_10_100_80.png"))
    crop = face_crop(corner, (64, 64), (2.0, 4.0), False, stream(1))
    assert crop.left == crop.covered[0] - 64 and crop.top == 0
    wandering = {face_crop(one, (64, 64), (2.0, 2.0), True, stream(2, index)).left for index in range(200)}
    assert len(wandering) > 40


def test_a_face_crop_never_shows_less_than_the_training_size() -> None:
    tall = replace(example(1), path=Path("/p/a_10_10_5_5.png"), width=40, height=90)
    crop = face_crop(tall, (64, 64), (1.0, 50.0), False, stream(1))
    assert crop.covered[0] >= 64 and crop.covered[1] >= 64


def test_colours_change_in_a_third_of_all_uses_a_little() -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    changes = [
        np.abs(np.asarray(recoloured(picture, stream(1, index)), dtype=int) - np.asarray(picture, dtype=int)).max()
        for index in range(300)
    ]
    share = sum(change > 0 for change in changes) / 300
    assert abs(share - 1 / 3) < 0.1 and max(changes) < 90


def test_gamma_and_hue_are_what_their_formulas_say() -> None:
    """Found by their draws: one use that turns the hue of pure red, one that changes the gamma of grey 128."""
    kinds = {"hue": 0, "gamma": 0}
    for index in range(200):
        changed, kind, amount = torch.rand(3, generator=stream(3, index)).tolist()
        if changed < 1 / 3 and kind < 0.5 and abs(2 * amount - 1) > 0.2:
            turned = recoloured(Image.new("RGB", (1, 1), (255, 0, 0)), stream(3, index)).getpixel((0, 0))
            wanted = Image.new("HSV", (1, 1), (round((2 * amount - 1) * 8 / 180 * 255) % 256, 255, 255))
            assert turned == wanted.convert("RGB").getpixel((0, 0))
            kinds["hue"] += 1
        elif changed < 1 / 3 and kind >= 0.5:
            grey = recoloured(Image.new("RGB", (1, 1), (128, 128, 128)), stream(3, index)).getpixel((0, 0))
            assert grey == (round(255 * (128 / 255) ** (1 + (2 * amount - 1) * 0.05)),) * 3
            kinds["gamma"] += 1
    assert min(kinds.values()) > 10


def masked(folder: Path, **rules: object) -> Example:
    """A ramp and a mask whose red level follows the picture's, so that any use shows whether both moved alike."""
    one = painted(folder, **rules)
    with Image.open(one.path) as picture:
        picture.save(folder / "mask.png")
    return replace(one, mask=folder / "mask.png")


def test_a_mask_goes_through_the_same_crop_mirror_and_scaling_as_its_picture(tmp_path: Path) -> None:
    one = masked(tmp_path, random_crop=True, flip_aug=True)
    seen = set()
    for index in range(40):
        use = use_of(one, (16, 16), stream(1, index))
        pixels, mask = use.pixels, use.mask
        assert mask is not None and torch.allclose((pixels[0] + 1) / 2, mask[0], atol=1e-6)
        seen.add(float(mask[0, 0, 0]))
    assert len(seen) > 15
    mask = use_of(one, (16, 16), None).mask
    assert mask is not None and torch.allclose(mask, plain_mask(one, (16, 16)))


def test_a_framing_is_size_corner_and_crop_of_the_use_and_a_mirror_turns_the_corner(tmp_path: Path) -> None:
    """By hand: 40 x 20 pixels, crop 16 x 16: scaled to 32 x 16, 8 cut on both sides. Of 33 x 16, 8 left and 9 right."""
    example = replace(painted(tmp_path), width=40, height=20)
    assert plain_framing(example, (16, 16)).tolist() == [20, 40, 0, 8, 16, 16]
    odd = Crop((33, 16), 8, 0, (16, 16))
    assert odd.framing(66, 32).tolist() == [32, 66, 0, 8, 16, 16]
    assert odd.framing(66, 32, mirrored=True).tolist() == [32, 66, 0, 9, 16, 16]


def test_the_framing_of_a_random_crop_is_that_of_its_pixels(tmp_path: Path) -> None:
    one = painted(tmp_path, random_crop=True, flip_aug=True)
    corners = set()
    for index in range(20):
        use = use_of(one, (16, 16), stream(1, index))
        height, width, top, left, *size = use.framing.tolist()
        crop = Crop(chosen_crop(one, (16, 16), stream(1, index)).covered, left, top, (16, 16))
        whole = picture_of(one)
        plain, turned = (as_tensor(crop.of(view, None)) / 127.5 - 1 for view in (whole, ImageOps.mirror(whole)))
        assert (height, width, *size) == (one.height, one.width, 16, 16)
        assert torch.equal(use.pixels, plain) or torch.allclose(use.pixels, turned, atol=0.02)
        corners.add((top, left))
    assert len(corners) > 3


def test_masks_are_averaged_over_each_latent_pixel() -> None:
    mask = torch.tensor([[0.0, 1.0, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0]])[None]
    assert latent_mask(mask, (4, 1, 2))[0].tolist() == [[0.5, 0.25]] and latent_mask(None, (4, 1, 2)) is None


def mean_encoder(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stands for the VAE: 2 x 2 means of the red channel."""
    mean = torch.nn.functional.avg_pool2d(pixels[:, :1], 2)
    return mean, torch.full_like(mean, 0.1)


def test_fresh_looks_change_with_the_stream_and_plain_ones_do_not(tmp_path: Path) -> None:
    one = masked(tmp_path, random_crop=True, flip_aug=True, color_aug=True)
    fresh = FreshLatents([one], [(16, 16)], [(1, 8, 8)], mean_encoder, lambda _, moments, mirrored: moments, 2)
    looks = [fresh.of([0], [stream(1, index)])[0] for index in range(6)]
    again = fresh.of([0], [stream(1, 3)])[0]
    assert torch.equal(looks[3].moments.mean, again.moments.mean) and torch.equal(looks[3].mask, again.mask)
    assert len({float(look.moments.mean.sum()) for look in looks}) >= 4
    assert torch.equal(fresh.of([0], None)[0].moments.mean, fresh.of([0], None)[0].moments.mean)


def test_kept_mirror_images_bring_their_mirrored_mask(tmp_path: Path) -> None:
    one = masked(tmp_path, flip_aug=True)
    fresh = FreshLatents([one], [(16, 16)], [(1, 8, 8)], mean_encoder, lambda _, moments, mirrored: moments, 2)
    plain = fresh.of([0], None)[0]
    turned = replace(plain.moments, mean=plain.moments.mean.flip(-1))
    kept = CachedLatents([one], [(16, 16)], [plain.moments], [turned])
    looks = [kept.of([0], [stream(1, index)])[0] for index in range(30)]
    assert {bool((look.moments.mean[..., 0] < look.moments.mean[..., -1]).all()) for look in looks} == {True, False}
    for look in looks:
        assert torch.equal((look.mask[..., 0] < look.mask[..., -1]).all(),
                           (look.moments.mean[..., 0] < look.moments.mean[..., -1]).all())  # fmt: skip


def test_missing_and_missized_masks_are_named(tmp_path: Path) -> None:
    folder, masks = tiny.write_pictures(tmp_path / "pictures", 3), tmp_path / "masks"
    masks.mkdir()
    tiny.write_picture(masks / "quokka000.png", 0)
    tiny.write_picture(masks / "quokka001.png", 0, (20, 16))
    with pytest.raises(InputError) as caught:
        read(folder, masked_loss=True, conditioning_data_dir=str(masks))
    assert "quokka001.png' is 20x16 pixels, but its picture 16x16" in str(caught.value)
    assert "quokka002.png' has no mask in" in str(caught.value) and "quokka000" not in str(caught.value)


def test_an_alpha_mask_needs_an_alpha_channel(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path / "pictures", 2) / "1_zebrafolder"
    levels = np.full((16, 16, 4), 255, dtype=np.uint8)
    levels[:, :8, 3] = 0
    Image.fromarray(levels).save(folder / "quokka000.png")
    with pytest.raises(InputError, match="alpha_mask: '.*quokka001.png' has no alpha channel"):
        read(folder.parent, alpha_mask=True)
    (folder / "quokka001.png").unlink()
    (one,) = read(folder.parent, alpha_mask=True).candidates
    mask = plain_mask(one, (16, 16))
    assert mask is not None and mask[0, 0].tolist() == [0.0] * 8 + [1.0] * 8
    assert not math.isnan(float(mask.sum()))


def test_face_crops_without_a_face_in_the_name_are_refused(tmp_path: Path) -> None:
    folder = tiny.write_pictures(tmp_path, 2)
    with pytest.raises(
        InputError, match="2 pictures of .* do not state the position of the face; name them NAME_x_y_w_h"
    ):
        read(folder, face_crop_aug_range="2,4", cache_latents=False)
