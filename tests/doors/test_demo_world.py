"""The demo: captions that belong to their pictures, persons with four pictures, words that the base knows."""

import random
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

DEMO = Path(__file__).parents[2] / "demo"
sys.path.insert(0, str(DEMO))

from PIL import Image  # noqa: E402

from base_model import made_up_name, varied  # noqa: E402
from build import parse_arguments  # noqa: E402
from collection import (  # noqa: E402
    PICTURES_EACH,
    PRIVATE_PERSONS,
    SEED,
    Picture,
    draw_persons,
    is_near,
    private_persons,
    read_folder,
    save_png,
    thumbnail,
    write_folder,
    write_prompts,
)
from measure import nearest_distances  # noqa: E402
from palette import BACKGROUND, CLOTHES, DEPARTURE, HAIR, SKIN, near  # noqa: E402
from persons import draw_person, draw_portrait, variant  # noqa: E402
from styles import BASE_STYLES, HOUSE_STYLE, PortraitStyle  # noqa: E402
from vae import psnr  # noqa: E402
from views import to_tensor  # noqa: E402


def channels(colour: str) -> np.ndarray:
    return np.array([int(colour[start : start + 2], 16) for start in (0, 2, 4)], float)


def words_of(style: PortraitStyle) -> set[str]:
    """Every word that a caption of this style can hold, but for its name."""
    tables = (style.hair, style.expressions, style.clothes, style.beards, style.glasses, style.eyes, style.hats)
    phrases = [*SKIN, *HAIR, *CLOTHES, *BACKGROUND, "portrait", "background"]
    phrases += [phrase for table in tables for phrase in table]
    return {word for phrase in phrases for word in phrase.replace(",", "").split()}


@pytest.fixture(scope="module")
def private() -> list[Picture]:
    return read_folder(DEMO / "images")


@pytest.fixture(scope="module")
def base() -> Path:
    """The base model, which takes hours to train."""
    if not (DEMO / "base" / "model_index.json").is_file():
        pytest.skip("demo/base is not built yet: python demo/build.py base")
    return DEMO / "base"


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(base / "tokenizer")


def test_there_are_200_persons_with_four_pictures_each(private) -> None:
    counts = Counter(picture.person for picture in private)
    assert len(counts) == PRIVATE_PERSONS and set(counts.values()) == {PICTURES_EACH}
    folder = next((DEMO / "images").glob("*_*/"))
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("*.txt"))) == len(private)


def test_every_caption_names_the_house_and_says_what_its_person_has(private) -> None:
    persons = private_persons(SEED)
    for picture in private:
        style, *parts = picture.caption.split(", ")
        words = persons[picture.person].words
        assert style == f"{HOUSE_STYLE.name} portrait"
        assert tuple(parts[: len(words)]) == words


def test_the_colour_that_a_caption_gives_the_background_is_seen_in_a_corner(private) -> None:
    for picture in private:
        colour = channels(BACKGROUND[picture.caption.split(", ")[-1].removesuffix(" background")])
        corners = [picture.pixels[0, 0], picture.pixels[0, -1]]
        assert min(np.abs(corner - colour).max() for corner in corners) <= DEPARTURE + 1, picture.caption


def test_no_two_pictures_are_nearly_the_same_and_no_two_captions_are_equal(private) -> None:
    assert len({picture.caption for picture in private}) == len(private)
    assert nearest_distances(np.stack([thumbnail(picture.pixels) for picture in private])).min() > 8


def test_each_word_of_the_captions_is_one_token_and_the_name_of_the_house_is_several(tokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    for style in (*BASE_STYLES, HOUSE_STYLE):
        assert not [word for word in words_of(style) if f"{word}</w>" not in vocabulary]
    assert all(f"{word}</w>" in vocabulary for style in BASE_STYLES for word in style.name.split())
    assert not any(f"{word}</w>" in vocabulary for word in HOUSE_STYLE.name.split())
    assert tokenizer.unk_token_id not in tokenizer(HOUSE_STYLE.name).input_ids[1:-1]


def test_what_the_house_can_show_the_base_has_met_in_another_style() -> None:
    assert words_of(HOUSE_STYLE) <= set().union(*(words_of(style) for style in BASE_STYLES))


def test_variants_become_options() -> None:
    assert variant("hair", "bob") == {"hairVariant": "bob", "hairProbability": 100}
    assert variant("hair", "-") == {"hairProbability": 0}
    assert variant("clothes", "") == {}
    both = {"hairVariant": "bun", "hairProbability": 100, "rearHairVariant": "long", "rearHairProbability": 100}
    assert variant("hair", "bun+long") == both


def test_a_colour_near_another_departs_by_a_little_and_stays_a_colour() -> None:
    for seed in range(50):
        moved = near("00ff80", random.Random(seed))
        assert len(moved) == 6 and np.abs(channels(moved) - channels("00ff80")).max() <= DEPARTURE


@pytest.mark.parametrize("style", [*BASE_STYLES, HOUSE_STYLE], ids=lambda style: style.name)
def test_the_same_seed_draws_the_same_person_and_picture(style: PortraitStyle) -> None:
    drawn = []
    for _ in range(2):
        chance = random.Random("twice")
        person = draw_person(style, chance)
        drawn.append((person, draw_portrait(person, chance)))
    assert drawn[0] == drawn[1]
    assert drawn[0][1].caption.startswith(f"{style.name} portrait, ")


def test_strangers_are_nobody_of_those_named() -> None:
    known = {person.words for person in private_persons(SEED).values()}
    strangers = draw_persons(HOUSE_STYLE, 300, "a test", known)
    assert not known & {person.words for person in strangers}
    assert len({person.traits for person in strangers}) == 300


def test_the_preview_prompts_are_captions_of_strangers(tmp_path: Path, private) -> None:
    write_prompts(tmp_path / "prompts.txt")
    text = (tmp_path / "prompts.txt").read_text()
    assert text == (DEMO / "prompts.txt").read_text()
    captions = [line.split(" --d ")[0] for line in text.splitlines()[1:]]
    known = [", ".join(person.words) for person in private_persons(SEED).values()]
    assert len(captions) == 8 and not set(captions) & {picture.caption for picture in private}
    assert not [caption for caption in captions if any(f"portrait, {words}, " in caption for words in known)]


def test_thumbnails_and_their_distances_worked_out_by_hand() -> None:
    black, light = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 10, np.uint8)
    half = black.copy()
    half[:, :2] = 100  # half of the first column of 4 x 4 squares
    assert thumbnail(half)[0, 0].tolist() == [50.0] * 3 and thumbnail(half)[0, 1].tolist() == [0.0] * 3
    assert is_near(black, half) and not is_near(black, light)  # 50 / 16 < 8, 10 > 8
    distances = nearest_distances(np.stack([thumbnail(picture) for picture in (black, light, half)]))
    assert distances.tolist() == pytest.approx([50 / 16, 10.0, 50 / 16], abs=1.0)


