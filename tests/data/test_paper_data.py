"""The paper's set-ups: converters on archives of the raw shape, and a run planned on what they write."""

import json
import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import PLoRA
import SPLoRA
from library.data.split import SIDES
from library.errors import InputError
from tools import convert_afhq, convert_celeba
from tools.convert_celeba import PRESETS, Preset, choose, deal_sides, draw_counts, sentence
from tools.picture_archive import PictureArchive

ROOT = Path(__file__).parent.parent.parent
ATTRIBUTES = ("Smiling", "Young", "Male", "No_Beard", "Black_Hair", "Wearing_Hat")


def draw(path: Path, number: int, size: tuple[int, int]) -> None:
    """A small JPEG of noise."""
    noise = np.random.default_rng(number).integers(0, 255, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path, quality=90)


@pytest.fixture(scope="module")
def celeba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 people of 8 pictures and 3 of 2, in CelebA's raw shape: a zip of portraits and two listings."""
    place = tmp_path_factory.mktemp("celeba")
    pictures, identities, attributes = place / "img_align_celeba", [], []
    pictures.mkdir()
    for number in range(246):
        name, person = f"{number + 1:06d}.jpg", 1000 + (number % 30 if number < 240 else 30 + number % 3)
        draw(pictures / name, number, (22, 27))
        identities.append(f"{name} {person}")
        signs = [1, -1, 1 if person % 3 == 0 else -1, -1, 1, -1]
        attributes.append(f"{name} {'  '.join(map(str, signs))}")
    with zipfile.ZipFile(place / "img_align_celeba.zip", "w") as archive:
        for file in sorted(pictures.iterdir()):
            archive.write(file, f"img_align_celeba/{file.name}")
    (place / "identity_CelebA.txt").write_text("\n".join(identities) + "\n")
    (place / "list_attr_celeba.txt").write_text("\n".join(["246", " ".join(ATTRIBUTES), *attributes]) + "\n")
    return place


def arguments(celeba: Path, output: Path, **changed: object) -> list[str]:
    """A command line of the converter; None leaves an option out."""
    options = {"images": celeba / "img_align_celeba.zip", "identities": celeba / "identity_CelebA.txt",
               "attributes": celeba / "list_attr_celeba.txt", "output": output, "side": 16} | changed  # fmt: skip
    return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


def test_small_is_25_people_of_8_pictures_in_kohya_folders_with_the_trigger_word_first(
    celeba: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert convert_celeba.main(["small", *arguments(celeba, tmp_path / "out")]) == 0
    assert "50 members-aux, 50 members-test, 50 non-members-aux, 50 non-members-test" in capsys.readouterr().out
    folders = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert len(folders) == 25 and all(len(list(folder.glob("*.png"))) == 8 for folder in folders)
    for folder in folders:
        person = folder.name.removeprefix("1_cele")
        for file in folder.glob("*.txt"):
            who = "man" if int(person) % 3 == 0 else "woman"
            text = file.read_text().strip()
            assert text.startswith(f"cele{person}, a smiling {who} with black hair") and len(file.stem) == 6
    with Image.open(next(folders[0].glob("*.png"))) as picture:
        assert picture.size == (16, 16)


def test_the_papers_sides_hold_two_pictures_of_each_person(celeba: Path, tmp_path: Path) -> None:
    assert convert_celeba.main(["small", *arguments(celeba, tmp_path / "out")]) == 0
    file = tmp_path / "out" / "paper_split.json"
    entries = json.loads(file.read_text())["images"]
    sides = Counter((Path(entry["path"]).parent.name, entry["side"]) for entry in entries)
    assert len(entries) == 200 and set(sides.values()) == {2} and len(sides) == 25 * 4
    assert file.stat().st_mode & 0o777 == 0o600


def test_gender_is_14_women_and_6_men(celeba: Path, tmp_path: Path) -> None:
    assert convert_celeba.main(["gender", *arguments(celeba, tmp_path / "out")]) == 0
    men = [int(folder.name.removeprefix("1_cele")) % 3 == 0 for folder in (tmp_path / "out").glob("1_cele*")]
    assert (len(men), sum(men)) == (20, 6)


def test_varying_is_252_pictures_of_100_people_one_to_four_each() -> None:
    people = {person: [f"{person}-{number}" for number in range(4)] for person in range(120)}
    chosen = choose(PRESETS["varying"], people, lambda person: True, seed=3)
    counts = Counter(len(names) for names in chosen.values())
    assert len(chosen) == 100 and sum(map(len, chosen.values())) == 252 and set(counts) == {1, 2, 3, 4}
    assert min(counts.values()) >= 15, "uniform but for the few moved to meet the total"
    assert set(Counter(deal_sides(chosen).values()).values()) == {63} and len(deal_sides(chosen)) == 252


def test_counts_move_to_the_total_from_either_side() -> None:
    for total in (10, 25, 40):
        counts = draw_counts(Preset(10, 1, 4, total), seed=0)
        assert sum(counts) == total and min(counts) >= 1 and max(counts) <= 4


def test_the_same_seed_gives_the_same_pictures_and_another_seed_others(celeba: Path, tmp_path: Path) -> None:
    written = []
    for name, seed, images in (
        ("a", 1, "img_align_celeba.zip"),
        ("b", 1, "img_align_celeba"),
        ("c", 2, "img_align_celeba"),
    ):
        assert (
            convert_celeba.main(["small", *arguments(celeba, tmp_path / name, seed=seed, images=celeba / images)]) == 0
        )
        files = sorted((tmp_path / name).rglob("*.png"))
        written.append({file.relative_to(tmp_path / name): file.read_bytes() for file in files})
    assert written[0] == written[1] and set(written[1]) != set(written[2])


def test_portraits_are_cut_square_in_the_centre(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 30), "red")
    picture.paste("blue", (0, 5, 20, 25))
    picture.save(tmp_path / "a.png")
    square = PictureArchive(str(tmp_path)).square("a.png", 20)
    assert square.getcolors() == [(400, (0, 0, 255))]


