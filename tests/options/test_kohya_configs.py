"""Real-looking kohya TOMLs: each line's verdict stands behind it, and is checked line by line."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import toml
import torch
from safetensors.torch import save_file

import SPLoRA
from library.errors import Faults, InputError
from library.options.declarations import Config
from library.options.notices import Notices
from library.options.resolve import collect_options, read_config
from tests.helpers import tiny

FOLDER = Path(__file__).parent / "kohya_configs"
FILES = ("character.toml", "style.toml", "several_scripts.toml", "fine_tune.toml", "sdxl.toml")
NOT_TAKEN = ("refused", "unknown", "wrong", "conflicts")
NOTICED = ("taken as", "without effect")
MARK = re.compile(r"#= (taken as|taken|without effect|refused|unknown|wrong|conflicts|off|asks for nothing):?\s*(.*)$")


class Line(NamedTuple):
    """One option of a file with the verdict that stands behind it."""

    number: int  # where the key stands
    key: str
    verdict: str
    text: str  # what the message must say


def lines_of(file: Path) -> list[Line]:
    """Every option of a file; a value of several lines carries its verdict behind the last."""
    found, start, key = [], 0, ""
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if match := re.match(r"(\w+) = ", line):
            start, key = number, match[1]
        if match := MARK.search(line):
            found.append(Line(start, key, match[1], match[2].strip()))
    return found


def flat(file: Path) -> dict[str, Any]:
    """The options of a file without their sections."""
    found: dict[str, Any] = {}
    for name, value in toml.load(file).items():
        found |= value if isinstance(value, dict) else {name: value}
    return found


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which every path of the files exists, on a machine that has a GPU (configs are read, not run)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name in ("data/character", "data/reg", "data/sdxl", "data/finetune", "data/style", "models"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("v1-5-pruned", "sd_xl_base_1.0", "vae-ft-mse-840000"):
        (tmp_path / f"models/{name}.safetensors").touch()
    for name in ("data/prompts.txt", "data/finetune/meta_lat.json"):
        (tmp_path / name).touch()
    (tmp_path / "data/style_dataset.toml").write_text((FOLDER / "style_dataset.toml").read_text())
    return tmp_path


def heard(file: Path) -> tuple[list[str], list[str]]:
    """Faults and notices of a file, one a line."""
    notices: list[str] = []
    try:
        read_config("SPLoRA", ["--config_file", str(file)], notices.append)
    except InputError as error:
        return str(error).splitlines(), notices
    return [], notices


def without(file: Path, dropped: set[str]) -> Path:
    """A copy of the file without some options."""
    content = toml.load(file)
    for section in (content, *[part for part in content.values() if isinstance(part, dict)]):
        for name in dropped & set(section):
            del section[name]
    copy = Path("copy.toml")
    copy.write_text(toml.dumps(content))
    return copy


@pytest.mark.parametrize("name", FILES)
def test_every_line_of_a_kohya_config_gets_its_verdict(shop: Path, name: str) -> None:
    lines = lines_of(FOLDER / name)
    keys = list(flat(FOLDER / name))
    assert sorted(keys) == sorted(line.key for line in lines), "every option carries a verdict"
    faults, notices = heard(FOLDER / name)
    for line in lines:
        about = re.compile(rf"{re.escape(name)}\b.*\bline {line.number}\b")
        told = [message for message in faults if about.search(message) or f"{line.key} " in message.split(";")[0]]
        noted = [message for message in notices if about.search(message)]
        if line.verdict in NOT_TAKEN:
            assert any(line.text in message for message in told), (line, told)
            assert line.verdict == "conflicts" or any(about.search(message) for message in told), (line, told)
        else:
            assert not [message for message in told if about.search(message)], (line, told)
        assert any(line.text in message for message in noted) if line.verdict in NOTICED else not noted, (line, noted)


@pytest.mark.parametrize("name", FILES)
def test_no_fault_is_reported_that_no_line_deserves(shop: Path, name: str) -> None:
    """As many messages as lines that are not taken: none for another line, none twice."""
    faults, _ = heard(FOLDER / name)
    assert len(faults) == sum(line.verdict in NOT_TAKEN for line in lines_of(FOLDER / name)), "\n".join(faults)


@pytest.mark.parametrize("name", FILES)
def test_without_its_faulty_lines_the_config_loads_with_every_value_it_names(shop: Path, name: str) -> None:
    lines = lines_of(FOLDER / name)
    copy = without(FOLDER / name, {line.key for line in lines if line.verdict in NOT_TAKEN})
    config = read_config("SPLoRA", ["--config_file", str(copy)], lambda text: None)
    written = flat(copy)
    for line in lines:
        if line.verdict == "taken":
            value = written[line.key][0] if line.key == "text_encoder_lr" else written[line.key]
            assert getattr(config, line.key) in (value, str(value)), line
        elif line.verdict == "off":
            assert getattr(config, line.key) == getattr(Config(), line.key), line
        elif line.verdict == "taken as" and line.text == "caption_extension":
            assert getattr(config, line.text) == written[line.key], line


def test_an_old_switch_stands_for_its_optimizer_and_may_not_contradict_it(shop: Path) -> None:
    Path("a.toml").write_text("use_lion_optimizer = true\n")
    assert (
        collect_options("SPLoRA", ["--config_file", "a.toml"], Faults(), Notices(print))["optimizer_type"].value
        == "Lion"
    )
    Path("b.toml").write_text('use_8bit_adam = true\noptimizer_type = "Lion"\n')
    faults, _ = heard(Path("b.toml"))
    assert any(
        "b.toml line 2: optimizer_type = 'Lion' contradicts b.toml line 1, as use_8bit_adam" in text for text in faults
    )
    given = collect_options(
        "SPLoRA", ["--config_file", "b.toml", "--optimizer_type", "AdamW"], Faults(), Notices(print)
    )
    assert given["optimizer_type"].value == "AdamW", "a flag beats both"


def test_the_sdxl_config_sizes_itself_and_is_told_from_one_with_another_base(shop: Path) -> None:
    """Without a resolution the family's own; with an SD 1.x base one sentence, whatever else stands in the file."""
    faulty = {line.key for line in lines_of(FOLDER / "sdxl.toml") if line.verdict in NOT_TAKEN}
    copy = without(FOLDER / "sdxl.toml", faulty | {"resolution", "max_bucket_reso"})
    notices: list[str] = []
    config = read_config("SPLoRA", ["--config_file", str(copy)], notices.append)
    assert (config.resolution, config.max_bucket_reso, config.sdxl) == ("1024", 2048, True)
    assert any("resolution = 1024, max_bucket_reso = 2048: none is given" in text for text in notices)
    other = Path("models/v1-5-pruned.safetensors")
    save_file({"cond_stage_model.transformer.text_model.x": torch.zeros(1)}, other)
    words = ["--config_file", str(FOLDER / "sdxl.toml"), "--pretrained_model_name_or_path", str(other)]
    with pytest.raises(InputError) as caught:
        read_config("SPLoRA", words, notices.append)
    (told,) = str(caught.value).splitlines()
    assert "this is a config for SDXL: sdxl = True" in told and "sdxl.toml line 4, [model_arguments])" in told
    assert "'models/v1-5-pruned.safetensors' (command line) is no SDXL model" in told