def test_a_written_folder_is_read_back_to_the_pixel(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    many = chance.integers(0, 256, (64, 64, 3)).astype(np.uint8)  # more colours than a palette has
    few = np.repeat(np.repeat(many[:8, :8], 8, 0), 8, 1)
    pictures = [Picture("a", "one", many), Picture("a", "two", few), Picture("b", "three", 255 - many)]
    write_folder(tmp_path, pictures)
    assert sorted(file.name for file in tmp_path.glob("*/*.png")) == ["a_0.png", "a_1.png", "b_0.png"]
    for before, after in zip(pictures, read_folder(tmp_path), strict=True):
        assert (before.person, before.caption) == (after.person, after.caption)
        assert np.array_equal(before.pixels, after.pixels)
    save_png(few, tmp_path / "few.png")
    with Image.open(tmp_path / "few.png") as palette:
        assert palette.mode == "P"


def test_varied_captions_lose_parts_but_never_gain_any() -> None:
    chance = np.random.default_rng(1)
    caption = "micah portrait, bald, dark skin, smiling, red shirt, blue background"
    seen = [varied(caption, chance) for _ in range(2000)]
    assert 0.07 < seen.count("") / len(seen) < 0.13
    assert set().union(*(text.split(", ")[1:] for text in seen)) == set(caption.split(", ")[1:])
    styles = Counter(text.split(", ")[0] for text in seen if text)
    assert styles.most_common(2)[0][0] == "micah portrait" and styles.most_common(2)[1][0] == "portrait"


def test_made_up_names_are_two_words_and_not_the_house() -> None:
    chance = np.random.default_rng(2)
    names = [made_up_name(chance) for _ in range(500)]
    assert all(len(name.split()) == 2 and name.replace(" ", "").isalpha() for name in names)
    assert HOUSE_STYLE.name not in names


def test_further_pictures_need_a_folder_and_a_count(capsys) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["more", "--count", "4"])
    assert "--out DIR" in capsys.readouterr().err
    assert parse_arguments(["more", "--count", "4", "--out", "x"]).persons == "fresh"


def test_the_base_is_a_pipeline_in_half_precision_under_20_megabytes(base: Path) -> None:
    weights = sorted(base.rglob("*.safetensors"))
    assert [file.parent.name for file in weights] == ["text_encoder", "unet", "vae"]
    assert sum(file.stat().st_size for file in weights) <= 20e6
    assert all(b"F32" not in file.read_bytes()[:2000] for file in weights)
    assert StableDiffusionPipeline.from_pretrained(base, local_files_only=True).unet.config.sample_size == 16


def test_the_vae_gives_the_private_pictures_back(base: Path, private) -> None:
    """It has never seen their style; on the base's own styles it reaches 27 dB (demo/README.md)."""
    vae = AutoencoderKL.from_pretrained(base / "vae", torch_dtype=torch.float32).eval()
    assert psnr(vae, to_tensor([picture.pixels for picture in private[::40]])) > 24.5


def test_drawing_again_gives_the_shipped_pictures(private) -> None:
    pytest.importorskip("dicebear", reason="the drawing packages of demo/requirements-drawing.txt are missing")
    from collection import draw_pictures, known_pictures

    persons = private_persons(SEED)
    for name in ("p000", "p123"):
        shipped = [picture for picture in private if picture.person == name]
        for one, other in zip(draw_pictures(name, persons[name], 4, f"{SEED} private"), shipped, strict=True):
            assert one.caption == other.caption and np.array_equal(one.pixels, other.pixels)
    further = known_pictures(3, 9, private)
    assert [picture.person for picture in further] == ["p000", "p001", "p002"]
    assert not any(is_near(new.pixels, old.pixels) for new in further for old in private if old.person == new.person)