def test_a_sentence_says_what_the_attributes_say() -> None:
    assert sentence({"Male", "Smiling", "Gray_Hair", "Eyeglasses"}) == (
        "a smiling man with gray hair and a beard wearing glasses"
    )
    assert sentence({"Young", "No_Beard"}) == "a young woman"


@pytest.mark.parametrize(
    ("preset", "changed", "expected"),
    [
        ("small", {"attributes": None}, "--attributes list_attr_celeba.txt is needed"),
        ("large", {}, "100 people with 8 pictures each are needed; the archive has 30"),
        ("small", {"images": "nothing.zip"}, "neither a folder nor a zip file"),
        ("small", {"identities": "nothing.txt"}, "identities 'nothing.txt' is not a file"),
        ("small", {"blip": "/nowhere/blip"}, "blip '/nowhere/blip' cannot be opened"),
    ],
)
def test_what_is_missing_is_said(
    celeba: Path, tmp_path: Path, capsys: pytest.CaptureFixture, preset: str, changed: dict, expected: str
) -> None:
    assert convert_celeba.main([preset, *arguments(celeba, tmp_path / "out", **changed)]) == 2
    assert expected in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_listings_of_another_shape_and_pictures_without_attributes_are_named(celeba: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_text("000001.jpg 2880\n000002.jpg\n")
    with pytest.raises(InputError, match=r"odd.txt' line 2: expected a file name and a number"):
        convert_celeba.read_identities(str(tmp_path / "odd.txt"))
    lines = (celeba / "list_attr_celeba.txt").read_text().splitlines()
    (tmp_path / "few.txt").write_text("\n".join(lines[:40]) + "\n")
    assert convert_celeba.main(["small", *arguments(celeba, tmp_path / "out", attributes=tmp_path / "few.txt")]) == 2


def test_a_folder_that_holds_something_is_not_written_into(celeba: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    assert convert_celeba.main(["small", *arguments(celeba, tmp_path / "out")]) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def write_blip(folder: Path) -> Path:
    """A tiny captioning model with random weights."""
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cat", "[DEC]"]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    text = {"hidden_size": 8, "encoder_hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "projection_dim": 8, "vocab_size": len(words), "bos_token_id": 9,
            "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
              "image_size": 16, "patch_size": 8, "projection_dim": 8}  # fmt: skip
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    BlipProcessor(BlipImageProcessor(size={"height": 16, "width": 16}), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_captions_come_from_blip_where_a_model_is_given(celeba: Path, tmp_path: Path) -> None:
    blip = write_blip(tmp_path / "blip")
    texts = []
    for name in ("one", "two"):
        options = arguments(celeba, tmp_path / name, attributes=None, blip=blip)
        assert convert_celeba.main(["small", *options]) == 0
        texts.append([file.read_text() for file in sorted((tmp_path / name).rglob("*.txt"))])
    assert texts[0] == texts[1] and all(text.startswith("cele1") for text in texts[0])


@pytest.mark.slow
@pytest.mark.parametrize("door", [PLoRA, SPLoRA], ids=lambda door: door.DOOR)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "50 members-aux, 50 members-test, 50 non-members-aux, 50 non-members-test"),
        (["--split_file", "out/paper_split.json"], "50 members-aux, 50 members-test, 50 non-members-aux"),
        (["--group_by", "folder"], "48 members-aux"),
    ],
    ids=["this picture", "the paper's sides", "this person"],
)
def test_the_celeba_config_plans_a_run_on_what_the_converter_wrote(
    door, celeba: Path, tmp_path: Path, model_folder: Path, monkeypatch, capsys, words: list[str], expected: str
) -> None:
    assert convert_celeba.main(["small", *arguments(celeba, tmp_path / "out")]) == 0
    monkeypatch.chdir(tmp_path)
    small = ["--pretrained_model_name_or_path", str(model_folder), "--train_data_dir", "out", "--resolution", "16",
             "--dry_run"]  # fmt: skip
    assert door.main(["--config_file", str(ROOT / "configs/celeba.toml"), *small, *words]) == 0
    told = capsys.readouterr().out
    assert expected in told and "each member is used 400 times in total" in told