def test_a_dataset_file_given_as_config_file_is_told_where_it_belongs(shop: Path) -> None:
    (fault,), _ = heard(FOLDER / "style_dataset.toml")
    assert "is a dataset file ([[datasets]]): give that file as dataset_config" in fault


@pytest.mark.skipif(not find_spec("library.data.dataset_config"), reason="dataset_config is not read yet")
def test_the_style_config_plans_a_run_on_its_two_datasets(
    shop: Path, model_folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two resolutions and public regularisation images, from the person's own two files."""
    monkeypatch.undo()
    monkeypatch.chdir(shop)
    for place, first, count in (("style", 0, 8), ("style_large", 8, 8), ("reg", 16, 4)):
        folder = tiny.write_pictures(shop / "made", count, first=first) / "1_zebrafolder"
        folder.rename(shop / "moved")
        (shop / f"data/{place}").rmdir() if (shop / f"data/{place}").exists() else None
        (shop / "moved").rename(shop / f"data/{place}")
    faulty = {line.key for line in lines_of(FOLDER / "style.toml") if line.verdict in NOT_TAKEN}
    copy = without(FOLDER / "style.toml", {*faulty, "vae", "network_args", "optimizer_type", "optimizer_args"})
    words = ["--pretrained_model_name_or_path", str(model_folder), "--mixed_precision", "no", "--dry_run"]
    assert SPLoRA.main(["--config_file", str(copy), "--inclusion", "fixed", *words]) == 0
    assert "4 members-aux, 4 members-test, 4 non-members-aux, 4 non-members-test" in capsys.readouterr().out