@pytest.mark.slow
def test_people_stay_together_when_asked_for_persons(celeba: Path, tmp_path: Path, model_folder: Path) -> None:
    assert convert_celeba.main(["small", *arguments(celeba, tmp_path / "data")]) == 0
    config = ["--config_file", str(ROOT / "configs/celeba.toml"), "--group_by", "folder", "--resolution", "16"]
    paths = ["--pretrained_model_name_or_path", str(model_folder), "--train_data_dir", str(tmp_path / "data")]
    short = ["--output_dir", str(tmp_path / "run"), "--max_train_steps", "2", "--network_dim", "2"]
    assert SPLoRA.main([*config, *paths, *short, "--attack_eval_draws", "1"]) == 0
    entries = json.loads((tmp_path / "run" / "split.json").read_text())["images"]
    sides_of: dict[str, set[str]] = {}
    for entry in entries:
        sides_of.setdefault(entry["group"], set()).add(entry["side"])
    assert len(sides_of) == 25 and all(len(sides) == 1 for sides in sides_of.values())
    assert {side for sides in sides_of.values() for side in sides} == set(SIDES)


@pytest.fixture
def afhq(tmp_path: Path) -> Path:
    """A zip of the raw shape: train and val folders of three kinds."""
    with zipfile.ZipFile(tmp_path / "afhq.zip", "w") as archive:
        for part, kind, count in (("train", "cat", 9), ("train", "dog", 8), ("train", "wild", 8), ("val", "cat", 5)):
            for number in range(count):
                draw(tmp_path / "picture.jpg", len(archive.namelist()), (20, 20))
                archive.write(tmp_path / "picture.jpg", f"afhq/{part}/{kind}/flickr_{kind}_{number:06d}.jpg")
    return tmp_path / "afhq.zip"


def test_afhq_becomes_a_flat_folder_with_as_many_of_each_kind(afhq: Path, tmp_path: Path, capsys) -> None:
    words = ["--images", str(afhq), "--side", "16"]
    assert convert_afhq.main([*words, "--count", "24", "--output", str(tmp_path / "flat")]) == 0
    texts = Counter(file.read_text().strip() for file in (tmp_path / "flat").glob("*.txt"))
    assert texts == {"a photo of a cat": 8, "a photo of a dog": 8, "a photo of a wild animal": 8}
    assert convert_afhq.main([*words, "--output", str(tmp_path / "more")]) == 2
    assert "1000 pictures of train/cat are needed, but the archive has 9" in capsys.readouterr().err


def test_the_afhq_config_plans_a_run_on_what_the_converter_wrote(
    afhq: Path, tmp_path: Path, model_folder, capsys
) -> None:
    assert (
        convert_afhq.main(["--images", str(afhq), "--side", "16", "--count", "24", "--output", str(tmp_path / "f")])
        == 0
    )
    small = ["--pretrained_model_name_or_path", str(model_folder), "--train_data_dir", str(tmp_path / "f")]
    assert (
        SPLoRA.main(["--config_file", str(ROOT / "configs/afhq.toml"), *small, "--resolution", "16", "--dry_run"]) == 0
    )
    assert "6 members-aux, 6 members-test, 6 non-members-aux, 6 non-members-test" in capsys.readouterr().out


@pytest.mark.skipif(not find_spec("library.data.hub_datasets"), reason="dataset_name is not read yet")
def test_the_pokemon_config_plans_a_run_on_a_local_parquet(tmp_path: Path, model_folder: Path, capsys) -> None:
    """A parquet of the hub's shape: the columns image and text."""
    datasets = pytest.importorskip("datasets")
    pictures = []
    for number in range(25):
        draw(tmp_path / f"{number}.png", number, (16, 16))
        pictures.append(str(tmp_path / f"{number}.png"))
    columns = {"image": pictures, "text": [f"a drawing of number {number}" for number in range(25)]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "pokemon.parquet")
    small = ["--pretrained_model_name_or_path", str(model_folder), "--resolution", "16", "--dry_run"]
    words = ["--dataset_name", str(tmp_path / "pokemon.parquet"), "--cache_dir", str(tmp_path / "cache"), *small]
    assert SPLoRA.main(["--config_file", str(ROOT / "configs/pokemon.toml"), *words]) == 0
    told = capsys.readouterr().out
    assert "6 members-aux, 7 members-test, 6 non-members-aux, 6 non-members-test" in told
